"""Keys that may differ between a job of a sweep and its clone, which continues from the checkpoint of the job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainyard.errors import ConfigError, TrainyardError

OVERRIDDEN = ("optim", "data.batch_size")
"""Keys that are also in a checkpoint, and whose values in the config apply if `resume_override` names them."""
FREE = ("seed", "loop", "schedule", "hook", "clip_grad_norm", "clip_grad_value", "objective", "direction")
"""Values that a resumed run takes from its config."""
UNRELATED = ("name", "tracker", "env")
"""Values that may differ in any way."""
NOT_COMPARED = ("work_dir", "resume", "resume_override", *UNRELATED)
LENGTHS = ("loop.max_epochs", "loop.max_iters")
FLAGS = ("foreach", "fused", "capturable", "differentiable")
_ABSENT = object()


def changed(before: Mapping[str, Any], after: Mapping[str, Any], *, ended: bool) -> Sequence[str]:
    """Return the differing keys that `resume_override` must name.

    Args:
        before: the resolved config of the job.
        after: the config of the clone.
        ended: whether the job has reached its end.

    Raises:
        TrainyardError: a differing key cannot be changed after the start of a training, or nothing is left to train.
    """
    differing = [
        (key, new) for key, old, new in _differences(before, after) if key.partition(".")[0] not in NOT_COMPARED
    ]
    for key, new in differing:
        if not _may_change(key):
            value = "nothing" if new is _ABSENT else new
            rule = f"only values of {', '.join((*OVERRIDDEN, *FREE, *UNRELATED))} may differ"
            if key.partition(".")[0] in ("optim", "schedule"):
                rule = "the classes and the paramwise rules of optim and schedule cannot change"
            accepted = f"the value of the job from which this job continues: {rule}"
            raise ConfigError(key, value, accepted, hint="Train a job with another value from the start.")
    if ended and not any(_is_longer(key, old, new) for key, old, new in _differences(before, after)):
        raise TrainyardError(
            f"the job has finished, so its clone would have nothing to train. Increase {' or '.join(LENGTHS)} "
            "to train the clone further."
        )
    named = [key for key, _ in differing if _is_below(key, OVERRIDDEN)]
    return [key for key in named if key.rpartition(".")[2] not in FLAGS]


def _is_longer(key: str, old: Any, new: Any) -> bool:
    """Return whether a difference can make a training longer."""
    return key in LENGTHS and not (isinstance(old, int) and isinstance(new, int) and new < old)


def _may_change(key: str) -> bool:
    parts = key.split(".")
    if parts[0] in ("optim", "schedule") and {"_target_", "_partial_", "paramwise"} & set(parts):
        return False
    return _is_below(key, (*OVERRIDDEN, *FREE))


def _is_below(key: str, places: Sequence[str]) -> bool:
    return any(f"{key}.".startswith(f"{place}.") for place in places)


def _differences(before: Any, after: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield each key at which two configs differ, with both values."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in {**before, **after}:
            own = f"{key}.{name}" if key else str(name)
            yield from _differences(before.get(name, _ABSENT), after.get(name, _ABSENT), own)
    elif before is not after and before != after:
        yield key, before, after
