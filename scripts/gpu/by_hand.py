"""Hand-written training loops, as in PyTorch's documentation, for the comparison with this project.

All loops use the order of batches of this project for seed 0, the initial weights of `Work.net`, and fused Adam. Each
function yields the loss of each step, without end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, count

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from work import RATE, Work

from trainyard.data.order import EpochBatchSampler, epoch_order

WARM_UP = 3
"""Steps before a capture, as torch's notes on CUDA graphs require."""


def net(work: Work) -> nn.Module:
    """Return the network; a network for images has its weights in channels last."""
    found = work.net()
    if work.kind == "images":
        found.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return found


def resident(work: Work, bf16: bool) -> Iterator[Tensor]:
    """Train on data that is on the device."""
    model = net(work).to(work.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    for x, y in resident_batches(work):
        yield step(work, bf16, model, optimizer, x, y)


def compiled(work: Work, bf16: bool) -> Iterator[Tensor]:
    """Train like `resident`, with a model that is compiled in a mode with CUDA graphs."""
    model = net(work).to(work.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    fast: Callable[[Tensor], Tensor] = torch.compile(model, mode="reduce-overhead")
    for x, y in resident_batches(work):
        yield step(work, bf16, fast, optimizer, x, y)


def with_loader(work: Work, bf16: bool) -> Iterator[Tensor]:
    """Train over a DataLoader, which gathers each batch sample by sample on the CPU."""
    model = net(work).to(work.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    sampler = EpochBatchSampler(work.samples, work.batch)
    loader = DataLoader(TensorDataset(*work.tensors), batch_sampler=sampler)
    for epoch in count():
        sampler.set_position(epoch)
        for x, y in loader:
            yield step(work, bf16, model, optimizer, x.to(work.device), y.to(work.device))


def whole_graph(work: Work, bf16: bool) -> Iterator[Tensor]:
    """Train with a CUDA graph of forward, backward and optimizer."""
    model = net(work).to(work.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True, capturable=True)
    batches = resident_batches(work)
    first = next(batches)
    x, y = (tensor.clone() for tensor in first)
    begin = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def restore() -> None:
        model.load_state_dict(begin)
        for state in optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()

    replay = recorded(lambda: step(work, bf16, model, optimizer, x, y), restore)
    for inputs, target in chain([first], batches):
        x.copy_(inputs)
        y.copy_(target)
        yield replay()


def resident_batches(work: Work) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of all epochs, gathered on the device."""
    x, y = (tensor.to(work.device) for tensor in work.tensors)
    for epoch in count():
        order = torch.from_numpy(epoch_order(work.samples, 0, epoch)).to(work.device)
        for places in order.split(work.batch):
            yield x[places], y[places]


def step(
    work: Work, bf16: bool, model: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> Tensor:
    """Train one step, and return its loss."""
    optimizer.zero_grad(set_to_none=True)
    # The cache of casts keeps tensors from one step to the next, which a graph cannot have.
    with torch.autocast(torch.device(work.device).type, torch.bfloat16, enabled=bf16, cache_enabled=False):
        loss = work.loss(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def recorded(work: Callable[[], Tensor], restore: Callable[[], None]) -> Callable[[], Tensor]:
    """Return a function that replays `work` as a CUDA graph.

    Args:
        work: the work, which uses the same memory in each call.
        restore: restores the state from before the warm-up.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    restore()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
