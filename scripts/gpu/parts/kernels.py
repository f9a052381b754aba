"""Kernels of a step of the MLP, in a single run and in a stack; two stacked convolutions; the stacked Adam.

On the CPU, torch's operators are counted instead of kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from typing import Any

import torch
from by_hand import recorded
from digits import HIDDEN, must_be_captured, prepared, steps
from part import NEEDS_CUDA, Part, in_one_line, run
from timing import Missing, Plan, Side, going_on, synchronizer, take_turns
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from catalog import ADAM_SIDES
from trainyard._fast_paths import use_fast_paths
from trainyard.fused.model import StackedModel
from trainyard.fused.optim import stack_optimizers
from trainyard.models import MLP

RATE = 1e-3
WARM = 12
"""Steps before the profile, after which the steps are captured."""
PROFILED = 10
SHOWN = 60
"""Maximum number of kernels in the results: those that take the most time."""


def main(part: Part) -> None:
    stack = part.size(256, 4)
    runners = {"K = 1": prepared(None, part.device), "K = 256": prepared(stack, part.device)}
    losses = {name: steps(runner) for name, runner in runners.items()}
    for name, each in losses.items():
        try:
            found = kernels(part, each)
            must_be_captured(runners[name])
            total, time = sum(kernel["count"] for kernel in found), sum(kernel["us"] for kernel in found)
            part.put("kernels", name, found=f"{total:g} kernels, {time:.1f} µs", kernels=found[:SHOWN])
        except Exception as error:
            part.put("kernels", name, failed=in_one_line(error))
            part.fail(f"kernels of {name}: {in_one_line(error)}")
    plan = part.size(Plan(0.5, 0.2, 3), Plan(0.02, 0.0, 1, compared=2))
    tables: dict[str, dict[str, Side | Missing]] = {
        "kernel_steps": {name: going_on(partial(iter, each)) for name, each in losses.items()},
        "convolution": {
            name: going_on(partial(convolutions, part, convolve))
            for name, convolve in {"grouped convolution": grouped, "unfold and bmm": unfolded}.items()
        },
        "adam": dict(
            zip(
                ADAM_SIDES,
                [
                    triton(part) or going_on(partial(stacked_adam, part, kernel=True)),
                    going_on(partial(stacked_adam, part, kernel=False)),
                    going_on(partial(fused_adam, part)),
                ],
                strict=True,
            )
        ),
    }
    take_turns(part, tables, plan, dict.fromkeys(tables, 1e-3))


def kernels(part: Part, losses: Iterator[Tensor]) -> list[dict[str, Any]]:
    """Return the kernels of a step, each with its number of launches and its total microseconds.

    Raises:
        RuntimeError: the profiler recorded no kernel.
    """
    for _ in islice(losses, WARM):
        pass
    synchronizer(part)()
    kinds = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if part.cuda else [ProfilerActivity.CPU]
    with profile(activities=kinds) as found:
        for _ in islice(losses, PROFILED):
            pass
        synchronizer(part)()
    rows = []
    for event in found.key_averages():
        on_device = event.device_type.name == "CUDA"
        if on_device == part.cuda:
            time = event.self_device_time_total if part.cuda else event.self_cpu_time_total
            rows.append({"name": event.key, "count": event.count / PROFILED, "us": time / PROFILED})
    if not rows:
        raise RuntimeError("the profiler recorded no kernel")
    return sorted(rows, key=lambda row: -row["us"])


Convolve = Callable[[Tensor, Tensor], Tensor]


def grouped(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve K stacked images `[K, B, C, H, W]` with K stacked weights `[K, O, C, 3, 3]` as K groups."""
    members, batch, channels, *size = x.shape
    merged = x.transpose(0, 1).reshape(batch, members * channels, *size)
    result = F.conv2d(merged, weight.flatten(0, 1), padding=1, groups=members)
    return result.view(batch, members, -1, *size).transpose(0, 1)


def unfolded(x: Tensor, weight: Tensor) -> Tensor:
    """Compute the same convolution as a batched matrix product of the patches."""
    members, batch, _, *size = x.shape
    patches = F.unfold(x.flatten(0, 1), 3, padding=1).view(members, batch, -1, size[0] * size[1])
    columns = patches.transpose(1, 2).flatten(2)
    result = torch.bmm(weight.flatten(2), columns)
    return result.view(members, -1, batch, *size).transpose(1, 2)


def convolutions(part: Part, convolve: Convolve) -> Iterator[Tensor]:
    """Compute a stacked convolution, forward and backward; the loss is a mean that does not change."""
    generator = torch.Generator().manual_seed(0)
    members, batch = part.size((64, 64), (2, 4))
    x = torch.randn(members, batch, 8, 8, 8, generator=generator).to(part.device).requires_grad_()
    weight = torch.randn(members, 16, 8, 3, 3, generator=generator).to(part.device).requires_grad_()

    def work() -> Tensor:
        x.grad = weight.grad = None
        loss = convolve(x, weight).square().mean()
        loss.backward()
        return loss.detach()

    yield from repeated(part, work)


def triton(part: Part) -> Missing | None:
    """Return why the stacked Adam has no Triton kernel on this machine; None if it has one."""
    if not part.cuda:
        return Missing(NEEDS_CUDA)
    name = "trainyard.fused.optim.one_pass"
    found = find_spec(name) and import_module(name).find("Adam", torch.device(part.device))
    return None if found else Missing("the Triton kernel is not available")


def stacked_adam(part: Part, *, kernel: bool) -> Iterator[Tensor]:
    """Step the stacked Adam on gradients that do not change; the loss is the mean size of the first weight of a member.

    An optimizer that is created while `env.fast_paths` is off has no Triton kernel.
    """
    with fast_paths(kernel):
        models = stacked_models(part)
        optimizers = [torch.optim.Adam(model.parameters(), lr=RATE, fused=True) for model in models]
        first = list(models[0].parameters())
        stacked = list(StackedModel(models).parameters())
        optimizer = stack_optimizers(optimizers, dict(zip(first, stacked, strict=True)))
        set_gradients(stacked)
        optimizer.step()  # the first one makes what the others step by

    def work() -> Tensor:
        optimizer.step()
        return stacked[0].detach()[0].abs().mean()

    yield from repeated(part, work)


def fused_adam(part: Part) -> Iterator[Tensor]:
    """Step torch's fused Adam on the same number of elements, as a lower bound for the time of a step."""
    models = stacked_models(part)
    columns = zip(*[list(model.parameters()) for model in models], strict=True)
    stacked = [nn.Parameter(torch.stack([each.detach() for each in column])) for column in columns]
    optimizer = torch.optim.Adam(stacked, lr=RATE, fused=True, capturable=part.cuda)
    set_gradients(stacked)
    optimizer.step()

    def work() -> Tensor:
        optimizer.step()
        return stacked[0].detach()[0].abs().mean()

    yield from repeated(part, work)


def set_gradients(parameters: list[nn.Parameter]) -> None:
    """Give each parameter a gradient, the same on each call."""
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.device)


def repeated(part: Part, work: Callable[[], Tensor]) -> Iterator[Tensor]:
    """Repeat the work without end; on CUDA, a graph is replayed, so that only the time of the device counts."""
    replay = recorded(work, lambda: None) if part.cuda else work
    while True:
        yield replay()


def stacked_models(part: Part) -> list[nn.Module]:
    """Return the models of a stack, the same on each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models = [MLP(in_features=64, num_classes=10, hidden=list(HIDDEN)) for _ in range(part.size(256, 4))]
    return [model.to(part.device) for model in models]


@contextmanager
def fast_paths(on: bool) -> Iterator[None]:
    """Switch `env.fast_paths` inside the block."""
    use_fast_paths(on)
    try:
        yield
    finally:
        use_fast_paths(True)


if __name__ == "__main__":
    run(main)
