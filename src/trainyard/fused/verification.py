"""Verification of a stack: compares the losses, gradients and predictions of each member with those of its single
run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainyard import rng_state
from trainyard.data.lengths import first_batch
from trainyard.data.transfer import apply
from trainyard.errors import Unfusable
from trainyard.fused.random_functions import plain_attention
from trainyard.models import call
from trainyard.models.base import total_loss
from trainyard.rng import derive
from trainyard.runner.hook import Hook

if TYPE_CHECKING:
    from trainyard.fused.runner import FusedRunner

ROWS = 16
"""Samples of the batch on which members are compared."""
TOLERANCE = 5e-3
"""Relative difference, by the norm of a tensor, that rounding may explain."""
SHARE = 0.01
"""Maximum fraction of the training time for comparisons after the first one."""

REMEDY = (
    "probably, a value outside of parameters and buffers differs between the models or changes in each step, such as a "
    "mask in a dict or a counter; use register_buffer for such values"
)


@dataclass(frozen=True)
class _Outcome:
    """Results of a model for a batch: lists of tensors, by kind."""

    losses: list[Tensor]
    gradients: list[Tensor]
    predictions: list[Tensor]


class StackVerification(Hook):
    """Hook of a stack that compares its members with their single runs, on a few samples of a real batch.

    A stack runs the code of its first member for all. Values of other members outside parameters, buffers and plain
    attributes would silently be replaced by those of the first.

    A model draws the same random numbers alone and in the stack, where each lane has its own generator. The run is not
    changed.
    """

    priority = "LOWEST"
    stackable = True
    own_places = own_epochs = True

    def begin(self, runner: FusedRunner) -> None:
        """Compare every member of a stack that is ready to train.

        Raises:
            Unfusable: a member differs from its single run, or its code draws random numbers on the CPU.
        """
        own_batches = runner.stack.own_batches
        with rng_state.seeded(runner.seed):  # reading may draw random numbers
            batch = first_batch(runner.loader("train"), "train", runner.epoch)
        batch = _cut(batch, axis=1 if own_batches else 0)
        self._own_batches = own_batches
        self._batch = batch
        self._turn = 0
        self._next: list[int] = []  # lanes with a member that was not compared yet
        self._since = perf_counter()
        self._compare(runner, range(len(runner.members)))
        self._cost = (perf_counter() - self._since) / len(runner.members)

    def after_train_epoch(self, runner: FusedRunner) -> None:
        """Compare one member, in rotation, if this takes at most 1 % of the time since the last comparison."""
        now = perf_counter()
        if self._cost <= SHARE * (now - self._since):
            self._turn += 1
            lane = self._next.pop(0) if self._next else self._turn % len(runner.members)
            if not runner.members[lane].vacant:
                self._compare(runner, [lane])
            self._since = perf_counter()
            self._cost = self._since - now

    def after_val(self, runner: FusedRunner) -> None:
        if runner.training:
            self.after_train_epoch(runner)

    def refill(self, runner: FusedRunner, members: Mapping[int, Hook | None]) -> None:
        self._next += [lane for lane in members if not runner.members[lane].vacant]

    def keep(self, members: Sequence[int]) -> None:
        self._next = [new for new, old in enumerate(members) if old in self._next]
        if self._own_batches:
            self._batch = apply(lambda leaf: leaf[list(members)], self._batch)

    def _compare(self, runner: FusedRunner, members: Sequence[int]) -> None:
        stack = runner.stack
        seeds = [derive(member.seed, "verification", k) for k, member in enumerate(runner.members)]
        with _training(stack.code, *(stack.models[k] for k in members)), plain_attention(runner.device):
            drawn = rng_state.drawn()
            alone = []
            for k in members:
                with rng_state.seeded(seeds[k]):
                    drawn = rng_state.drawn()
                    alone.append(self._alone(stack.models[k], k))
                    _check_host_generators(drawn)
            together = self._together(runner, seeds)
        _check(together, alone, members, [runner.members[k].seed for k in members])

    def _alone(self, model: nn.Module, k: int) -> _Outcome:
        train = getattr(model, "train_step", None) or partial(call, model, mode="loss")
        predict = getattr(model, "val_step", None) or partial(call, model, mode="predict")
        return _outcome(model, train, self._batch_of(k), predict, self._batch_of(0), stacked=False)

    def _together(self, runner: FusedRunner, seeds: Sequence[int]) -> _Outcome:
        """Return the results of the stack; every random number comes from the generators of the lanes.

        Raises:
            Unfusable: a number comes from another generator.
        """
        stack = runner.stack
        for everywhere in {stack.draws_everywhere, True}:
            stack.draws_everywhere = everywhere
            with rng_state.seeded(runner.seed), runner.lanes.seeded(seeds):
                before = _torch_generators()
                found = _outcome(stack, stack.train_step, self._batch, stack.val_step, self._batch_of(0), stacked=True)
                if _torch_generators() == before or not stack.draws:
                    return found
        raise Unfusable(
            "the model draws random numbers inside a custom operation, which a stack runs once for all "
            "members. Draw the numbers with torch functions"
        )

    def _batch_of(self, k: int) -> Any:
        return apply(lambda leaf: leaf[k], self._batch) if self._own_batches else self._batch


def _outcome(
    model: nn.Module,
    train: Callable[[Any], Any],
    batch: Any,
    predict: Callable[[Any], Any],
    shared: Any,
    *,
    stacked: bool,
) -> _Outcome:
    """Return the results of `train` for a batch, and of `predict` for a batch that all members share; buffers are not
    changed.

    Raises:
        Unfusable: a gradient is sparse.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    losses = train(batch)
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    parameters = list(named.values())
    gradients = torch.autograd.grad(total_loss(losses, stacked=stacked).sum(), parameters, allow_unused=True)
    for name, gradient in zip(named, gradients, strict=True):
        if gradient is not None and gradient.layout is not torch.strided:
            raise Unfusable(f"the gradient of {name} is sparse, which is not supported in a stack: use sparse=False")
    with torch.no_grad():
        predictions = [leaf for leaf in _tensors(predict(shared)) if leaf.is_floating_point()]
        for buffer, before in buffers:
            buffer.copy_(before)
    return _Outcome(
        [losses[key].detach() for key in sorted(losses) if isinstance(losses[key], Tensor)],
        [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)],
        predictions,
    )


def _check(together: _Outcome, alone: Sequence[_Outcome], members: Sequence[int], seeds: Sequence[int]) -> None:
    """Check that the results of a stack equal those of the single runs of some members.

    Args:
        together: the results of the stack.
        alone: the results of the single run of each member.
        members: their rows in the stack.
        seeds: their seeds.

    Raises:
        Unfusable: the results of a member differ.
    """
    for what, floor, found, expected in (
        ("loss", 1e-3, together.losses, [each.losses for each in alone]),
        ("gradient", None, together.gradients, [each.gradients for each in alone]),
        ("prediction", 1e-3, together.predictions, [each.predictions for each in alone]),
    ):
        columns = [torch.stack(column).double() for column in zip(*expected, strict=True)]
        norms = [_norms(column) for column in columns]
        # A gradient that is next to nothing beside the others is rounding alone.
        least = torch.stack(norms).norm(dim=0) * 1e-2 if floor is None and norms else torch.tensor(floor or 0.0)
        for stack, column, norm in zip(found, columns, norms, strict=True):
            rows = stack.detach()[list(members)].double()
            differences = _norms(rows - column) / norm.clamp(min=1e-12).maximum(least.to(norm))
            both = _is_finite(rows), _is_finite(column)
            differences = torch.where(both[0] & both[1], differences, torch.where(both[0] == both[1], 0.0, torch.inf))
            worst = int(differences.argmax())
            if differences[worst] > TOLERANCE:
                most = float(differences[worst])
                how = f"differs by {most:.0%} from"
                if math.isinf(most):
                    how = f"is {'finite' if both[0][worst] else 'not finite'}, unlike in"
                raise Unfusable(
                    f"in a stack, the {what} of the member with seed {seeds[worst]} {how} its single run: {REMEDY}"
                )


def _norms(column: Tensor) -> Tensor:
    return column.flatten(1).norm(dim=1) if column.dim() > 1 else column.abs()


def _is_finite(column: Tensor) -> Tensor:
    return torch.isfinite(column.reshape(len(column), -1)).all(1)


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    apply(lambda leaf: found.append(leaf) if isinstance(leaf, Tensor) else None, value)
    return found


def _cut(batch: Any, axis: int) -> Any:
    """Return the first samples of a batch, or the complete batch if its tensors differ in the number of samples."""
    sizes = {leaf.shape[axis] if leaf.dim() > axis else None for leaf in _tensors(batch)}
    if len(sizes) != 1 or None in sizes:
        return batch
    return apply(lambda leaf: leaf.narrow(axis, 0, min(ROWS, leaf.shape[axis])), batch)


@contextmanager
def _training(*models: nn.Module) -> Iterator[None]:
    """Put all modules into training mode inside the block; restore their modes afterwards."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = True
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _torch_generators() -> list[bytes]:
    """Return the states of torch's generators, on the CPU and on CUDA devices."""
    state = rng_state.state()
    return [each.numpy().tobytes() for each in (state["torch"], *state.get("cuda", ()))]


def _check_host_generators(before: tuple[Any, ...]) -> None:
    """Check that the model drew no numbers from the generators of Python and NumPy, given their previous positions.

    Raises:
        Unfusable: the model drew numbers from them.
    """
    found = rng_state.drawn()
    if found != before:
        name = "Python" if found[0] != before[0] else "NumPy"
        raise Unfusable(
            f"the model draws from {name}'s random generator, which a stack would use once for all members. "
            "Use the random functions of torch"
        )
