"""Results of a run: its best objective, or the numbers that its sweep requests."""

from __future__ import annotations

from collections.abc import Sequence

from trainyard.runner import Member
from trainyard.track import journal
from trainyard.track.sweep_position import PARAMETERS, Returned


def returned(member: Member, metrics: Sequence[str] = ()) -> Returned:
    """Return the best objective of a member, or several of its numbers.

    The numbers belong to one model: each is the value at the validation with the best objective, whose checkpoint is
    kept. A metric that was not measured there (for example, of the test) has its last value.

    Args:
        member: a member whose training has ended.
        metrics: the names of the numbers; empty for the best objective.
    """
    best = member.metrics.get(member.objective.name) if member.best is None else member.best.value
    if not metrics:
        return best
    there = _recorded_at(member)
    own = {PARAMETERS: float(parameters(member)), member.objective.name: best}
    return {name: own[name] if name in own else there.get(name, member.metrics.get(name)) for name in metrics}


def parameters(member: Member) -> int:
    """Return the number of parameters of a member's model."""
    return sum(weight.numel() for weight in member.model.parameters())


def _recorded_at(member: Member) -> dict[str, float]:
    """Return the values in the journal at the iteration of the best objective."""
    found: dict[str, float] = {}
    if member.best is not None and member.journal.path is not None:
        for record, _ in journal.read(member.journal.path):
            if record["kind"] == "metrics" and record["step"] == member.best.iter:
                found.update(record["values"])
    return found
