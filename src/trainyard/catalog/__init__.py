"""The catalog of runs in folders, read from their files. The catalog changes no file and needs no torch or MLflow."""

from trainyard.catalog.compare import Comparison, compare
from trainyard.catalog.find import find, resolve
from trainyard.catalog.stored_run import Best, History, Point, StoredRun
from trainyard.catalog.where import Where

__all__ = ["Best", "Comparison", "History", "Point", "StoredRun", "Where", "compare", "find", "resolve"]
