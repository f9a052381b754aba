"""SAM: sharpness-aware minimization around another optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim.optimizer import ParamsT

from trainyard.checks import number
from trainyard.errors import ConfigError
from trainyard.optim.build import check_numbers, needs_closure, refusal

_BASE = "a config with `_partial_: true` that builds an optimizer"


class SAM(Optimizer):
    """Sharpness-aware minimization: the base optimizer takes a step with the gradient at a nearby point of higher loss.

        e     = rho * grad / |grad|     (|grad|: the norm of all gradients)
        param = base step from `param` with the gradient at `param + e`

    A step evaluates the loss twice. This optimizer has the groups and the state of the base optimizer.

    Source: Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, 2021, arXiv:2010.01412,
    Algorithm 1.

    Args:
        params: parameters, or parameter groups.
        lr: the learning rate of the base optimizer.
        rho: the distance of the nearby point.
        base: a function from groups and `lr` to the base optimizer; None: `torch.optim.SGD`.

    Raises:
        ConfigError: a number is out of range, or `base` does not return an optimizer whose step needs no closure.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = SAM([weight], lr=0.1, rho=0.5)
        >>> def closure():
        ...     weight.grad = None
        ...     loss = weight.square().sum()
        ...     loss.backward()
        ...     return loss
        >>> float(optimizer.step(closure)), round(float(weight), 3)  # by the gradient at 1.5
        (1.0, 0.7)
    """

    def __init__(
        self, params: ParamsT, lr: float = 0.1, rho: float = 0.05, base: Callable[..., Optimizer] | None = None
    ) -> None:
        number("lr", lr, at_least=0)
        number("rho", rho, at_least=0)
        if base is not None and not callable(base):
            raise ConfigError("base", base, f"{_BASE}, or null for SGD")
        super().__init__(params, {"lr": lr, "rho": rho})
        base = SGD if base is None else base
        try:
            made = base(self.param_groups, lr=lr)
        except (ValueError, TypeError) as error:
            found = refusal(base, error)
            if found is None:
                raise
            raise found.under("base") from error
        if not isinstance(made, Optimizer):
            raise ConfigError("base", base, _BASE)
        if needs_closure(made):
            accepted = "an optimizer whose step needs no closure, because SAM computes the gradients"
            raise ConfigError("base", type(made).__name__, accepted)
        try:
            check_numbers(made)
        except ConfigError as error:
            raise error if error.key in ("lr", "rho") else error.under("base") from None
        self.base = made
        self.defaults |= {key: value for key, value in made.defaults.items() if key != "fused"}
        self._share()

    def _share(self) -> None:
        self.base.param_groups = self.param_groups
        self.base.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Make one step.

        Args:
            closure: computes the gradients and returns the loss; called twice.

        Returns:
            The loss at the parameters before the step.
        """
        with torch.enable_grad():
            loss = closure()
        groups = [(group["rho"], [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        gradients = [parameter.grad for _, group in groups for parameter in group]
        if not gradients:
            return loss
        norm = torch.nn.utils.get_total_norm(gradients) + 1e-12
        before: list[tuple[Tensor, Tensor]] = []
        for rho, group in groups:
            for parameter in group:
                before.append((parameter, parameter.clone()))
                parameter.add_(parameter.grad * (rho / norm))
        with torch.enable_grad():
            closure()
        for parameter, kept in before:
            parameter.copy_(kept)
        self.base.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state from `state_dict`, also in the base optimizer."""
        super().load_state_dict(state_dict)
        self._share()
