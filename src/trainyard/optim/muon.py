"""Muon for matrices, AdamW for the other parameters, as one optimizer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import AdamW, Optimizer
from torch.optim.optimizer import ParamsT

from trainyard.checks import is_number, number
from trainyard.errors import ConfigError

log = logging.getLogger(__name__)

_ARGUMENTS = {True: "momentum", False: "betas"}
"""The argument that only matrices have, and the argument that only the other parameters have."""


class Muon(Optimizer):
    """`torch.optim.Muon` for parameters of two dimensions, and `torch.optim.AdamW` for all others.

    Each parameter group is divided into two groups. Both share `lr` and `weight_decay`: the update of Muon is scaled to
    the size of the update of AdamW (Liu et al., Muon is Scalable for LLM Training, 2025, arXiv:2502.16982, section
    2.2).

    Source: Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024.

    Args:
        params: parameters, or parameter groups.
        lr: the learning rate.
        weight_decay: the decoupled weight decay of both.
        momentum: the momentum of Muon.
        betas: the betas of AdamW.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        number("lr", lr, at_least=0)
        number("weight_decay", weight_decay, at_least=0)
        pair = isinstance(betas, list | tuple) and len(betas) == 2
        if not pair or not all(is_number(beta, at_least=0, below=1) for beta in betas):
            raise ConfigError("betas", betas, "two numbers of at least 0 and below 1")
        self._options: dict[bool, dict[str, Any]] = {
            True: {"momentum": number("momentum", momentum, at_least=0, below=1), "adjust_lr_fn": "match_rms_adamw"},
            False: {"betas": tuple(betas)},
        }
        self._parts: dict[bool, Optimizer] = {}
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as one group of matrices and one group of the other parameters."""
        given = param_group["params"]
        listed = [given] if isinstance(given, torch.Tensor) else list(given)
        for matrices in (True, False):
            own = [each for each in listed if _is_matrix(each) is matrices]
            if own:
                numbers = {key: value for key, value in param_group.items() if key != _ARGUMENTS[not matrices]}
                super().add_param_group({**numbers, "params": own, "matrices": matrices})
                group = self.param_groups[-1]
                if matrices in self._parts:
                    self._parts[matrices].add_param_group(group)
                else:
                    make: Callable[..., Optimizer] = torch.optim.Muon if matrices else AdamW
                    self._parts[matrices] = make([group], **self._options[matrices])
            elif listed and (argument := _ARGUMENTS[matrices]) in param_group:
                log.warning(
                    "%s=%s has no effect in the parameter group%s of Muon, because %s.",
                    argument,
                    param_group[argument],
                    f" {param_group['name']!r}" if "name" in param_group else "",
                    "none of its parameters has two dimensions"
                    if matrices
                    else "all its parameters have two dimensions",
                )
        self._share()

    def _share(self) -> None:
        for matrices, part in self._parts.items():
            part.param_groups = [group for group in self.param_groups if group["matrices"] is matrices]
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step; `closure`, if given, is called first, and its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts.values():
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state from `state_dict` in both optimizers."""
        super().load_state_dict(state_dict)
        self._share()


def _is_matrix(given: Any) -> bool:
    parameter: torch.Tensor = given[1] if isinstance(given, tuple) else given
    return parameter.ndim == 2
