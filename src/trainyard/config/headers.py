"""Parts of config files that Hydra ignores: headers such as `# @package _global_`, and overrides of Hydra's groups."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from trainyard.config.config_files import ConfigFile, Sources, find_config, sources_of
from trainyard.config.namesakes import chosen_hooks
from trainyard.config.places import ConfigPlaces
from trainyard.config.plain import plain
from trainyard.errors import TrainyardError, nearest, quoted

_HEADER = re.compile(r"\s*#+\s*@(\S+)\s*(.*?)\s*")  # as in Hydra: any key, and the rest of the line
_PACKAGE = re.compile(r"\s*#+\s*@package:?\s+[\w.]+\s*", re.IGNORECASE)
_OWN_PACKAGE = re.compile(r"^\s*#+\s*@package:?\s+([\w.]+)\s*$", re.MULTILINE)
_WORDS = ("_global_", "_group_", "_name_")
_ALIKE = 0.8
_INVALID = ("Too many components in", "Expected header format")  # errors of Hydra


def check_headers() -> None:
    """Check that Hydra has read the header `@package` and the overrides of each selected config file.

    Hydra reads headers only from the first lines of a file, up to the first other line, and ignores unknown headers.
    The values of the file are then merged at another place of the config. An override of a group of Hydra that the
    primary config also overrides is ignored: another sweeper would run the sweep. Outside a Hydra job there is nothing
    to check.

    Raises:
        TrainyardError: a header is not at the top of its file, or its name or its package is misspelled; or an override
            has no effect.
    """
    if not HydraConfig.initialized():
        return
    hydra: Any = HydraConfig.get()
    sources = sources_of(hydra)
    choices: Any = plain(hydra.runtime._get_node("choices"))
    files = [f"{group.partition('@')[0]}/{option}" for group, option in choices.items() if option]
    names = (*files, *(f"hook/{option}" for option in chosen_hooks(hydra, sources)))
    overrides: Any = plain(hydra.overrides._get_node("hydra"))
    given = sorted({key for entry in overrides if "/" in (key := re.split("[=@]", str(entry).lstrip("+~"))[0])})
    _check_files(names, sources, hydra.job.config_name, tuple(given))


@lru_cache(maxsize=64)
def _check_files(names: tuple[str, ...], sources: Sources, main: str | None, given: tuple[str, ...]) -> None:
    primary = find_config(main, sources) if main else None
    overridden = {} if primary is None else dict(_overrides(primary))
    checked: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        if name in checked:
            continue
        checked.add(name)
        file = find_config(name, sources)
        if file is None:
            continue
        check_header(file)
        for key, option in _overrides(file):
            group = key.lstrip("/")
            own = overridden.get(group, overridden.get(key, option))
            if primary is not None and key.startswith("/hydra/") and own != option and group not in given:
                raise TrainyardError(
                    f"{file.path}: 'override {key}: {option}' has no effect, because the primary config {primary.path} "
                    f"overrides {group} and takes precedence. Change this entry in the primary config, or select the "
                    f"option on the command line with {group}=OPTION."
                )
        left += file.included(name)


def _overrides(file: ConfigFile) -> Iterator[tuple[str, Any]]:
    """Yield the groups that the defaults list of a file overrides, as written there, and the options."""
    entries = file.content.get("defaults") if "override" in file.text else None
    for entry in entries if isinstance(entries, list) else ():
        for key, option in entry.items() if isinstance(entry, Mapping) else ():
            if str(key).startswith("override "):
                yield str(key).removeprefix("override ").strip(), option


def package_of(text: str) -> str:
    """Return the package of a config file, such as `_global_`; without a header, this is `_group_`."""
    header = _OWN_PACKAGE.search(text)
    return header[1] if header else "_group_"


def count_headers(lines: Sequence[str]) -> int:
    """Return the number of lines up to the last header of a file, after which other lines can be inserted."""
    count = 0
    for number, line in enumerate(lines, 1):
        header = _HEADER.fullmatch(line)
        if header is not None:
            count = number
        elif line.strip():
            break
    return count


def check_header(file: ConfigFile) -> None:
    """Check that Hydra has read the headers of a file.

    Raises:
        TrainyardError: Hydra has ignored a header; see `check_headers`.
    """
    if "@package" not in file.text.lower():
        return
    at_top = True
    for number, line in enumerate(file.text.splitlines(), 1):
        header = _HEADER.fullmatch(line)
        at_top = at_top and (header is not None or not line.strip())
        where = f"{file.path}, line {number}"
        if not at_top and _PACKAGE.fullmatch(line):
            raise TrainyardError(
                f"{where}: Hydra does not read {quoted(line.strip())} here, because another line is above it. Make it "
                "the first line of the file."
            )
        if not at_top or header is None:
            continue
        name, package = header[1], header[2]
        if name != "package" and name.lower().rstrip(":") == "package":
            raise TrainyardError(f"{where}: Hydra does not read {quoted(line.strip())}. Write '# @package {package}'.")
        for word in package.split(".") if name == "package" else ():
            meant = _meant(word)
            if meant is not None:
                raise TrainyardError(
                    f"{where}: Hydra does not know {quoted(word)} in {quoted(line.strip())}. "
                    f"Did you mean {quoted(meant)}?"
                )


def _meant(word: str) -> str | None:
    """Return the word of Hydra that was meant by a word of a package that is none; None if it is a usual key."""
    if word in _WORDS:
        return None
    if word.startswith("_") and word.endswith("_"):
        return nearest(word, _WORDS)
    return "_global_" if get_close_matches(word, ["_global_"], cutoff=_ALIKE) else None


def explain_header(error: Exception, places: ConfigPlaces) -> TrainyardError | None:
    """Explain Hydra's error about a header with too few or too many words; None if this is another error."""
    if not (isinstance(error, ValueError) and str(error).startswith(_INVALID)):
        return None
    told = str(error).partition("'")[2].rpartition("'")[0]  # the header without its #
    if re.match(r"@\s*package", told, re.IGNORECASE):
        accepted = "Expected one name after @package, such as '# @package _global_', and no comment on the same line."
    else:
        accepted = "Hydra reads a comment with an @ at its start as a header. Move it below the first key."
    for file in places.files():
        for number, line in enumerate(_lines(file), 1):
            if line.strip().lstrip("#").strip() == told:
                return TrainyardError(f"{file}, line {number}: {quoted(line.strip())} is invalid. {accepted}")
    return TrainyardError(f"A config file has the invalid header {quoted(told)}. {accepted}")


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
