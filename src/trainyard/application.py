"""Application: how the training command was started, so that it can be restarted."""

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
        file: the path of the script.
        module: the name of the module, if a module was started (`python -m package.train`).
    """

    file: str
    module: str | None = None

    @classmethod
    def now(cls) -> StartedAs | None:
        """Return how this process was started; None if it was started without a file (a notebook, `python -c`)."""
        main: Any = sys.modules["__main__"]
        file = getattr(main, "__file__", None)
        if file is None:
            return None
        spec = getattr(main, "__spec__", None)
        return cls(str(Path(file).resolve()), None if spec is None else str(spec.name).removesuffix(".__main__"))

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

    def __str__(self) -> str:
        return f"python -m {self.module}" if self.module else self.file
