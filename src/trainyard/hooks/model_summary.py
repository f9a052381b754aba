"""Model summary hook: a table of the model's modules."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
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
from trainyard.data.lengths import first_batch
from trainyard.distributed.shares import class_of
from trainyard.hooks._batch import of_first_member
from trainyard.rng import derive
from trainyard.runner import Runner
from trainyard.runner.hook import Hook

log = logging.getLogger("trainyard")

WIDTH = 80  # of the table, in terminal columns


@dataclass
class Row:
    """One module: the shapes of its outputs, its floating-point operations in one batch, and its parameters."""

    name: str
    kind: str
    parameters: int
    output: str = ""
    flops: int = 0
    begun: int = 0


class ModelSummary(Hook):
    """Logs a table of the model's modules once before the training, and writes it to `summary.txt`, an artifact.

    For each module: its type, the shape of its output, its parameters, and the floating-point operations of its forward
    pass, as counted by `torch.utils.flop_counter`. It counts matrix products, convolutions and attention; a
    multiplication and an addition are two operations (one MAC). To measure shapes and FLOPs, the hook runs the model on
    one validation batch, or on one training batch if there is no validation data.

    Args:
        depth: the number of module levels in the table; None: all levels.
        flops: count FLOPs.
    """

    priority = "VERY_HIGH"
    stackable = True
    own_places = True

    def __init__(self, depth: int | None = 3, flops: bool = True) -> None:
        self.depth = None if depth is None else integer("depth", depth, at_least=0, other="null for all levels")
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
            Row(name, class_of(module).__name__, sum(weight.numel() for weight in module.parameters()))
            for name, module in model.named_modules()
        ]
        with rng_state.seeded(derive(runner.seed, "summary")):
            count = self._pass(runner, model, rows)
        shown = [row for row in rows if self.depth is None or _level(row.name) <= self.depth]
        root = rows[0]
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        each = root.flops / count
        flops = f", {_short(each)}FLOPs ({_short(each / 2)}MACs) per sample" if self.flops else ""
        noun = "parameter" if root.parameters == 1 else "parameters"
        title = f"{root.kind}: {root.parameters:,} {noun}, {trained:,} of them trained{flops}"
        note = f"\n\nFLOPs of a forward pass, per sample, measured with a batch of {count}." if self.flops else ""
        return f"{title}\n\n{_table(shown, count if self.flops else None)}{note}"

    def _pass(self, runner: Runner, model: nn.Module, rows: list[Row]) -> int:
        """Run one batch through the model, record the outputs in `rows`, and return the number of samples."""
        split = "val" if runner.has_split("val") else "train"
        loader = runner.loader(split)
        batch = of_first_member(first_batch(loader, split), loader)
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
    """Count the floating-point operations inside the block; yield a function that returns the count."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # FLOPs of its kernels, and of most on the CPU, are not counted
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
    """Format a number with three digits and a unit prefix: 12.3 k."""
    for unit in ("", "k", "M", "G", "T"):
        if number < 999.5 or unit == "T":
            return f"{number:.3g} {unit}"
        number /= 1000
    raise AssertionError


def _table(rows: Sequence[Row], samples: int | None) -> str:
    """Render the rows as plain text, at most `WIDTH` columns wide; longer cells wrap.

    Args:
        rows: one row per module.
        samples: the number of samples in the batch, to show FLOPs per sample; None shows no FLOPs.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("module", "type", "output"):
        table.add_column(name, overflow="fold")
    for name in ("parameters", "FLOPs") if samples else ("parameters",):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = [row.name or "(all)", row.kind, row.output, f"{row.parameters:,}"]
        if samples:
            cells.append(_short(row.flops / samples))
        table.add_row(*map(Text, cells))  # rich would read `[...]` in plain strings as markup
    file = io.StringIO()
    Console(file=file, width=WIDTH, color_system=None, force_terminal=False).print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())
