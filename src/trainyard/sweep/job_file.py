"""File of jobs: a CSV file with a column for each key and a row for each job."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from trainyard.checks import existing_file
from trainyard.errors import ConfigError, counted, first_line, quoted
from trainyard.sweep.grid_settings import FILE


@dataclass(frozen=True)
class JobFile:
    """Jobs of a file.

    Attributes:
        path: the file.
        keys: the keys of its columns, without the sign that adds one.
        jobs: the overrides of each row. An empty cell means no override.
    """

    path: Path
    keys: list[str]
    jobs: list[list[str]]

    @property
    def lines(self) -> list[str]:
        """All distinct overrides."""
        return list(dict.fromkeys(line for job in self.jobs for line in job))

    @classmethod
    def read(cls, given: str) -> JobFile:
        """Read a file: UTF-8, with a first row that names the keys (`optim.lr`, `model`, `+new.key`).

        Cells are values in the grammar of Hydra's overrides, so that `1` is an integer and `'1'` a string.

        Raises:
            ConfigError: the file cannot be read, has no rows, a repeated column, a row of another length, an invalid
                key, or a cell without a single value.
        """
        path = existing_file(FILE, given, other="null")
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file, strict=True)
                rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            what = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(
                FILE, given, "a readable CSV file in UTF-8", hint=f"Reading the file failed: {what}."
            ) from error
        if len(rows) < 2:
            what = "The file is empty." if not rows else "The file has only one row."
            raise ConfigError(
                FILE, given, "a CSV file with the keys in the first row and one job per further row", hint=what
            )
        (_, columns), *body = rows
        parser = OverridesParser.create()
        keys = [_key(column, parser, given) for column in columns]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise ConfigError(FILE, given, "one column per key", hint=f"{twice} has several columns.")
        known: dict[str, str] = {}
        jobs = []
        for line, cells in body:
            if len(cells) != len(columns):
                own, needed = counted(len(cells), "cell"), counted(len(columns), "column")
                hint = f"Line {line} has {own}, but the file has {needed}."
                raise ConfigError(FILE, given, "one cell per column in each row", hint=hint)
            job = [f"{column}={cell}" for column, cell in zip(columns, cells, strict=True) if cell]
            for text in job:
                if text not in known:
                    _check_cell(text, parser, given, line)
                    known[text] = text
            jobs.append([known[text] for text in job])
        return cls(path, keys, jobs)


def _key(column: str, parser: OverridesParser, given: str) -> str:
    try:
        override = parser.parse_override(f"{column}=0") if column and column[0] != "~" and "=" not in column else None
    except HydraException:
        override = None
    if override is None or not override.key_or_group:
        hint = f"The file has a column {quoted(column)}."
        raise ConfigError(FILE, given, "a CSV file with keys in its first row, such as optim.lr", hint=hint)
    return str(override.get_key_element()).lstrip("+")


def _check_cell(text: str, parser: OverridesParser, given: str, line: int) -> None:
    key, _, cell = text.partition("=")
    try:
        several = parser.parse_override(text).is_sweep_override()
    except HydraException as error:
        reason = first_line(error)
        quoting = "If the value is a string, write it in both kinds of quotes in the file, such as \"'a]'\"."
        hint = f"Line {line}, {key}: {quoted(cell)} cannot be parsed: {reason}. {quoting}"
        raise ConfigError(FILE, given, "values in override syntax", hint=hint) from error
    if several:
        quoting = 'In the file, write a list as "[1,2]" and a string with commas as "\'a,b\'".'
        hint = f"Line {line}, {key}: {quoted(cell)} lists several values. {quoting}"
        raise ConfigError(FILE, given, "one value per cell", hint=hint)
