"""Gradient clipping, by norm and by value."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from trainyard.checks import number
from trainyard.distributed.shares import whole
from trainyard.errors import ConfigError


class NoClip:
    """No clipping: gradients stay unchanged."""

    def __call__(self, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        return {}


class ClipGradNorm(NoClip):
    """Scales the gradients down to a total 2-norm of at most `max_norm`; the norm before clipping is logged."""

    def __init__(self, max_norm: float) -> None:
        self.max_norm = _limit("clip_grad_norm", max_norm)

    def __call__(self, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"grad_norm": whole(nn.utils.clip_grad_norm_(parameters, self.max_norm))}


class ClipGradValue(NoClip):
    """Limits the absolute value of every gradient element to `limit`; the total 2-norm before clipping is logged."""

    def __init__(self, limit: float) -> None:
        self.limit = _limit("clip_grad_value", limit)

    def __call__(self, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = whole(nn.utils.get_total_norm(grads))
        if grads:  # torch does not accept an empty list
            nn.utils.clip_grad_value_(parameters, self.limit)
        return {"grad_norm": norm}


def make_clip(norm: float | None, value: float | None) -> NoClip:
    """Return clipping by the total norm, by value, or none.

    Raises:
        ConfigError: a limit is not above 0, or both are set.
    """
    if norm is not None and value is not None:
        raise ConfigError("clip_grad_value", value, "null, because clip_grad_norm is set")
    if norm is not None:
        return ClipGradNorm(norm)
    return NoClip() if value is None else ClipGradValue(value)


def _limit(key: str, value: float) -> float:
    """Return a checked clipping limit; an infinite limit does not clip, but the norm is logged."""
    return number(key, value, above=0, finite=False, other="null for no clipping")
