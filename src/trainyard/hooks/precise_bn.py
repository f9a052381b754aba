"""Precise BatchNorm hook: statistics recomputed before each validation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from trainyard.batch import samples
from trainyard.checks import integer
from trainyard.data.lengths import exact_length
from trainyard.hooks._batch import of_first_member
from trainyard.hooks._second_reading import check_second_reading
from trainyard.models import call
from trainyard.runner import Runner
from trainyard.runner.hook import Hook
from trainyard.runner.switching import evaluated_in_training

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


class PreciseBN(Hook):
    """Recomputes BatchNorm's running statistics for the current weights before each validation.

    Running averages include the statistics of earlier weights. Wu and Johnson, "Rethinking 'Batch' in BatchNorm"
    (2021), section 3, use statistics of the population instead. These statistics are aggregated from batches of the
    training data: mean = E[mean_b] and variance = E[var_b + mean_b^2] - mean^2. As in the authors' code, the model is
    in training mode. The evaluated model (with an EMA, the averaged model) and checkpoints contain these statistics.
    The statistics do not affect the training, which normalizes by the batch.

    Args:
        batches: the number of batches of the training data, at most one epoch.

    Raises:
        ConfigError: (in the sanity check) the training data cannot be read a second time during the training.
    """

    priority = "NORMAL"
    stackable = True

    def __init__(self, batches: int = 100) -> None:
        self.batches = integer("batches", batches, at_least=1)

    def sanity_check(self, runner: Runner) -> None:
        check_second_reading(self, runner)

    @torch.no_grad()
    def before_val(self, runner: Runner) -> None:
        if not runner.training:
            return
        model, alone = runner.eval_model, runner.members[0].eval_model
        mode = model.training
        model.train()
        alone.train()
        layers = {name: layer for name, layer in alone.named_modules() if _updates(layer)}
        if layers:
            # The training's draws are unchanged, and the weights are those that the validation evaluates.
            with runner.seeded("precise_bn", runner.iter), evaluated_in_training(runner):
                self._measure(runner, model, alone, layers)
        model.train(mode)

    def _measure(self, runner: Runner, model: nn.Module, alone: nn.Module, layers: dict[str, Any]) -> None:
        loader = runner.second_loader() if runner.batches_done else runner.loader("train")
        batches = loader.batches(runner.epoch)
        if exact_length(loader) is None:
            batches = runner.strategy.together(batches)
        buffers = {name.replace("/", "."): buffer for name, buffer in model.named_buffers()}  # slashes in a stack
        statistics: list[_Statistics] = []
        first = 0
        for batch in islice(batches, self.batches):
            one = of_first_member(batch, loader)
            if not statistics:
                first = samples(one)
                statistics = [_Statistics(layer, name, buffers) for name, layer in layers.items()]
                sizes = _sizes(runner, alone, layers, one)
            for each in statistics:
                each.clear()
            runner.step.precision.forward(_forward(model), batch)
            for each in statistics:
                each.add(sizes.get(each.name, 0) * samples(one) / first)
        for each in statistics:
            each.write(runner.strategy.mean(each.sums()))


class _Statistics:
    """The sums over batches of one layer's statistics; `[K, C]` for the layers of K members.

    A batch's statistics are read from the running ones: if these were 0, they are `momentum` times the batch's.
    """

    def __init__(self, layer: BatchNorm, name: str, buffers: Mapping[str, Tensor]) -> None:
        self.name = name
        self.momentum = 1.0 if layer.momentum is None else layer.momentum
        keys = ("running_mean", "running_var", "num_batches_tracked")
        self.buffers = [buffers[f"{name}.{key}".lstrip(".")] for key in keys]
        self.before = [buffer.clone() for buffer in self.buffers]
        mean = self.buffers[0].double()
        self.numbers, self.sum, self.squares = 0.0, torch.zeros_like(mean), torch.zeros_like(mean)

    def clear(self) -> None:
        for buffer in self.buffers:
            buffer.zero_()

    def add(self, numbers: float) -> None:
        """Count a batch with this many numbers per channel; 0 if the layer was not called."""
        if numbers == 0:
            return
        mean, variance = (buffer.double() / self.momentum for buffer in self.buffers[:2])
        self.numbers += numbers
        self.sum += numbers * mean
        self.squares += (numbers - 1) * variance + numbers * mean.square()  # the running variance is the unbiased one

    def sums(self) -> dict[str, Tensor]:
        """Return the sums so far."""
        return {"numbers": torch.full_like(self.sum, self.numbers), "sum": self.sum, "squares": self.squares}

    def write(self, sums: Mapping[str, Tensor]) -> None:
        """Write the statistics of these sums into the layer, or restore the previous ones if nothing was counted."""
        mean, variance, count = self.before
        numbers = sums["numbers"]
        if numbers.any():
            mean = sums["sum"] / numbers
            variance = (sums["squares"] / numbers - mean.square()).clamp_(min=0)
        for buffer, value in zip(self.buffers, (mean, variance, count), strict=True):
            buffer.copy_(value)


def _updates(layer: nn.Module) -> bool:
    """Return whether a training step updates the layer's running statistics."""
    return isinstance(layer, BATCH_NORMS) and layer.track_running_stats and layer.training


def _forward(model: nn.Module) -> Any:
    """Return the function that runs a batch: a training step without its backward pass."""
    if hasattr(model, "train_steps"):  # for several optimizers, whose losses may need gradients
        return getattr(model, "val_step", partial(call, model, mode="predict"))
    return getattr(model, "train_step", partial(call, model, mode="loss"))


def _sizes(runner: Runner, alone: nn.Module, layers: Mapping[str, nn.Module], batch: Any) -> dict[str, int]:
    """Return the number of values of each channel in a batch, by layer, from one pass of the model of one member."""
    sizes: dict[str, int] = {}

    def note(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sizes[name] = inputs[0].numel() // inputs[0].shape[1]

    handles = [layer.register_forward_pre_hook(partial(note, name)) for name, layer in layers.items()]
    try:
        runner.step.precision.forward(_forward(alone), batch)
    finally:
        for handle in handles:
            handle.remove()
    return sizes
