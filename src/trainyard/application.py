"""Application: how the training command was started, so that it can be restarted."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from trainyard.errors import TrainyardError
from trainyard.quoting import shell_override, shell_path

CONFIG_PATH = ("--config-path", "-cp")
MULTIRUN = ("--multirun", "-m")
_SHORTEST = "--config-p"
"""The shortest abbreviation of --config-path that argparse accepts: Hydra also has --config-name and --config-dir."""


@dataclass(frozen=True)
class StartedAs:
    """The script or module that was started, and the folder of configs that its command line names.

    Attributes:
        file: the path of the script.
        module: the name of the module, if a module was started (`python -m package.train`).
        config_path: the value of --config-path, a folder or `pkg://` and a package; None if the command line has none.
    """

    file: str
    module: str | None = None
    config_path: str | None = None

    @classmethod
    def now(cls) -> StartedAs | None:
        """Return how this process was started; None if it was started without a file (a notebook, `python -c`)."""
        main: Any = sys.modules["__main__"]
        file = getattr(main, "__file__", None)
        if file is None:
            return None
        spec = getattr(main, "__spec__", None)
        module = None if spec is None else str(spec.name).removesuffix(".__main__")
        return cls(str(Path(file).resolve()), module, _config_path(sys.argv[1:]))

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> StartedAs:
        """Return an application from its record in a manifest; older records have no `config_path`."""
        return cls(record["file"], record["module"], record.get("config_path"))

    @property
    def command(self) -> list[str]:
        """Arguments of Python that start the application."""
        return ["-m", self.module] if self.module else [self.file]

    def is_same(self, other: StartedAs) -> bool:
        """Return whether both are the same application.

        If one of the files does not exist here, for example after a project was moved, the names are compared.
        """
        mine, theirs = Path(self.file), Path(other.file)
        if mine.exists() and theirs.exists():
            return mine.samefile(theirs)
        return mine.name == theirs.name and self.module == other.module

    def check(
        self, other: StartedAs, directory: Path, then: str = "Use another hydra.sweep.dir for this sweep."
    ) -> None:
        """Check that another process runs this application, to which the sweep in a directory belongs.

        Args:
            other: how the other process was started.
            directory: the directory of the sweep.
            then: the next step for the user if it runs another application.

        Raises:
            TrainyardError: it runs another application.
        """
        if not self.is_same(other):
            raise TrainyardError(f"{directory} contains a sweep of {self}, but this command runs {other}. {then}")

    def check_config_path(self, what: str, then: str) -> None:
        """Check that the folder of --config-path exists.

        A relative path is not checked: Hydra resolves it against the program.

        Args:
            what: the run or the sweep that was started, for the message.
            then: the next step for the user.

        Raises:
            TrainyardError: the folder does not exist.
        """
        path = Path(self.config_path or "")
        if path.is_absolute() and not path.is_dir():
            raise TrainyardError(f"{what} was started with --config-path {path}, which does not exist. {then}")

    @property
    def config_flags(self) -> list[str]:
        """The flags that select the folder of --config-path again."""
        return [] if self.config_path is None else ["--config-path", self.config_path]

    def __str__(self) -> str:
        return f"python -m {self.module}" if self.module else self.file


def continuation(directory: Path, *, recorded: bool) -> str:
    """Return the instruction for continuing a sweep.

    Args:
        directory: the sweep's directory.
        recorded: whether this directory contains what `trainyard sweep resume` needs, such as the file of the
            application.
    """
    if not recorded:
        return f"use the same command with {shell_override('hydra.sweep.dir', directory)}"
    return f"run `trainyard sweep resume {shell_path(directory)}`"


def _config_path(arguments: Sequence[str]) -> str | None:
    """Return the value of --config-path in a command line, of which another program may be the reader."""
    found = None
    for argument, following in zip_longest(arguments, arguments[1:]):
        name, equals, value = argument.partition("=")
        if name in CONFIG_PATH or (name.startswith(_SHORTEST) and CONFIG_PATH[0].startswith(name)):
            found = value if equals else following
    return found
