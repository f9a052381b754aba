"""What a sweep ends in: a ranking as text (`ranking`), tables (`tables`) and a page to look at (`html`)."""

from trainyard.sweep.report.ranking import rank, table, text
from trainyard.sweep.report.rows import Row

__all__ = ["Row", "rank", "table", "text"]
