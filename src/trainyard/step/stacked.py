"""Stacked parts of a step, which treat each member separately: clipping, and the gradient scaler of fp16.

Gradients are stacked, `[K, ...]`, and so are losses, `[K]`; `Step` is that of a single run. Nothing here synchronizes
with the device, except to write and to read a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainyard._torch_internals import foreach
from trainyard.errors import Unfusable
from trainyard.step.clip import ClipGradNorm, ClipGradValue, NoClip, make_clip
from trainyard.step.precision import Autocast


class StackedClipGradNorm(NoClip):
    """`ClipGradNorm` for each member separately.

    Args:
        max_norms: one for each member.

    Raises:
        ConfigError: one of them is not above 0.
    """

    def __init__(self, max_norms: Sequence[float]) -> None:
        self.max_norms = torch.tensor([ClipGradNorm(max_norm).max_norm for max_norm in max_norms], dtype=torch.float64)

    @torch.no_grad()
    def __call__(self, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        """Scale the gradients in place; return the norms before clipping, `[K]`."""
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not grads:
            return {"grad_norm": torch.zeros(len(self.max_norms))}
        norm = _norm(grads)
        # Moved and cast once; later nothing is done. The coefficients are those of torch.nn.utils.clip_grad_norm_.
        self.max_norms = self.max_norms.to(norm)
        coefficient = (self.max_norms / (norm + 1e-6)).clamp(max=1.0)
        _scale(grads, coefficient)
        return {"grad_norm": norm}

    def keep(self, index: Tensor) -> None:
        """Keep only the members at `index`, int64."""
        self.max_norms = self.max_norms.index_select(0, index.to(self.max_norms.device))

    def put(self, k: int, other: NoClip) -> None:
        """Give a lane to a member that clips like `other`, the clipping of a stack with one member."""
        self.max_norms[k] = vars(other)["max_norms"][0]

    def copy_row(self, k: int, source: int) -> None:
        """Copy a member's limit into lane `k`."""
        self.max_norms[k] = self.max_norms[source]


class StackedClipGradValue(NoClip):
    """`ClipGradValue` for each member separately.

    Args:
        limits: the limit of each member.

    Raises:
        ConfigError: one of them is not above 0.
    """

    def __init__(self, limits: Sequence[float]) -> None:
        self.limits = torch.tensor([ClipGradValue(limit).limit for limit in limits], dtype=torch.float64)

    @torch.no_grad()
    def __call__(self, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        """Limit the gradients in place; return the norms before clipping, `[K]`."""
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not grads:
            return {"grad_norm": torch.zeros(len(self.limits))}
        norm = _norm(grads)
        self.limits = self.limits.to(norm)  # moved and cast once
        least = -self.limits
        for grad in grads:
            shape = (-1, *[1] * (grad.ndim - 1))
            grad.clamp_(least.to(grad.dtype).view(shape), self.limits.to(grad.dtype).view(shape))
        return {"grad_norm": norm}

    def keep(self, index: Tensor) -> None:
        """Keep only the members at `index`, int64."""
        self.limits = self.limits.index_select(0, index.to(self.limits.device))

    def put(self, k: int, other: NoClip) -> None:
        """Give a lane to a member that clips like `other`, the clipping of a stack with one member."""
        self.limits[k] = vars(other)["limits"][0]

    def copy_row(self, k: int, source: int) -> None:
        """Copy a member's limit into lane `k`."""
        self.limits[k] = self.limits[source]


def stack_clips(norms: Sequence[float | None], values: Sequence[float | None]) -> NoClip:
    """Return the clipping of K members.

    Args:
        norms, values: each member's `clip_grad_norm` and `clip_grad_value`.

    Raises:
        Unfusable: they do not clip in the same way.
        ConfigError: a limit is invalid.
    """
    kinds = {type(make_clip(norm, value)) for norm, value in zip(norms, values, strict=True)}
    if kinds == {NoClip}:
        return NoClip()
    if NoClip in kinds:
        raise Unfusable("some members clip their gradients and some do not")
    if len(kinds) > 1:
        raise Unfusable("some members clip their gradients by norm and some by value")
    given = [norm for norm in norms if norm is not None]
    return StackedClipGradNorm(given) if given else StackedClipGradValue([v for v in values if v is not None])


class StackedScaledAutocast(Autocast):
    """Mixed precision in float16 (`fp16`), with a `torch.amp.GradScaler` for each member.

    Each member has its own scale, and only its own gradients lower the scale and skip its step. The state of a member
    is that of the `GradScaler` of its single run, so that each can load the state of the other.

    Args:
        device: the device of the parameters.
        members: K.
    """

    dtype = torch.float16

    def __init__(self, device: torch.device, members: int) -> None:
        super().__init__(device)
        # The entries of GradScaler.state_dict, for all members, with the values of a new one.
        self._state = {
            "scale": torch.full((members,), 2.0**16, dtype=torch.float32, device=device),
            "growth_factor": torch.full((members,), 2.0, dtype=torch.float64, device=device),
            "backoff_factor": torch.full((members,), 0.5, dtype=torch.float64, device=device),
            "growth_interval": torch.full((members,), 2000, dtype=torch.int32, device=device),
            "_growth_tracker": torch.zeros(members, dtype=torch.int32, device=device),
        }
        self._overflowed: Tensor | None = None

    def backward(
        self,
        loss: Tensor,
        inputs: Sequence[Tensor] | None = None,
        size: int = 1,
        weight: float | Tensor | None = None,
    ) -> None:
        """Back-propagate the losses `[K]`, each with the scale of its member."""
        scale = self._state["scale"]
        seed = scale if size == 1 else scale / size
        seed = seed if weight is None else seed * weight
        loss.backward(seed.to(loss.dtype), inputs=inputs)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def unscale(self, optimizer: Optimizer) -> None:
        """Unscale the gradients, and record the members whose gradients are not finite; once per step.

        Raises:
            ValueError: the gradients are float16, which cannot represent the unscaled values.
        """
        if self._overflowed is not None:
            return
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if any(grad.dtype == torch.float16 for grad in grads):
            raise ValueError("Attempting to unscale FP16 gradients.")
        scale = self._state["scale"]
        # A number that is not finite shows in the greatest or the least. That check needs no copy, and on the CPU it is
        # fifteen times faster than isfinite() on all of them.
        flat = [_flat(grad) for grad in grads if grad.numel()]
        ends = [end for grad in flat for end in (grad.amax(1), grad.amin(1))]
        finite = torch.stack(ends).isfinite().all(0) if ends else torch.ones_like(scale, dtype=torch.bool)
        self._overflowed = ~finite
        _scale(grads, scale.double().reciprocal().float())

    def step(self, optimizer: Optimizer, unwrapped_step: Callable[[], None]) -> None:
        """Step the members whose gradients are finite, and adjust every member's scale."""
        self.unscale(optimizer)
        stacked: Any = optimizer
        with torch.no_grad():
            stacked.step(skip=self._overflowed)
            self._update()

    def member_state_dict(self, k: int) -> dict[str, Any]:
        """Return the state of member k's `GradScaler`."""
        return {key: values[k].item() for key, values in self._state.items()}

    def load_member_state_dict(self, k: int, state: dict[str, Any]) -> None:
        """Load the result of `member_state_dict`, or the state of a single run's scaler."""
        if state:  # empty if the run was in another precision so far
            for key, values in self._state.items():
                values[k] = state[key]

    def reset_member(self, k: int) -> None:
        """Give a lane to a new member, in place, so that a captured step uses it."""
        for key, values in StackedScaledAutocast(self._state["scale"].device, 1)._state.items():
            self._state[key][k] = values[0]

    def keep(self, index: Tensor) -> None:
        """Keep only the members at `index`, int64."""
        self._state = {key: values.index_select(0, index.to(values.device)) for key, values in self._state.items()}

    def _update(self) -> None:
        """Apply `torch.amp.GradScaler.update` to all members, in place, so that a captured step uses it."""
        overflowed, self._overflowed = self._overflowed, None
        assert overflowed is not None
        scale, tracker = self._state["scale"], self._state["_growth_tracker"]
        due = tracker + 1 == self._state["growth_interval"]
        grown = (scale * self._state["growth_factor"]).float()
        lowered = (scale * self._state["backoff_factor"]).float()
        held = torch.where(due & grown.isfinite(), grown, scale)
        scale.copy_(torch.where(overflowed, lowered, held))
        tracker.copy_(torch.where(overflowed | due, 0, tracker + 1))


def _norm(grads: Sequence[Tensor]) -> Tensor:
    """Return the total 2-norm of each member's gradients, `[K]`."""
    norms = torch.stack([torch.linalg.vector_norm(_flat(grad), dim=1) for grad in grads])
    norm: Tensor = torch.linalg.vector_norm(norms, dim=0)
    return norm


def _flat(grad: Tensor) -> Tensor:
    """Reshape `[K, ...]` to `[K, numbers]`."""
    return grad.reshape(len(grad), grad.shape[1:].numel())


def _scale(grads: list[Tensor], factors: Tensor) -> None:
    """Multiply each member's part of every gradient by its factor, in place."""
    if grads:
        foreach.mul_(grads, [factors.view(-1, *[1] * (grad.ndim - 1)) for grad in grads])
