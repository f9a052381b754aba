"""What the model is made of: a table of its modules."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trainyard import rng_state
from trainyard._torch_internals import flops_without_dynamo
from trainyard.batch import samples
from trainyard.checks import boolean, integer
from trainyard.hooks.batches import of_first_member
from trainyard.rng import derive
from trainyard.runner import Runner
from trainyard.runner.hook import Hook

log = logging.getLogger("trainyard")

HEADER = ("module", "type", "output", "parameters", "FLOPs")


@dataclass
class Row:
    """One module: its output's shapes and its floating-point operations in one batch, its parameters."""

    name: str
    kind: str
    parameters: int
    output: str = ""
    flops: int = 0
    begun: int = 0


class ModelSummary(Hook):
    """Says once, before the training, what the model is made of; `summary.txt` has it too, an artifact of the run.

    For each module: its type, the shape of its output, its parameters, and the floating-point operations of its forward
    pass, as `torch.utils.flop_counter` counts them: those of matrix products, convolutions and attention, an addition
    and a multiplication being two. For shapes and FLOPs one batch goes through the model: of the validation data, as in
    a validation, or, where there are none, of the training data.

    Args:
        depth: how many levels of modules below the model to show; null shows all.
        flops: count FLOPs.
    """

    priority = "VERY_HIGH"
    stackable = True

    def __init__(self, depth: int | None = 3, flops: bool = True) -> None:
        self.depth = None if depth is None else integer("depth", depth, at_least=0, other="null for all")
        self.flops = boolean("flops", flops)

    def before_train(self, runner: Runner) -> None:
        text = self._text(runner)
        log.info("%s", text)
        for member in runner.members:
            if member.journal.writes:
                file = member.directory / "summary.txt"
                file.write_text(text + "\n", encoding="utf-8")
                member.journal.artifact(file)

    def _text(self, runner: Runner) -> str:
        model = runner.members[0].eval_model
        rows = [
            Row(name, type(module).__name__, sum(weight.numel() for weight in module.parameters()))
            for name, module in model.named_modules()
        ]
        with rng_state.seeded(derive(runner.seed, "summary")):
            count = self._pass(runner, model, rows)
        shown = [row for row in rows if self.depth is None or _level(row.name) <= self.depth]
        table: list[tuple[str, ...]] = [HEADER if self.flops else HEADER[:-1]]
        table += [self._cells(row, count) for row in shown]
        root = rows[0]
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        flops = f", {_short(root.flops / count)}FLOPs a sample" if self.flops else ""
        title = f"{root.kind}: {root.parameters:,} parameters, {trained:,} of them trained{flops}"
        note = ["", f"FLOPs of a forward pass, for one of the {count} samples of the batch."] if self.flops else []
        return "\n".join([title, "", *_columns(table), *note])

    def _cells(self, row: Row, count: int) -> tuple[str, ...]:
        cells = (row.name or "(all)", row.kind, row.output, f"{row.parameters:,}")
        return (*cells, _short(row.flops / count)) if self.flops else cells

    def _pass(self, runner: Runner, model: nn.Module, rows: list[Row]) -> int:
        """Send one batch through the model and note in `rows` what comes out; returns its number of samples."""
        split = "val" if runner.has_split("val") else "train"
        loader = runner.loader(split)
        batch = of_first_member(next(iter(loader.batches())), loader)
        predict = runner.predict_step("val", model)
        mode = model.training
        model.eval()
        with ExitStack() as stack:
            count = stack.enter_context(_flops()) if self.flops else (lambda: 0)
            for row, module in zip(rows, model.modules(), strict=True):
                stack.callback(module.register_forward_pre_hook(partial(_begin, row, count)).remove)
                stack.callback(module.register_forward_hook(partial(_end, row, count)).remove)
            predict(batch)
        model.train(mode)
        return samples(batch)


def _begin(row: Row, count: Any, module: nn.Module, inputs: Any) -> None:
    row.begun = count()


def _end(row: Row, count: Any, module: nn.Module, inputs: Any, output: Any) -> None:
    row.flops += count() - row.begun
    row.output = _shape(output)


@contextmanager
def _flops() -> Iterator[Any]:
    """Counts the floating-point operations inside the block; gives a function that returns how many there were."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # that, and most kernels of attention on the CPU, are not counted
    try:
        with flops_without_dynamo(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            yield counter.get_total_flops
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _level(name: str) -> int:
    return name.count(".") + 1 if name else 0


def _shape(output: Any) -> str:
    if isinstance(output, Tensor):
        return str(list(output.shape))
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return ", ".join(filter(None, map(_shape, parts)))


def _short(number: float) -> str:
    """Three digits and what they count: 12.3 k."""
    for unit in ("", "k", "M", "G", "T"):
        if number < 999.5 or unit == "T":
            return f"{number:.3g} {unit}"
        number /= 1000
    raise AssertionError


def _columns(table: list[tuple[str, ...]]) -> list[str]:
    """Lines of aligned columns; all but the first three hold numbers."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < 3 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]
