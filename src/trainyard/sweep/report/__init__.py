"""Reports of a sweep: a ranking as text (`ranking`), result files (`result_files`) and an HTML page (`html`)."""

from trainyard.sweep.report.ranking import rank, table, text
from trainyard.sweep.report.rows import JobRow

__all__ = ["JobRow", "rank", "table", "text"]
