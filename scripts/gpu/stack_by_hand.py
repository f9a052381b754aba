"""Hand-written training of many small models at once, with `torch.func` and with JAX, for the comparison with stacks.

The models have the weights, learning rates and orders of the data of `digits`. Each function yields the losses of each
step, one for each model, without end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from by_hand import recorded
from digits import BATCH, prepared, rate
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.nn import functional as F

from trainyard.data.order import epoch_order

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
EPOCHS = 4
"""Number of orders that are computed in advance and repeated; the losses are compared before the first repetition."""


def start(members: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return the members' weights and biases, stacked, and the inputs `[N, 64]` and labels of the data."""
    runner = prepared(members, "cpu")
    x, y = runner.loader("train").loader.tensors  # type: ignore[attr-defined]
    return [parameter.detach().clone() for parameter in runner.model.parameters()], x.flatten(1), y


def orders(members: int, samples: int) -> list[npt.NDArray[np.int64]]:
    """Return the rows of the first epochs, `[K, N]` each, with a separate order for each member."""
    whole = samples // BATCH * BATCH
    return [
        np.stack([epoch_order(samples, member, epoch)[:whole] for member in range(members)]) for epoch in range(EPOCHS)
    ]


def with_torch(members: int, device: str, *, captured: bool) -> Iterator[Tensor]:
    """Train with `vmap` of `grad` and an Adam with a rate for each member; eager, or as one CUDA graph."""
    begin, x, y = start(members)
    weights = [tensor.to(device) for tensor in begin]
    x, y = x.to(device), y.to(device)
    first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    clock = torch.zeros((), device=device)
    rates = torch.tensor([rate(member) for member in range(members)], device=device)
    gradients: Callable[..., Any] = vmap(grad_and_value(loss), in_dims=(0, 0, 0))
    rows = torch.empty(members, BATCH, dtype=torch.int64, device=device)

    def step() -> Tensor:
        grads, losses = gradients(weights, x[rows], y[rows])
        clock.add_(1)
        scale = rates / (1 - BETA1**clock)
        root = (1 - BETA2**clock).sqrt()
        for weight, grad, mean, square in zip(weights, grads, first, second, strict=True):
            mean.lerp_(grad, 1 - BETA1)
            square.mul_(BETA2).addcmul_(grad, grad, value=1 - BETA2)
            own = scale.view(-1, *[1] * (weight.dim() - 1))
            weight.sub_(own * mean / (square.sqrt() / root + EPS))
        return losses  # type: ignore[no-any-return]

    def restore() -> None:
        for weight, former in zip(weights, begin, strict=True):
            weight.copy_(former)
        for tensor in (*first, *second, clock):
            tensor.zero_()

    epochs = [torch.from_numpy(order).to(device) for order in orders(members, len(x))]
    rows.copy_(epochs[0][:, :BATCH])
    work = recorded(step, restore) if captured else step
    for order in cycle(epochs):
        for chosen in order.split(BATCH, 1):
            rows.copy_(chosen)
            yield work()


def loss(weights: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Return the loss of one model."""
    for weight, bias in zip(weights[::2], weights[1::2], strict=True):
        if weight is not weights[0]:
            x = F.relu(x)
        x = F.linear(x, weight, bias)
    return F.cross_entropy(x, y)


def with_jax(members: int) -> Iterator[Any]:
    """Train with `jit` of `vmap` of `grad`, on JAX's device, in full precision."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_default_matmul_precision", "highest")
    begin, inputs, labels = start(members)
    x, y = jnp.asarray(inputs.numpy()), jnp.asarray(labels.numpy())
    weights = [jnp.asarray(weight.numpy()) for weight in begin]
    state = (weights, [jnp.zeros_like(each) for each in weights], [jnp.zeros_like(each) for each in weights])
    rates = jnp.asarray([rate(member) for member in range(members)])

    def loss(weights: Any, x: Any, y: Any) -> Any:
        for number in range(0, len(weights), 2):
            x = (jax.nn.relu(x) if number else x) @ weights[number].T + weights[number + 1]
        return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], 1).mean()

    def one(state: Any, order: Any, rate: Any, index: Any, clock: Any) -> Any:
        weights, first, second = state
        rows = jax.lax.dynamic_slice(order, (index,), (BATCH,))
        value, grads = jax.value_and_grad(loss)(weights, x[rows], y[rows])
        first = [BETA1 * mean + (1 - BETA1) * grad for mean, grad in zip(first, grads, strict=True)]
        second = [BETA2 * square + (1 - BETA2) * grad**2 for square, grad in zip(second, grads, strict=True)]
        scale, root = rate / (1 - BETA1**clock), jnp.sqrt(1 - BETA2**clock)
        weights = [
            weight - scale * mean / (jnp.sqrt(square) / root + EPS)
            for weight, mean, square in zip(weights, first, second, strict=True)
        ]
        return (weights, first, second), value

    step = jax.jit(jax.vmap(one, in_axes=(0, 0, 0, None, None)), donate_argnums=0)
    epochs = [jnp.asarray(order) for order in orders(members, len(inputs))]
    clock = 0.0
    for order in cycle(epochs):
        for index in range(0, order.shape[1], BATCH):
            clock += 1
            state, losses = step(state, order, rates, index, clock)
            yield losses
