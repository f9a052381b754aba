"""Comparison of stacks of K members with single runs and with other methods, in time and losses.

A member is an MLP 64-64-64-10 on the digits with its own seed, order of the data and learning rate. This project
performs the steps for the batches of its loader, without hooks. `processes` are single runs in parallel on the device;
with MPS, CUDA's multi-process service, their kernels can run at the same time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

from digits import must_be_captured, prepared, steps
from part import NEEDS_CUDA, Part, in_one_line, run
from processes import CONTROL, has_mps, mps, side_by_side
from stack_by_hand import with_jax, with_torch
from timing import Missing, Plan, Side, going_on, take_turns
from torch import Tensor

from catalog import STACK_SIDES

TABLE = "stacks"
BESIDE, BESIDE_MPS = STACK_SIDES[-2:]
PROCESSES = 30.0
"""Seconds for the sides that are processes."""
TOLERANCES = {TABLE: 1e-3}


def main(part: Part) -> None:
    plan = part.size(Plan(2.0, 0.5, 3), Plan(0.05, 0.0, 1, compared=4))
    take_turns(part, {TABLE: sides(part)}, plan, TOLERANCES, reserve=part.size(PROCESSES, 0.0))
    count = part.size(8, 1)
    few = part.size(Plan(2.0, 0.5, 2), plan)
    with side_by_side(part, count, few, {}) as train:
        take_turns(part, {TABLE: {BESIDE: Side(train)}}, few, TOLERANCES)
    if not has_mps():
        part.put(TABLE, BESIDE_MPS, missing=f"{CONTROL} is not installed" if part.cuda else NEEDS_CUDA)
        return
    try:
        with mps(part.folder) as environment, side_by_side(part, count, few, environment) as train:
            take_turns(part, {TABLE: {BESIDE_MPS: Side(train)}}, few, TOLERANCES)
    except RuntimeError as error:  # not every container may start it
        part.put(TABLE, BESIDE_MPS, missing=in_one_line(error))


def sides(part: Part) -> dict[str, Side | Missing]:
    """Return the sides that train in this process, in the order of `STACK_SIDES`."""
    many = part.size(128, 4)
    found: list[Side | Missing] = [
        going_on(partial(ours, part, None)) if part.cuda else Missing(NEEDS_CUDA),
        going_on(partial(ours, part, None, capture=False)),
        *(going_on(partial(ours, part, width), width) for width in part.size((1, 16, 128, 1024), (1, 2, 4, 8))),
        going_on(partial(with_torch, many, part.device, captured=False), many),
        going_on(partial(with_torch, many, part.device, captured=True), many) if part.cuda else Missing(NEEDS_CUDA),
        jax(part, many),
    ]
    return dict(zip(STACK_SIDES[:-2], found, strict=True))


def ours(part: Part, width: int | None, **more: Any) -> Iterator[Tensor]:
    """Train with this project: a stack, or (None) a single run."""
    runner = prepared(width, part.device, **more)
    for loss in steps(runner):
        must_be_captured(runner)
        yield loss


def jax(part: Part, members: int) -> Side | Missing:
    """Return JAX's side."""
    if find_spec("jax") is None:
        return Missing("JAX is not installed")
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the other sides need memory too
    os.environ["JAX_PLATFORMS"] = "cuda" if part.cuda else "cpu"
    return going_on(partial(with_jax, members), members)


if __name__ == "__main__":
    run(main)
