"""Probe of a stack: whether it can train as one program, and the width at which it is fastest."""

from __future__ import annotations

import gc
import os
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from trainyard.errors import TrainyardError

if TYPE_CHECKING:  # a sweep's main process imports this module, and no torch
    import torch

    from trainyard.runner import Runner

Values = dict[str, Any]

FIRST = 16
GROWTH = 4
"""First width that is measured, and the factor between two widths."""
BUDGET = 0.02
"""Maximum fraction of the stack's training time for measurements."""
PAYS = 1.05
"""Speedup over training one by one that a stack must reach."""
STEPS = 3
UNKNOWN_STEPS = 10_000
"""Iterations of a run whose length is unknown: see `_measured`."""
REFUSED = (TrainyardError, RuntimeError, TypeError, ValueError, NotImplementedError)
"""Errors of members that cannot train as one program."""
OF_VMAP = (
    (
        re.compile(r"Batching rule not implemented for (\S+?)[.;] "),
        "torch.vmap has no rule for {}: to stack the jobs, use another operation",
    ),
    (
        re.compile(r"must only return Tensors, got type <class '([\w.]+)'>"),
        (
            "the model returns a value of the type {}: a stack supports only tensors and lists, tuples and dicts of "
            "tensors"
        ),
    ),
    (
        re.compile(
            r"different inplace randomness on an unbatched tensor|vmap: inplace arithmetic|"
            r"output with shape \[(.*?)\] doesn't match the broadcast shape \[\d+(?:, )?\1\]"
        ),
        (
            "the model changes a tensor in place that all members share, such as the batch: create a new tensor "
            "instead, for example with torch.rand_like(x) or x + 1"
        ),
    ),
    (
        re.compile(r"autograd.Function with functorch transforms .*must override the setup_context"),
        (
            "a torch.autograd.Function without setup_context cannot be stacked (torch.distributions.Beta and "
            "Dirichlet use such a function): to stack the jobs, use another operation"
        ),
    ),
    (
        re.compile(r"we do not yet support (aten::\w+)"),
        "torch.vmap has no rule for {}: to stack the jobs, use another operation",
    ),
)
"""Errors of `torch.vmap`, and their meaning for a model."""


@dataclass(frozen=True)
class Fit:
    """Result of a probe.

    Attributes:
        width: members per stack; 1: they train one by one.
        reason: why they train one by one; None if they are stacked.
        note: the measurement, for the plan.
        seconds: slot time per member for building and training at this width, without validation; None if unknown.
    """

    width: int
    reason: str | None = None
    note: str = ""
    seconds: float | None = None


def probe(configs: Sequence[Values], of: int) -> Fit:
    """Try a stack with one training step and one validation step, then measure increasing widths.

    The measurement ends if a wider stack is not faster, if the next width would not fit into memory, or after 2 % of
    the stack's training time. The result is the width with the least time per member. No files remain.

    Args:
        configs: the resolved configs of some members; no stack will have more members.
        of: the total number of members.
    """
    bare = [values | {"work_dir": None, "tracker": None, "resume": False, "sanity_check": False} for values in configs]
    try:
        _fused(bare[:2])
    except REFUSED as error:
        return Fit(1, reason=why(error))
    return _measured(bare, of)


def _measured(configs: Sequence[Values], of: int) -> Fit:
    """Return the width with the least time per member to build and train, if it is less than for a single run."""
    from trainyard.runner import Runner

    began = perf_counter()
    runner = Runner.from_cfg(configs[0])
    runner.prepare()
    # What a stack costs to build counts little in a long run; a run of unknown length is taken for one.
    known = runner.train_loop.max_iters(runner)
    steps = known or UNKNOWN_STEPS
    alone = (perf_counter() - began) + steps * _seconds(runner)
    times: dict[int, float] = {}
    width, free = min(len(configs), FIRST), _memory(runner.device)
    while True:
        building = perf_counter()
        try:
            fused = _fused(configs[:width])
        except Exception as error:
            if times:
                break  # the previous measurements stand
            if isinstance(error, REFUSED):  # the first two members are equal in a number in which others differ
                return Fit(1, reason=why(error))
            raise
        building = perf_counter() - building
        times[width] = (building + steps * _seconds(fused)) / width
        slower = times[width] > min(times.values())
        spent = perf_counter() - began > BUDGET * times[width] * of
        if width == len(configs) or slower or spent:
            break
        del fused
        gc.collect()
        left = _memory(runner.device)
        if GROWTH * (free - left) > left:
            break
        width = min(len(configs), GROWTH * width)
    best = min(times, key=times.__getitem__)
    gain = alone / times[best]
    figures = f"{gain:.{1 if gain >= 1 else 2}f} times as fast as training one by one"
    if gain < PAYS:
        reason = (
            f"stacking is not sufficiently faster: a stack of {best} is {figures}; at least {PAYS} times is required"
        )
        return Fit(1, reason=reason, note=figures, seconds=alone if known else None)
    return Fit(best, note=f"{figures}, measured with a stack of {best}", seconds=times[best] if known else None)


def _fused(configs: Sequence[Values]) -> Runner:
    """Return a stack that is ready to train and has taken one step."""
    from trainyard.fused.runner import FusedRunner

    runner = FusedRunner(configs)
    runner.prepare()
    _update(runner)()
    return runner


def _update(runner: Runner) -> Callable[[], None]:
    """Return a function that trains on the batches up to one step of the optimizer: one group, if they accumulate."""
    from trainyard.data.lengths import first_batch  # imported here because it needs torch

    batch = first_batch(runner.loader("train"), "train")
    runner.model.train()
    group = runner.step.accumulate

    def update() -> None:
        for position in range(group):
            runner.step(batch, position, group)

    return update


def _seconds(runner: Runner) -> float:
    """Return the seconds of a typical batch, captured if the step is captured; the fastest of a few."""
    update = _update(runner)
    for _ in range(runner.step.warm_up):
        update()
    times = []
    for _ in range(STEPS):
        synchronize(runner.device)
        began = perf_counter()
        update()
        synchronize(runner.device)
        times.append(perf_counter() - began)
    return min(times) / runner.step.accumulate


def synchronize(device: torch.device) -> None:
    """Wait for the work of a CUDA device."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def _memory(device: torch.device) -> int:
    """Return the free bytes of a CUDA device, or of main memory for other devices."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def why(error: BaseException) -> str:
    """Describe on one line why something cannot be stacked: the message, the layer, and the line that caused the
    error."""
    said = str(error).strip().splitlines()
    text = said[0] if said else type(error).__name__
    if isinstance(error, TrainyardError):
        layer = _layer(error)
        return f"{text} (layer {layer})" if layer else text
    text = next((again.format(*found.groups()) for told, again in OF_VMAP if (found := told.search(text))), text)
    layer = _layer(error)
    within = [f"layer {layer}"] if layer else []
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_library(frame.filename)]
    if own:
        place = own[-1]
        within.append(f"{Path(place.filename).name}:{place.lineno}: {place.line}")
    return f"{text} ({'; '.join(within)})" if within else text


def _layer(error: BaseException) -> str | None:
    """Return the name and the class of the innermost layer of the model in which an error occurred; None if it occurred
    in no layer."""
    from trainyard.fused.model import Template

    found, names = None, dict[int, str]()
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        if isinstance(module, Template):
            names = {id(layer): name for name, layer in module.model.named_modules() if name}
        elif id(module) in names:
            found = f"{names[id(module)]}, a {type(module).__name__}"
    return found


def _is_library(file: str) -> bool:
    """Return whether a source file belongs to torch or to the stacking code, and not to the user's model."""
    import torch

    ours = Path(__file__).parents[1]
    inside = (*(ours / name for name in ("fused", "runner", "step", "_torch_vmap.py")), Path(torch.__file__).parent)
    return any(Path(file).is_relative_to(place) for place in inside)
