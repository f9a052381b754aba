"""Stacking of K optimizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop

from trainyard.errors import Unfusable
from trainyard.fused.optim.adagrad import StackedAdagrad
from trainyard.fused.optim.adam import StackedAdam
from trainyard.fused.optim.adamax import StackedAdamax
from trainyard.fused.optim.lion import StackedLion
from trainyard.fused.optim.nadam import StackedNAdam
from trainyard.fused.optim.optimizer import StackedOptimizer
from trainyard.fused.optim.radam import StackedRAdam
from trainyard.fused.optim.rmsprop import StackedRMSprop
from trainyard.fused.optim.sgd import StackedSGD
from trainyard.optim import Lion, fused_steps, without_dynamo

FAMILIES: Mapping[type[Optimizer], type[StackedOptimizer]] = {
    SGD: StackedSGD,
    fused_steps.SGD: StackedSGD,
    Adam: StackedAdam,
    AdamW: StackedAdam,
    RMSprop: StackedRMSprop,
    Adagrad: StackedAdagrad,
    fused_steps.Adagrad: StackedAdagrad,
    NAdam: StackedNAdam,
    RAdam: StackedRAdam,
    Adamax: StackedAdamax,
    Lion: StackedLion,
}
"""Classes with a stacked form. A subclass has none, because its changes are unknown here."""


def stack_optimizers(optimizers: Sequence[Optimizer], stacked: Mapping[Tensor, nn.Parameter]) -> StackedOptimizer:
    """Return one optimizer with the effect of `optimizers`, each on its own slice of the stacked parameters.

    Args:
        optimizers: K optimizers of one class, with equal flags and parameter groups; each may already have made any
            number of steps.
        stacked: for each parameter of `optimizers[0]`, the stacked parameter `[K, *shape]`, contiguous.

    Raises:
        Unfusable: the class is not supported in a stack, the members differ in more than numbers, or an option is not
            supported (a learning rate that is a tensor, `differentiable`, a dtype other than float32 and float64).
    """
    first = optimizers[0]
    kinds = sorted({type(optimizer).__name__ for optimizer in optimizers})
    if any(type(optimizer) is not type(first) for optimizer in optimizers):
        raise Unfusable(f"the optimizers are of several classes: {', '.join(kinds)}")
    family = FAMILIES.get(type(first))
    if family is None:
        raise Unfusable(f"{kinds[0]} is not supported in a stack")
    if any(len(optimizer.param_groups) != len(first.param_groups) for optimizer in optimizers):
        raise Unfusable("the optimizers differ in their parameter groups")
    columns = zip(*[optimizer.param_groups for optimizer in optimizers], strict=True)
    groups = [_stacked_group(members, stacked) for members in columns]
    with without_dynamo.constructing():
        result = family(groups, len(optimizers), dict(first.defaults))
    for member, optimizer in enumerate(optimizers):
        params = [param for group in optimizer.param_groups for param in group["params"]]
        states = {index: optimizer.state[param] for index, param in enumerate(params) if optimizer.state.get(param)}
        if states:
            result.adopt(member, states)
    return result


def _stacked_group(members: Sequence[dict[str, Any]], stacked: Mapping[Tensor, nn.Parameter]) -> dict[str, Any]:
    first = members[0]
    if any(group.keys() != first.keys() for group in members):
        raise Unfusable("the optimizers differ in the contents of their parameter groups")
    if any([p.shape for p in group["params"]] != [p.shape for p in first["params"]] for group in members):
        raise Unfusable("the optimizers differ in their parameters")
    if first.get("differentiable"):
        raise Unfusable("differentiable=True is not supported in a stack")
    group = {key: _stacked_value(key, [group[key] for group in members]) for key in first if key != "params"}
    group["params"] = [stacked[param] for param in first["params"]]
    for param in group["params"]:
        if param.dtype not in (torch.float32, torch.float64):
            raise Unfusable(f"parameters in {str(param.dtype).removeprefix('torch.')} are not supported in a stack")
    return group


def _stacked_value(key: str, values: Sequence[Any]) -> Any:
    if any(isinstance(value, Tensor) for value in values):
        raise Unfusable(f"{key} is a tensor, which is not supported in a stack: use a number")
    if all(_is_number(value) for value in values):
        return torch.tensor(values, dtype=torch.float64)
    if key == "betas":
        if any(isinstance(beta, Tensor) for pair in values for beta in pair):
            raise Unfusable("betas are tensors, which are not supported in a stack: use numbers")
        return tuple(torch.tensor(betas, dtype=torch.float64) for betas in zip(*values, strict=True))
    if any(value != values[0] for value in values):
        given = " and ".join(sorted({str(value) for value in values}))
        raise Unfusable(f"{key} differs between the members: {given}")
    return values[0]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
