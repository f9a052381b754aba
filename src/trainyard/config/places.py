"""Places of the configs of a command: the folders that Hydra searches, and the name of the primary config."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]
from hydra import compose, initialize_config_dir, initialize_config_module
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig

from trainyard.checks import existing_folder
from trainyard.config.config_files import ConfigFile, at, find_config
from trainyard.config.hydra_versions import VERSION_BASE
from trainyard.errors import ConfigError

PACKAGE = "pkg://"
_FILE = "file://"
_SEARCH_PATH = "hydra.searchpath"


@dataclass(frozen=True)
class ConfigPlaces:
    """Places in which Hydra searches the configs of a command, before and after those of Trainyard.

    Args:
        main: the absolute path of the folder of the primary config, or `pkg://` and the name of a package.
        name: the name of the primary config.
        added: the absolute path of the folder that --config-dir adds; None for none.
        is_given: whether the command line names `main`.
        searched: the folders and packages that `hydra.searchpath` adds, in the form of `main`.
    """

    main: str
    name: str
    added: str | None = None
    is_given: bool = False
    searched: tuple[str, ...] = ()

    @classmethod
    def of_command(cls, arguments: Sequence[str], main: str, name: str) -> ConfigPlaces:
        """Return the places that a command line names, or those of the program.

        Args:
            arguments: the arranged arguments (`trainyard.config.command_line.arranged`).
            main: the folder of the program.
            name: the primary config of the program.
        """
        given, _ = get_args_parser().parse_known_args(list(arguments))
        places = cls(
            main if given.config_path is None else given.config_path,
            name if given.config_name is None else given.config_name,
            None if given.config_dir is None else str(Path(given.config_dir).absolute()),
            given.config_path is not None,
        )
        return replace(places, searched=places._search_path(given.overrides))

    @classmethod
    def of_composed(cls, hydra: Mapping[str, Any]) -> ConfigPlaces:
        """Return the places from which a config was composed.

        Args:
            hydra: the `hydra` node of the config, in plain Python.
        """
        found: dict[str, list[str]] = {"main": [], "command-line": [], _SEARCH_PATH: []}
        for source in hydra["runtime"]["config_sources"]:
            provider = source["provider"].partition(" in ")[0]  # hydra.searchpath in main
            if provider in found:
                found[provider].append(f"{PACKAGE if source['schema'] == 'pkg' else ''}{source['path']}")
        added = found["command-line"][0] if found["command-line"] else None
        return cls(found["main"][0], hydra["job"]["config_name"], added, searched=_known(found[_SEARCH_PATH]))

    @property
    def folders(self) -> list[Path]:
        """The folders of the command, without packages."""
        return [Path(place) for place in self._places if not place.startswith(PACKAGE)]

    @property
    def _places(self) -> list[str]:
        return [self.main, *([] if self.added is None else [self.added]), *self.searched]

    def _search_path(self, overrides: Sequence[str]) -> tuple[str, ...]:
        """Return the places in `hydra.searchpath`, of an override or of the primary config, that exist and are known
        before the composition."""
        given = list(filter(_is_search_path, overrides))
        found: Any = None
        try:
            if given:
                found = OverridesParser.create().parse_overrides(given)[0].value()  # as in Hydra
            else:
                file = self.find(self.name.removesuffix(".yaml"))
                found = at(file.content, _SEARCH_PATH) if file is not None and "searchpath" in file.text else None
        except (HydraException, ImportError, OSError, ValueError, yaml.YAMLError):  # reported later
            return ()
        return _known(map(str, found if isinstance(found, list) else ()))

    def check(self) -> None:
        """Check that the folders exist, and that a folder given with --config-path has the primary config.

        Without this check, Hydra would use the primary config of Trainyard that has the same name.

        Raises:
            ConfigError: a check fails.
        """
        if self.added is not None:
            existing_folder("--config-dir", self.added)
        if self.main.startswith(PACKAGE):
            return
        existing_folder("--config-path" if self.is_given else "config_path", self.main)
        if self.is_given and not any((folder / _file(self.name)).is_file() for folder in self.folders):
            hint = "To add a folder of group options, such as model/mine.yaml, use --config-dir."
            found = self.primary_configs()
            if found:
                hint = f"Available primary configs: {', '.join(found)}. Select one with --config-name. {hint}"
            raise ConfigError("--config-path", self.main, f"a folder that contains {_file(self.name)}", hint=hint)

    def primary_configs(self) -> list[str]:
        """Return the names of the configs at the top of the folders."""
        return sorted({file.stem for folder in self.folders if folder.is_dir() for file in folder.glob("*.yaml")})

    def files(self) -> list[Path]:
        """Return all config files in the folders."""
        return [file for folder in self.folders for file in sorted(folder.rglob("*.yaml"))]

    def find(self, name: str) -> ConfigFile | None:
        """Return a config (`model/mlp`) of the command; None if it is in none of the places."""
        return find_config(name, tuple(map(_source, self._places)))

    def compose(self, overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
        """Compose the primary config with overrides.

        Raises:
            HydraException, OmegaConfBaseException: as in Hydra.
        """
        own = list(overrides)
        if self.added is not None:
            places = [
                place if place.startswith(PACKAGE) else f"{_FILE}{place}" for place in (self.added, *self.searched)
            ]
            own = [each for each in own if not _is_search_path(each)]
            own.append(f"{_SEARCH_PATH}=[{','.join(map(_quoted, places))}]")
        with _initialized(self.main):
            return compose(self.name, own, return_hydra_config=with_hydra)

    def options(self, group: str) -> list[str]:
        """Return the options of a group in all places, and in Trainyard's configs."""
        found: set[str] = set()
        for place in self._places:
            with _initialized(place):
                found |= {*GlobalHydra.instance().config_loader().get_group_options(group)}
        return sorted(found)


@contextmanager
def _initialized(place: str) -> Iterator[None]:
    """Initialize Hydra with a folder or package of configs inside the block."""
    GlobalHydra.instance().clear()
    if place.startswith(PACKAGE):
        with initialize_config_module(place.removeprefix(PACKAGE).replace("/", "."), **VERSION_BASE):
            yield
    else:
        with initialize_config_dir(place, **VERSION_BASE):
            yield


def _known(entries: Iterable[str]) -> tuple[str, ...]:
    """Return the entries of a search path that exist and are known before the composition, in the form of `main`."""
    places: list[str] = []
    for place in entries:
        if place.startswith(PACKAGE):
            places += [place] if _is_package(_source(place)[1]) else []
        elif "${" not in place and Path(place.removeprefix(_FILE)).is_dir():
            places.append(str(Path(place.removeprefix(_FILE)).absolute()))
    return tuple(places)


def _quoted(text: str) -> str:
    """Return a string as Hydra reads it from an override, with any characters."""
    return QuotedString(text, Quote.double).with_quotes()


def _is_search_path(override: str) -> bool:
    """Return whether Hydra reads a search path from an override; with a `+`, it does not."""
    return override.partition("=")[0].strip() == _SEARCH_PATH


def _is_package(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):  # the package above it is missing, or the name is empty
        return False


def _source(place: str) -> tuple[str, str]:
    """Return the schema and the path of a place."""
    if place.startswith(PACKAGE):
        return "pkg", place.removeprefix(PACKAGE).replace("/", ".")
    return "file", place


def _file(name: str) -> str:
    return name if name.endswith(".yaml") else f"{name}.yaml"
