"""Parts of the torture: cases drawn from a seed, and what comes of each."""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random


class FaultError(Exception):
    """A promise that does not hold; the message says what was found."""


@dataclass
class Trial:
    """One case while it is tried.

    Attributes:
        random: every choice of the case is drawn from it.
        folder: an empty folder of the case's own; folders beside it are shared by the cases of the part.
        also: overrides that the user adds to every command.
        told: what was drawn, for those who read the result.
        seed, case: the seed and the number of the case, for a part whose cases are numbered.
    """

    random: Random
    folder: Path
    also: Sequence[str] = ()
    told: list[str] = field(default_factory=list)
    seed: int = 0
    case: int = 0

    def tell(self, *what: object) -> None:
        """Add to the description of the case."""
        self.told.extend(map(str, what))


@dataclass(frozen=True)
class Result:
    """Result of one case.

    Attributes:
        what: what was drawn.
        fault: what did not hold; None if all did.
    """

    part: str
    seed: int
    case: int
    what: str
    fault: str | None
    seconds: float


@dataclass(frozen=True)
class Part:
    """One way to try what is promised.

    Attributes:
        name: its name on the command line.
        compared: what is compared with what, for the table.
        usual: the number of cases where none is given, which is that of CI.
        attempt: tries one case; it raises `FaultError` where a promise does not hold.
        complete: returns the number of cases that a part of finitely many cases has; None for a part without an end.
    """

    name: str
    compared: str
    usual: int
    attempt: Callable[[Trial], None]
    complete: Callable[[], int] | None = None

    def results(self, seed: int, cases: Iterable[int], folder: Path, also: Sequence[str] = ()) -> Iterator[Result]:
        """Yield the result of each case. What a case that failed has written stays.

        Args:
            seed: what is drawn depends on it, on the name of the part and on the number of the case alone.
            cases: the numbers of the cases.
            folder: an empty folder to write in.
            also: overrides that are added to every command.
        """
        for case in cases:
            trial = Trial(Random(f"{self.name} {seed} {case}"), folder / str(case), also, seed=seed, case=case)
            trial.folder.mkdir(parents=True)
            begin = time.monotonic()
            fault = self._fault(trial)
            if fault is None:
                shutil.rmtree(trial.folder)
            yield Result(self.name, seed, case, " ".join(trial.told), fault, time.monotonic() - begin)

    def _fault(self, trial: Trial) -> str | None:
        try:
            self.attempt(trial)
        except FaultError as fault:
            return str(fault)
        except Exception:
            return traceback.format_exc()
        return None
