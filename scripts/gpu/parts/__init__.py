"""Parts of the check: `python -m parts.MODULE NAME …` runs one."""
