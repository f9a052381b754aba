"""Lion optimizer: sign of an interpolated momentum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from trainyard._torch_internals import foreach as torch_foreach
from trainyard.checks import boolean, is_number, number
from trainyard.errors import ConfigError


class Lion(Optimizer):
    """Lion, with decoupled weight decay.

    Each step changes every parameter by `lr`, up or down:

        update = sign(beta1 * m + (1 - beta1) * grad)
        param  = param * (1 - lr * weight_decay) - lr * update
        m      = beta2 * m + (1 - beta2) * grad

    Every update has the size `lr`: choose an `lr` that is 3 to 10 times smaller than for AdamW, and a `weight_decay`
    that is larger by the same factor. The state is one tensor per parameter (`exp_avg`), half of Adam's state.

    Source: Chen et al., Symbolic Discovery of Optimization Algorithms, 2023 (arXiv:2302.06675), Algorithm 2.

    Args:
        params: parameters, or parameter groups.
        lr: the size of a step; a tensor of one element can be changed in place between steps.
        betas: the interpolation of the update, and the decay of the momentum, each in [0, 1).
        weight_decay: a step subtracts `lr * weight_decay * param`.
        maximize: gradient ascent.
        foreach: True: update all parameters with a few calls, with a temporary copy of the parameters; False: update
            them one by one; None: True on CUDA, as in torch's optimizers.

    Raises:
        ConfigError: a number is out of range.
        RuntimeError: in the first step, for complex parameters or sparse gradients.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
        >>> optimizer = Lion([weight], lr=0.5)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.tolist()
        [0.5, -0.5]
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        number("lr", _plain(lr), at_least=0)
        pair = isinstance(betas, (list, tuple)) and len(betas) == 2
        if not pair or not all(is_number(_plain(beta), at_least=0, below=1) for beta in betas):
            raise ConfigError("betas", betas, "two numbers of at least 0 and below 1")
        number("weight_decay", _plain(weight_decay), at_least=0)
        boolean("maximize", maximize)
        if foreach is not None:
            boolean("foreach", foreach, other="null for the faster of the two")
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
        }
        torch_foreach.resolve()
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step; `closure`, if given, is called first, and its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            for param in params:
                if param.is_complex() or param.grad.is_sparse:
                    raise RuntimeError("Lion supports neither complex parameters nor sparse gradients")
                if not self.state[param]:
                    self.state[param]["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
            grads = [param.grad for param in params]
            exp_avgs = [self.state[param]["exp_avg"] for param in params]
            foreach = all(param.is_cuda for param in params) if group["foreach"] is None else group["foreach"]
            if foreach and params:
                _update(params, grads, exp_avgs, group)
            else:
                for param, grad, exp_avg in zip(params, grads, exp_avgs, strict=True):
                    _update([param], [grad], [exp_avg], group)
        return loss


def _update(params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], group: dict[str, Any]) -> None:
    lr, (beta1, beta2) = group["lr"], group["betas"]
    if group["maximize"]:
        grads = list(torch_foreach.neg(grads))
    if group["weight_decay"] != 0:
        torch_foreach.mul_(params, 1 - lr * group["weight_decay"])
    updates = torch_foreach.lerp(exp_avgs, grads, 1 - beta1)
    torch_foreach.sign_(updates)
    if isinstance(lr, Tensor):  # read on the device: no synchronization, and a captured graph sees it change
        torch_foreach.mul_(updates, lr)
        torch_foreach.sub_(params, updates)
    else:
        torch_foreach.sub_(params, updates, alpha=lr)
    torch_foreach.lerp_(exp_avgs, grads, 1 - beta2)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value
