"""Best values of several metrics, for each member."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainyard.checks import choice
from trainyard.errors import ConfigError
from trainyard.runner import Best, Member, Objective


class BestOf:
    """Keeps the best value of each of several metrics, for each member, and the iteration at which it occurred.

    Args:
        rules: `maximize` or `minimize` for each metric.

    Attributes:
        files: the checkpoint of the best state for each metric: `best_accuracy.pt` for `val/accuracy`.

    Raises:
        ConfigError: a rule is neither of the two directions, or the files of two metrics would have the same name.
    """

    def __init__(self, rules: Mapping[str, Any]) -> None:
        self._objectives = {name: _objective(name, rule) for name, rule in rules.items()}
        self.files = {name: f"best_{name.removeprefix('val/').replace('/', '_')}.pt" for name in rules}
        if len(set(self.files.values())) < len(self.files):
            raise ConfigError(
                "save_best",
                dict(rules),
                f"metrics with different file names, but the file names are {', '.join(self.files.values())}",
            )
        self._best: dict[int, dict[str, Best]] = {}

    def judge(self, index: int, member: Member, *, step: int, epoch: int) -> None:
        """Compare a member's latest values with its best.

        Raises:
            ConfigError: one of the metrics is not computed.
        """
        best = self._best.setdefault(index, {})
        for name, objective in self._objectives.items():
            value = member.latest(name, "hook.checkpoint.save_best")
            if objective.better(value, best[name].value if name in best else None):
                best[name] = Best(value, epoch, step)

    def files_of(self, index: int, step: int) -> set[str]:
        """Return the files of the metrics whose best value occurred at iteration `step`."""
        return {self.files[name] for name, best in self._best.get(index, {}).items() if best.iter == step}

    def forget_missing(self, index: int, member: Member) -> None:
        """Forget each best value whose file is missing; it is determined again from the states saved here."""
        known = self._best.get(index, {})
        self._best[index] = {name: it for name, it in known.items() if (member.checkpoints / self.files[name]).exists()}

    def state_dict(self, index: int) -> dict[str, Any]:
        return {name: vars(best).copy() for name, best in self._best.get(index, {}).items()}

    def load_state_dict(self, state: Mapping[str, Any], index: int) -> None:
        self._best[index] = {name: Best(**best) for name, best in state.items() if name in self.files}

    def keep(self, members: Sequence[int]) -> None:
        self._best = {new: self._best.get(old, {}) for new, old in enumerate(members)}


def _objective(name: str, rule: Any) -> Objective:
    return Objective(name, choice(f"save_best.{name}", rule, ("maximize", "minimize")))  # type: ignore[arg-type]
