"""Contract of loops: what a Runner requires of a training loop and of an evaluation loop."""

from __future__ import annotations

from typing import Any, Protocol

from trainyard.data.lengths import length_hint
from trainyard.errors import ConfigError


class Loop(Protocol):
    """Training loop, as the Runner and the hooks see it. A custom loop has all of these attributes and methods.

    Two more are optional: `stages`, a class attribute with the names of the stages that it calls in addition to the
    standard ones; and `sanity_check(runner)`, which tests the special features of this loop before the training.

    Attributes:
        unit: "epoch" or "iter": the unit of hooks that do not set one.
        val_due: a validation runs before the next iteration. The ValLoop sets it to False when it has finished.
    """

    unit: str
    val_due: bool

    def max_epochs(self, runner: Any) -> int | None:
        """Return the number of epochs in the entire run, the last of which can be incomplete; None if it is unknown."""

    def max_iters(self, runner: Any) -> int | None:
        """Return the number of iterations in the entire run; None if it is unknown."""

    def run(self, runner: Any) -> None:
        """Train from the runner's position to the end, and update `runner.iter` and then `runner.epoch`."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs to continue, including `val_due`: plain values and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a result of `state_dict`."""


def length_of(loop: Loop, runner: Any) -> int | None:
    """Return the length of the entire run in the unit of the loop; None if it is unknown.

    A custom loop need not have the attribute `length` of `TrainLoop`.
    """
    return loop.max_epochs(runner) if loop.unit == "epoch" else loop.max_iters(runner)


def extent(loop: Loop, runner: Any) -> tuple[int | None, int | None]:
    """Return the number of epochs and of iterations at the end of the run; None for a number that is unknown.

    If a resumed run has changed the batch size, its earlier epochs had another number of iterations, which `max_epochs`
    and `max_iters` do not know.
    """
    epochs, iters, length = loop.max_epochs(runner), loop.max_iters(runner), length_hint(runner.loader("train"))
    if not length or epochs is None or iters is None:
        return epochs, iters
    more = runner.epoch_begin - runner.epoch * length
    if loop.unit == "epoch":
        return epochs, iters + more
    return epochs if not more else -(-(iters - more) // length), iters


def checked(key: str, loop: Any, kind: type, *, other: str = "") -> Any:
    """Return the loop, after a check that it has everything that `kind` requires.

    Args:
        key: the argument that names it, for errors.
        loop: a custom or built-in loop.
        kind: `Loop` or `EvalLoop`.
        other: another value that the caller accepts and has already handled; for the message.

    Raises:
        ConfigError: something is missing.
    """
    needed = [*kind.__annotations__, *(name for name in vars(kind) if not name.startswith("_"))]
    missing = [name for name in needed if not hasattr(loop, name)]
    if missing:
        accepted = f"an object with the attributes {', '.join(needed)} (docs/runner.md)"
        accepted += f", or {other}" if other else ""
        raise ConfigError(key, type(loop).__name__, accepted, hint=f"This object has no attribute {missing[0]}.")
    return loop


class EvalLoop(Protocol):
    """Evaluation loop, as the Runner and the training loops see it. Derive custom loops from `ValLoop` if possible.

    Attributes:
        current: the set that is being evaluated, such as `val` or `val/easy`; hooks read it.
    """

    current: str

    def run(self, runner: Any) -> list[dict[str, float]]:
        """Evaluate, and return for each member the results by name."""

    def sanity_check(self, runner: Any) -> list[str]:
        """Run the loop on little data, and return the names of the results."""
