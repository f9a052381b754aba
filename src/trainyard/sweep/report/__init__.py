"""What a sweep ends in: a ranking as text (`ranking`), tables (`tables`) and a page to look at (`html`)."""

from trainyard.sweep.report.ranking import rank, table, text
from trainyard.sweep.report.rows import JobRow

__all__ = ["JobRow", "rank", "table", "text"]
