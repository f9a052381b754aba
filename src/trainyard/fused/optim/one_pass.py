"""Choice of the Triton kernels that update a bucket in one pass over its memory.

Arithmetic on lists of tensors (`StackedOptimizer._update`) reads the memory once for each of its functions. A
kernel of `triton_kernels` reads parameter, gradient and state once and writes them once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from trainyard._fast_paths import fast_paths

if TYPE_CHECKING:
    from trainyard.fused.optim.bucket import ParameterBucket
    from trainyard.fused.optim.stacked_hyperparameters import StackedHyperparameters

log = logging.getLogger(__name__)

Family = Literal["Adam", "SGD"]
"""Names of the classes of `triton_kernels`, one for each family of optimizers."""
DEVICES = ("cuda",)
"""Types of devices on which the kernels are used."""


class Launch(Protocol):
    """Interface of the kernels of one bucket."""

    def __call__(self, group: Mapping[str, Any], numbers: StackedHyperparameters, skip: Tensor | None) -> None:
        """Step the bucket once, except the members `skip` (bool `[K]`). Nothing synchronizes with the device.

        The flags of `group` are read here, on the CPU. The kernels read numbers and step counts from the device, so
        that a captured CUDA graph uses their values at the replay.
        """


def find(family: Family, device: torch.device) -> Callable[[ParameterBucket], Launch] | None:
    """Return the function that creates the `Launch` of a bucket.

    None if arithmetic on lists must be used: on devices other than CUDA, with fast paths off, or if the kernels do not
    work, which is logged once. Only the first call for a device waits for it.
    """
    if device.type not in DEVICES or not fast_paths():
        return None
    classes = _working_classes(device)
    return None if classes is None else classes[family]


@cache
def _working_classes(device: torch.device) -> Mapping[Family, Callable[[ParameterBucket], Launch]] | None:
    try:
        from trainyard.fused.optim import triton_kernels
    except ImportError as error:
        log.info(
            "Stacks of Adam, AdamW and SGD use several passes over memory, because Triton cannot be imported: %s.",
            error,
        )
        return None
    try:
        reason = None if triton_kernels.work_on(device) else "their results differ from those of torch"
    except Exception as error:  # no compiler, a device that Triton does not know, another version of its language
        reason = str(error).strip().partition("\n")[0].removesuffix(".") or type(error).__name__
    if reason is None:
        return {"Adam": triton_kernels.Adam, "SGD": triton_kernels.SGD}
    log.warning(
        "Stacks of Adam, AdamW and SGD use several passes over memory, because the Triton kernels do not work: %s.",
        reason,
    )
    return None
