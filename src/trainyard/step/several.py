"""Step of a model with several optimizers, which take turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from trainyard.checks import choice
from trainyard.distributed import Strategy
from trainyard.errors import ConfigError, TrainyardError
from trainyard.models import call
from trainyard.optim import OptimizerDict
from trainyard.optim.build import needs_closure
from trainyard.step.clip import NoClip
from trainyard.step.closure import ClosureStep, check_closure
from trainyard.step.group import BY
from trainyard.step.precision import Losses, Precision
from trainyard.step.step import Step, make_step

OptimizerTurn = tuple[str, Losses]


class SeveralStep(Step):
    """Step of several optimizers, in turn on one batch.

    The model's `train_steps(batch)` is a generator that yields `(name, losses)`: these losses are back-propagated only
    to the parameters of this optimizer, which are clipped and stepped before the generator continues. Each optimizer
    has its own gradient scaler under `fp16`.

    Args:
        train_steps: the method of the model.
        steps: the step of each optimizer, by name.
        optimizer: the object for all optimizers.
    """

    def __init__(
        self, train_steps: Callable[[Any], Iterator[OptimizerTurn]], steps: Mapping[str, Step], optimizer: OptimizerDict
    ) -> None:
        self.train_steps = train_steps
        self.steps = dict(steps)
        self.optimizer = optimizer
        self.accumulate = next(iter(self.steps.values())).accumulate
        self._turns: set[str] | None = None  # of the group so far; None: the next batch starts a group

    @property
    def precision(self) -> Precision:  # type: ignore[override]
        """Precision of the forward passes."""
        return next(iter(self.steps.values())).precision

    def weight(self, batch: Any, outputs: Mapping[str, Tensor]) -> int | Tensor:
        return next(iter(self.steps.values())).weight(batch, outputs)

    @property
    def parameters(self) -> list[Tensor]:
        """The current parameters of the optimizers."""
        return [parameter for step in self.steps.values() for parameter in step.parameters]

    @property
    def clip(self) -> NoClip:
        """Clipping that is applied to each optimizer's gradients separately."""
        return next(iter(self.steps.values())).clip

    @clip.setter
    def clip(self, clip: NoClip) -> None:
        for step in self.steps.values():
            step.clip = clip

    def __call__(self, batch: Any, position: int, total: int) -> dict[str, Tensor]:
        """Step the optimizers in turn; see `Step`.

        Returns:
            `loss` and the other numbers of each turn as `<optimizer>/<key>` (of the last turn if there are several),
            and `loss`, the sum of all.

        Raises:
            TrainyardError: the model yields something else; or, while gradients are accumulated, a second turn of an
                optimizer on a batch, or a turn on only some batches of a group.
        """
        outputs: dict[str, Tensor] = {}
        losses: list[Tensor] = []
        turns = iter(self.train_steps(batch))
        while (turn := self._next(turns)) is not None:
            name, terms = turn
            if self.accumulate > 1 and f"{name}/loss" in outputs:
                raise TrainyardError(
                    f"accumulate={self.accumulate} is invalid, because {name} has two turns on one batch. Use "
                    "accumulate=1."
                )
            step = self.steps[name]
            of_turn = step.learn(terms, position, total, step.parameters, step.samples(batch))
            losses.append(of_turn["loss"])
            outputs |= {f"{name}/{key}": value for key, value in of_turn.items()}
        if not losses:
            raise TrainyardError(
                "train_steps(batch) must yield the losses of at least one optimizer; it yielded nothing."
            )
        if self.accumulate > 1:
            self._check_turns({name for name in self.steps if f"{name}/loss" in outputs}, position)
        outputs["loss"] = sum(losses[1:], losses[0])
        return outputs

    def _check_turns(self, names: set[str], position: int) -> None:
        """Check that these optimizers, which had a turn on a batch, are those of the batches before it in the group."""
        if position % self.accumulate and self._turns is not None and names != self._turns:
            name = next(name for name in self.steps if name in names ^ self._turns)
            raise TrainyardError(
                f"accumulate={self.accumulate} is invalid, because {name} has a turn on only some of the batches of "
                "one optimizer step. Use accumulate=1."
            )
        self._turns = names

    def uncaptured(self, batch: Any, position: int, total: int) -> dict[str, Tensor]:
        return self(batch, position, total)  # it is never captured

    def _next(self, turns: Iterator[OptimizerTurn]) -> OptimizerTurn | None:
        # The generator's code up to its next yield is a forward pass.
        turn: Any = self.precision.forward(lambda _: next(turns, None), None)  # type: ignore[arg-type]
        if turn is not None and not (isinstance(turn, tuple) and len(turn) == 2 and turn[0] in self.steps):
            raise TrainyardError(
                f"train_steps(batch) must yield pairs of an optimizer's name ({', '.join(self.steps)}) and a dict of "
                f"losses; it yielded {turn!r}."
            )
        return turn

    def state_dict(self) -> dict[str, Any]:
        return {"steps": {name: step.state_dict() for name, step in self.steps.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, step in self.steps.items():
            step.load_state_dict(state["steps"][name])
        self._turns = {name for name in self.steps if state["steps"][name].get("gradients") is not None} or None


def step_of(
    model: Any,
    optimizer: Optimizer,
    *,
    precision: Callable[[], Precision],
    clip: NoClip,
    accumulate: int,
    by: str = "items",
    strategy: Strategy,
) -> Step:
    """Return the step of a model with one optimizer or several.

    Args:
        model: a model with `train_steps` for several optimizers; otherwise, its `train_step` or its forward pass
            returns the losses.
        precision: creates the precision for each optimizer.
        accumulate, by: see `AccumulatedStep`.
        strategy: the strategy for the devices.

    Raises:
        ConfigError: `accumulate` is below 1, several optimizers are used on several devices, or an optimizer needs a
            closure, which the other settings do not support.
    """
    if not isinstance(optimizer, OptimizerDict):
        train_step = getattr(model, "train_step", partial(call, model, mode="loss"))
        train_step = strategy.train_step(model, train_step)
        held = precision()
        if needs_closure(optimizer):
            check_closure(optimizer, held, accumulate)
            return ClosureStep(
                train_step, optimizer, held, clip, by=choice("accumulate_by", by, BY), samples=strategy.samples
            )
        return make_step(
            train_step,
            optimizer,
            precision=held,
            clip=clip,
            accumulate=accumulate,
            by=by,
            samples=strategy.samples,
            no_sync=strategy.no_sync,
        )
    if strategy.world_size > 1:
        hint = "A model with several optimizers trains on one device."
        raise ConfigError("strategy", type(strategy).__name__, "single", hint=hint)
    for name, each in optimizer.optimizers.items():
        if needs_closure(each):
            accepted = "an optimizer whose step needs no closure, because several optimizers take turns"
            raise ConfigError(f"optim.{name}", type(each).__name__, accepted)
    steps = {
        name: make_step(model.train_steps, each, precision=precision(), clip=clip, accumulate=accumulate, by=by)
        for name, each in optimizer.optimizers.items()
    }
    return SeveralStep(model.train_steps, steps, optimizer)
