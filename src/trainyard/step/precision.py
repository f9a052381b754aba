"""Precision of a step: full, TF32, bfloat16 and float16."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainyard._torch_autograd import backward_function
from trainyard.checks import choice

Losses = dict[str, Any]


class Precision:
    """Full precision (`fp32`): forward, backward and step are not changed.

    `step` receives the optimizer and its `UnwrappedStep`, and uses the suitable one.
    """

    def __init__(self) -> None:
        self._seeds: dict[Hashable, Tensor] = {}
        self._backward = backward_function()

    def forward(self, train_step: Callable[[Any], Losses], batch: Any) -> Losses:
        return train_step(batch)

    def backward(
        self,
        loss: Tensor,
        inputs: Sequence[Tensor] | None = None,
        size: int = 1,
        weight: float | Tensor | None = None,
    ) -> None:
        """Compute gradients of a loss.

        Args:
            loss: a scalar, or the losses of the members, `[K]`, whose sum is differentiated.
            inputs: the tensors for which gradients are computed; None: all parameters of the graph.
            size: the number of batches per optimizer step, by which the gradients are divided.
            weight: the weight of the batch in its group, `[]` or `[K]`, by which the gradients are multiplied; None: 1.
        """
        seed = self.seed(loss, size, weight)
        if inputs is None:
            self._backward(loss, seed)
        else:
            loss.backward(seed, inputs=inputs)  # type: ignore[no-untyped-call]

    def seed(self, loss: Tensor, size: int, weight: float | Tensor | None = None) -> Tensor:
        """Return the gradient of `loss * weight / size` with respect to `loss`.

        It is created once for each kind of loss, so that a step needs no kernels for a division or a tensor of ones.
        """
        kind = (size, loss.shape, loss.dtype, loss.device)
        seed = self._seeds.get(kind)
        if seed is None:
            seed = self._seeds[kind] = torch.ones_like(loss, requires_grad=False) / size
        return seed if weight is None else (seed * weight).to(seed.dtype)

    def unscale(self, optimizer: Optimizer) -> None:
        """Unscale the gradients before other code reads them."""

    def step(self, optimizer: Optimizer, unwrapped_step: Callable[[], None]) -> None:
        with torch.no_grad():
            unwrapped_step()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of `state_dict`."""


class Autocast(Precision):
    """Mixed precision in bfloat16 (`bf16`): `torch.autocast` around the forward pass."""

    dtype = torch.bfloat16

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device_type = device.type

    def forward(self, train_step: Callable[[Any], Losses], batch: Any) -> Losses:
        with torch.autocast(self.device_type, self.dtype):
            return train_step(batch)


class ScaledAutocast(Autocast):
    """Mixed precision in float16 (`fp16`), with a gradient scaler whose state is part of the checkpoint."""

    dtype = torch.float16

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.scaler = torch.amp.GradScaler(device.type)

    def backward(
        self,
        loss: Tensor,
        inputs: Sequence[Tensor] | None = None,
        size: int = 1,
        weight: float | Tensor | None = None,
    ) -> None:
        seed = self.seed(loss, size, weight)
        loss.backward(self.scaler.scale(seed), inputs=inputs)  # type: ignore[no-untyped-call]

    def unscale(self, optimizer: Optimizer) -> None:
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer, unwrapped_step: Callable[[], None]) -> None:
        self.scaler.step(optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return dict(self.scaler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:  # empty if the run was in another precision so far
            self.scaler.load_state_dict(state)


def make_precision(name: str, device: torch.device) -> Precision:
    """Return the component for `fp32`, `tf32` (full precision, TF32 matrix products on CUDA), `bf16` or `fp16`."""
    choice("precision", name, ("fp32", "tf32", "bf16", "fp16"))
    # Set for every precision: an earlier run in the process may have had another.
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    match name:
        case "bf16":
            return Autocast(device)
        case "fp16":
            return ScaledAutocast(device)
        case _:
            return Precision()
