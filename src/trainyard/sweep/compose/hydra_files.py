"""Fast writer of the files that Hydra writes for each job, for many jobs with nearly equal configs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainyard.config.yaml_text import yaml_text

_DEEP = 3  # depth below which sections are not compared part by part


class HydraFiles:
    """Writes `config.yaml`, `hydra.yaml` and `overrides.yaml`. They load as those of `hydra.core.utils.run_job` do.

    A section that is equal in several jobs is converted to YAML once; a section that differs is split into its parts.
    """

    def __init__(self) -> None:
        self._texts: dict[tuple[tuple[Any, ...], str], str] = {}
        self._heads: dict[tuple[Any, ...], str] = {}
        self._met: set[tuple[Any, ...]] = set()
        self._differing: set[tuple[Any, ...]] = set()

    def write(self, values: Mapping[str, Any], folder: Path) -> None:
        """Write the files of a job.

        Args:
            values: its config, unresolved, as `trainyard.config.plain.plain` gives it, with the `hydra` node.
            folder: created if it does not exist.
        """
        _write(values, folder, self._text)

    def _text(self, values: Mapping[str, Any], path: tuple[str, ...] = ()) -> str:
        if not values:
            return yaml_text({})
        return "".join(self._section((*path, key), value) for key, value in values.items())

    def _section(self, path: tuple[Any, ...], value: Any) -> str:
        inside = isinstance(value, dict) and value and len(path) < _DEEP and _is_simple(path)
        if inside and path in self._differing:
            return self._head(path) + self._text(value, path)
        key = path, repr(value)
        if key not in self._texts:
            if path in self._met:
                self._differing.add(path)
            self._met.add(path)
            self._texts[key] = self._head(path) + self._text(value, path) if inside else _below(path, value)
        return self._texts[key]

    def _head(self, path: tuple[Any, ...]) -> str:
        if path not in self._heads:
            self._heads[path] = f"{'  ' * (len(path) - 1)}{yaml_text({path[-1]: None}).rpartition(':')[0]}:\n"
        return self._heads[path]


def write_alone(values: Mapping[str, Any], folder: Path) -> None:
    """Write the files of one job by itself: see `HydraFiles.write`."""
    _write(values, folder, yaml_text)


def _write(values: Mapping[str, Any], folder: Path, text: Callable[[Mapping[str, Any]], str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    own = {key: value for key, value in values.items() if key != "hydra"}
    (folder / "config.yaml").write_text(text(own), encoding="utf-8")
    (folder / "hydra.yaml").write_text(text({"hydra": values["hydra"]}), encoding="utf-8")
    (folder / "overrides.yaml").write_text(yaml_text(values["hydra"]["overrides"]["task"]), encoding="utf-8")


def _is_simple(path: tuple[Any, ...]) -> bool:
    """Return whether each key is on a line of its own, followed by the lines that belong to it."""
    return all(isinstance(key, str) and len(key) < 100 and "\n" not in key for key in path)


def _below(path: tuple[Any, ...], value: Any) -> str:
    """Return the lines of one value, without the lines of its parents."""
    nested = value
    for key in reversed(path):
        nested = {key: nested}
    lines = yaml_text(nested).splitlines(keepends=True)
    return "".join(lines[len(path) - 1 :])
