"""One run: one config in, one objective out; the files of a run; starting ranks."""
