"""Contract of loops: what a Runner asks of a training loop and of an evaluation loop."""

from __future__ import annotations

from typing import Any, Protocol

from trainyard.errors import ConfigError


class Loop(Protocol):
    """A training loop, as the Runner and the hooks see it; a loop of your own has all of this.

    It may have two things more: `stages`, the names of the stages that it calls besides the usual ones, as an attribute
    of the class; and `sanity_check(runner)`, which tries before the training what only this loop does.

    Attributes:
        unit: "epoch" or "iter": what a hook counts that is not told.
        val_due: a validation comes before the next iteration: the ValLoop sets it to False when it is through.
    """

    unit: str
    val_due: bool

    def max_epochs(self, runner: Any) -> int:
        """Return epochs in the whole run; the last one may be cut short."""

    def max_iters(self, runner: Any) -> int:
        """Return iterations in the whole run."""

    def run(self, runner: Any) -> None:
        """Train from where the runner stands to the end, counting `runner.iter` and `runner.epoch`."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on, with `val_due` among it: plain values and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""


def checked(key: str, loop: Any, kind: type) -> Any:
    """Return a loop that has all that `kind` asks for.

    Args:
        key: the argument that gave it, for errors.
        loop: the user's, or ours.
        kind: `Loop` or `EvalLoop`.

    Raises:
        ConfigError: it has not.
    """
    needed = [*kind.__annotations__, *(name for name in vars(kind) if not name.startswith("_"))]
    missing = [name for name in needed if not hasattr(loop, name)]
    if missing:
        accepted = f"an object with {', '.join(needed)} (docs/runner.md)"
        raise ConfigError(key, type(loop).__name__, accepted, hint=f"It has no {missing[0]}.")
    return loop


class EvalLoop(Protocol):
    """A validation, as the Runner and the training loops see it; one of your own is best derived from `ValLoop`.

    Attributes:
        current: the set that is being evaluated, `val` or `val/easy`, for hooks to read.
    """

    current: str

    def run(self, runner: Any) -> list[dict[str, float]]:
        """Evaluate, and return the results of each member by name."""

    def sanity_check(self, runner: Any) -> list[str]:
        """Try it in short, and return the names that the results will have."""
