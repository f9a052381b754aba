"""Triton kernel: takes the rows of the next batch from several tensors, and counts the batch, in one launch.

Rows are copied as words of 8 bytes, or of fewer bytes if the size of a row is not a multiple of 8. All programs read
the counter before they arrive; the last one to arrive advances it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from trainyard.step.cuda_graph.take_rows import RowTable, take_by_torch

WIDTH = 1024
"""Words that a program copies."""
WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


# No argument may be called `params`, `options` or `specialization`: Triton binds the arguments beside names of its own.
@triton.jit(do_not_specialize=["count", "stride"])
def _take(
    sources: tl.tuple,
    targets: tl.tuple,
    sizes: tl.tuple,
    firsts: tl.tuple,
    rows: tl.tensor,
    counter: tl.tensor,
    arrived: tl.tensor,
    count: tl.tensor,
    stride: tl.tensor,
    width: tl.constexpr,
) -> None:
    """Copy `width` words of a tensor's rows.

    `sources` and the following tuples contain, for each tensor, its address, the address for its rows, the number of
    words in a row, and its first program.
    """
    program = tl.program_id(0)
    batch = tl.load(counter).to(tl.int64)
    source, target, size, first = sources[0], targets[0], sizes[0], firsts[0]
    for index in tl.static_range(1, len(sources)):
        own = program >= firsts[index]
        source, target = tl.where(own, sources[index], source), tl.where(own, targets[index], target)
        size, first = tl.where(own, sizes[index], size), tl.where(own, firsts[index], first)
    at = (program - first).to(tl.int64) * width + tl.arange(0, width)
    mask = at < count.to(tl.int64) * size
    row = tl.load(rows + batch * stride + at // size, mask=mask, other=0).to(tl.int64)
    tl.store(target + at, tl.load(source + row * size + at % size, mask=mask, other=0), mask=mask)
    tl.debug_barrier()  # every thread has read the counter
    if tl.atomic_add(arrived, 1) == tl.num_programs(0) - 1:
        tl.store(arrived, 0)
        tl.store(counter, batch + 1)


def take(tensors: Sequence[Tensor], table: RowTable, count: int) -> tuple[Tensor, ...]:
    """Do the same as `take_rows`; use torch's functions if the rows of a tensor are not contiguous."""
    if not all(tensor.is_contiguous() and tensor.numel() for tensor in tensors):
        return take_by_torch(tensors, table, count)
    taken = tuple(tensor.new_empty(count, *tensor.shape[1:]) for tensor in tensors)
    row_bytes = [tensor[0].nbytes for tensor in tensors]
    places = [tensor.data_ptr() for tensor in (*tensors, *taken)]
    word = next(each for each in WORDS if not any(number % each for number in (*row_bytes, *places)))
    sizes = tuple(number // word for number in row_bytes)
    blocks = [triton.cdiv(count * size, WIDTH) for size in sizes]
    sources, targets = (tuple(_words(tensor, word) for tensor in each) for each in (tensors, taken))
    firsts = tuple(accumulate(blocks, initial=0))[:-1]
    given = (table.rows, table.counter, table.arrived, count, table.rows.stride(0))
    with torch.cuda.device_of(table.rows):  # type: ignore[no-untyped-call]
        _take[(sum(blocks),)](sources, targets, sizes, firsts, *given, width=WIDTH)
    return taken


def _words(tensor: Tensor, word: int) -> Tensor:
    return tensor.detach().view(-1).view(torch.uint8).view(WORDS[word])


def works_on(device: torch.device) -> bool:
    """Return whether the kernel and torch return the same two batches of two tensors; waits for the device."""
    tensors = torch.arange(3.0 * 4000, device=device).view(4000, 3), torch.arange(4000, device=device)
    order = torch.arange(4000, device=device).flip(0).view(2, 2000)
    table, other = RowTable.of(order), RowTable.of(order)
    for count in (2000, 1999):
        for found, expected in zip(take(tensors, table, count), take_by_torch(tensors, other, count), strict=True):
            if not torch.equal(found, expected):
                return False
    return table.counter.item() == 2 and table.arrived.item() == 0
