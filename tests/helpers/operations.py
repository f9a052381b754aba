"""Operations of a step, counted: on CUDA each is a kernel or more."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

NO_WORK = ("_unsafe_view", "empty", "empty_like", "empty_strided", "is_same_size", "new_empty", "new_empty_strided")
"""Operators that compute nothing, besides views."""


class Operations(TorchDispatchMode):
    """Counts the calls of torch's operators that compute something.

    Attributes:
        phase: the part of the step that is counted.
        phases: the calls in each part, by operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.phase = "forward and backward"
        self.phases: dict[str, Counter[str]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aliases = [returned.alias_info for returned in function._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        name = function.overloadpacket.__name__
        if function.namespace == "aten" and not is_view and name not in NO_WORK:
            self.phases.setdefault(self.phase, Counter())[name] += 1
        return function(*args, **(kwargs or {}))

    def numbers(self) -> dict[str, int]:
        """The number of calls in each part."""
        return {phase: counts.total() for phase, counts in self.phases.items()}


def operations(step: Any, batch: Any, position: int = 0, total: int = 1) -> Operations:
    """Count those of one step of a `Step`: `forward and backward`, `clipping`, and the `optimizer`."""
    counted = Operations()

    def phase(name: str, function: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            before, counted.phase = counted.phase, name
            try:
                return function(*args, **kwargs)
            finally:
                counted.phase = before

        return run

    clip = step.clip
    step.clip, step._update = phase("clipping", clip), phase("optimizer", step._update)
    try:
        with counted:
            step(batch, position, total)
    finally:
        step.clip = clip
        del step._update
    return counted
