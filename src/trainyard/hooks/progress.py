"""Progress bar hook for terminals and notebooks; elsewhere, only the lines of the Logger are shown."""

from __future__ import annotations

import os
import pdb
import shutil
import sys
from time import perf_counter
from typing import TYPE_CHECKING, Any

from torch import Tensor

from trainyard import console
from trainyard.checks import number
from trainyard.data.lengths import of_total
from trainyard.hooks._notebook import COLUMNS, in_notebook, notebook_bar
from trainyard.hooks._time_left import TimeLeft
from trainyard.runner import Runner, read
from trainyard.runner.contract import extent
from trainyard.runner.hook import Hook

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID


TEXTS = 68
"""Number of columns without the bar."""
NARROWEST, WIDEST = 4, 40


class Progress(Hook):
    """Shows a bar with epoch, iterations, loss, learning rate, samples per second and the remaining time (rich).

    The bar fits into 80 columns. `breakpoint()` removes the bar for the rest of the training. In a notebook, it is a
    line of text.

    Args:
        refresh: seconds between two updates; each update reads the loss.
    """

    priority = "LOW"
    ranks = "main"
    stackable = True
    own_places = True

    def __init__(self, refresh: float = 0.1) -> None:
        self.refresh = number("refresh", refresh, at_least=0, finite=False, unit="seconds")
        self._bar: Bar | None = None
        self._next = float("inf")

    def before_train(self, runner: Runner) -> None:
        notebook = in_notebook()
        if not notebook and not sys.stdout.isatty():
            return
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        columns = COLUMNS if notebook else shutil.get_terminal_size().columns
        parts = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=min(WIDEST, max(NARROWEST, columns - TEXTS))),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
        )
        self._bar = notebook_bar(*parts) if notebook else Bar(*parts, auto_refresh=False, transient=True)
        self._epochs, self._total = extent(runner.train_loop, runner)
        self._task: TaskID = self._bar.add_task("", total=self._total, completed=runner.iter, numbers="")
        self._begin_iter, self._left = runner.iter, TimeLeft(runner.iter)
        self._bar.start()
        console.live = True
        self._breakpoints, sys.breakpointhook = sys.breakpointhook, self._break
        self._next = 0.0

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: dict[str, Tensor]) -> None:
        now = perf_counter()
        if now < self._next:
            return
        self._next = now + self.refresh
        assert self._bar is not None
        losses = [values["loss"] for values in read({"loss": outputs["loss"]}, len(runner.members))]
        pace = (runner.iter - self._begin_iter) * runner.loader("train").batch_size / max(self._left.seconds, 1e-9)
        rate = runner.learning_rates()[0]
        if self._total is not None and runner.iter > self._total:  # it was an estimate
            self._total = None
            self._bar.tasks[0].total = None
        left = self._left.after(runner.iter, None if self._total is None else self._total - runner.iter)
        self._bar.update(
            self._task,
            completed=runner.iter,
            description=f"epoch {of_total(runner.epoch + 1, self._epochs)}",
            numbers=f"loss {min(losses):.4g} lr {rate:.1e} {_short(pace)}/s {left}",
            refresh=True,
        )

    def after_run(self, runner: Runner) -> None:
        self._end()

    def _end(self) -> None:
        if self._bar is not None:
            sys.breakpointhook = self._breakpoints
            self._bar.stop()
            self._bar = None
            console.live = False
            self._next = float("inf")

    def _break(self, *args: Any, **kwargs: Any) -> Any:
        """Stop in the debugger at the line that calls `breakpoint()`, on a terminal without the bar."""
        self._end()
        if os.environ.get("PYTHONBREAKPOINT") is None and sys.breakpointhook is sys.__breakpointhook__:
            pdb.Pdb().set_trace(sys._getframe().f_back)
            return None
        return sys.breakpointhook(*args, **kwargs)


def _short(number: float) -> str:
    """Format a number in five characters: `937`, `12.3k`, `4.56M`."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"
