"""Agreement of ranks: the hooks of each rank, and the iteration at which all ranks end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainyard.distributed import Strategy
from trainyard.errors import ConfigError
from trainyard.runner.dispatch import HookLike

if TYPE_CHECKING:
    from trainyard.runner.runner import Runner

INTERVAL = 10
"""Iterations between two checks whether a rank was asked to end; each check is a collective operation of all ranks."""


def hooks_of_rank(hooks: Mapping[str, HookLike], strategy: Strategy) -> dict[str, HookLike]:
    """Return the hooks that run on this rank, with the agreement hook.

    Raises:
        ConfigError: a hook works on one device only.
    """
    for name, hook in hooks.items():
        if getattr(hook, "ranks", "all") == "one":
            accepted = f"strategy=single, or no such hook (~hook.{name})"
            raise ConfigError(f"hook.{name}", type(hook).__name__, accepted, hint="This hook works on one device only.")
    own: dict[str, HookLike] = {
        name: hook for name, hook in hooks.items() if strategy.is_main or getattr(hook, "ranks", "all") == "all"
    }
    own["agreement"] = _Agreement()
    return own


class _Agreement:
    """Last hook of each rank: when one rank is asked to end the run, all end it after the same iteration."""

    priority: int | str = "LOWEST"

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if runner.iter % INTERVAL == 0:
            self._ask(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        self._ask(runner)

    def _ask(self, runner: Runner) -> None:
        runner.interrupted = runner.strategy.agree(runner.asked_to_end)

    def state_dict(self, *member: int) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any], *member: int) -> None:
        """Do nothing: the hook has no state."""
