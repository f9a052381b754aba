"""Application: how the training command was started, so that it can be started again."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainyard.errors import TrainyardError


@dataclass(frozen=True)
class StartedAs:
    """The script or module that was started.

    Attributes:
        file: the script's path.
        module: its name, if it was started as one (`python -m package.train`).
    """

    file: str
    module: str | None = None

    @classmethod
    def now(cls) -> StartedAs | None:
        """Return how this process was started; None if that was not with a file (a notebook, `python -c`)."""
        main: Any = sys.modules["__main__"]
        file = getattr(main, "__file__", None)
        if file is None:
            return None
        spec = getattr(main, "__spec__", None)
        return cls(str(Path(file).resolve()), None if spec is None else str(spec.name).removesuffix(".__main__"))

    @property
    def command(self) -> list[str]:
        """Arguments of Python that start it."""
        return ["-m", self.module] if self.module else [self.file]

    def is_same(self, other: StartedAs) -> bool:
        """Return whether both are one application.

        Where one of the files does not exist here, such as after a project was moved, its name decides.
        """
        mine, theirs = Path(self.file), Path(other.file)
        if mine.exists() and theirs.exists():
            return mine.samefile(theirs)
        return mine.name == theirs.name and self.module == other.module

    def check(self, other: StartedAs, directory: Path) -> None:
        """Check that another process was started as the application of the sweep in a directory, which is this one.

        Raises:
            TrainyardError: it was not.
        """
        if not self.is_same(other):
            raise TrainyardError(
                f"{directory} contains a sweep of {self}, but this command runs {other}. Use another "
                "hydra.sweep.dir for this sweep."
            )

    def __str__(self) -> str:
        return f"python -m {self.module}" if self.module else self.file
