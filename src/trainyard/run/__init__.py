"""One run: training from one config, the files of the run, and the start of its processes."""
