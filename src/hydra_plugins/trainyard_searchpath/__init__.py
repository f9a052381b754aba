"""Hydra plugin that puts Trainyard's configs on the search path, after the configs of the application.

Hydra imports this file at every start of every Hydra application in the environment, so it imports nothing but Hydra.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


def conf_path() -> str | None:
    """Return the place of the configs, in the form of Hydra's search path; None if this copy of the package has no
    configs.

    A wheel contains them as the package ``trainyard.conf``. In a source checkout, installed as editable or not,
    they are in ``conf/`` next to ``src/``.
    """
    spec = find_spec("trainyard")  # locates a top-level package without importing it
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    if (package / "conf" / "train.yaml").is_file():
        return "pkg://trainyard.conf"
    checkout = package.parent.parent / "conf"
    if (checkout / "train.yaml").is_file():
        return f"file://{checkout}"
    return None


class TrainyardSearchPath(SearchPathPlugin):
    """Appends Trainyard's configs. A config of the application with the same name takes precedence."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        path = conf_path()
        there = {str(element.path).removeprefix("file://") for element in search_path.get_path()}
        if path is not None and path.removeprefix("file://") not in there:
            search_path.append("trainyard", path)
