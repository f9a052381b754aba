"""Moving batches to the training device."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, namedtuple
from contextlib import nullcontext
from types import MappingProxyType

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from trainyard.data import WorkerLoader, epoch_order
from trainyard.data.transfer import _copy_stream, apply, copy_ahead, to_device

Pair = namedtuple("Pair", "left right")


def test_every_structure_is_walked() -> None:
    one = torch.ones(2)
    counts = defaultdict(list, {"a": one})
    batch = {
        "tuple": (one, [one, "text"]),
        "named": Pair(one, None),
        "ordered": OrderedDict(b=one),
        "default": counts,
        "read only": MappingProxyType({"c": one}),
        "packed": torch.nn.utils.rnn.pack_sequence([one]),
        "number": 3,
    }
    out = apply(lambda leaf: leaf.to(torch.float64), batch)
    assert out["tuple"][0].dtype == out["tuple"][1][0].dtype == torch.float64
    assert isinstance(out["tuple"], tuple)
    assert out["tuple"][1][1] == "text"
    assert isinstance(out["named"], Pair)
    assert out["named"].left.dtype == torch.float64
    assert out["named"].right is None
    assert isinstance(out["ordered"], OrderedDict)
    assert out["default"].default_factory is list
    assert out["default"]["a"].dtype == out["read only"]["c"].dtype == torch.float64
    assert out["packed"].data.dtype == torch.float64
    assert out["number"] == 3
    assert counts["a"] is one  # the batch that was given is as it was


def test_batches_arrive_on_the_device() -> None:
    loader = WorkerLoader(DataLoader(TensorDataset(torch.arange(6.0)), 4), seed=0, device="meta")
    assert [part.device.type for (part,) in loader.batches()] == ["meta", "meta"]
    assert to_device((torch.ones(1),), torch.device("meta"))[0].is_meta


class Leaf:
    """A leaf of a batch on no device."""

    def to(self, device: torch.device, non_blocking: bool) -> Leaf:
        return self

    def record_stream(self, stream: object) -> None:
        pass


class Stream:
    """Stands for a CUDA stream."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def record_event(self) -> None:
        return None

    def wait_event(self, event: None) -> None:
        pass


def test_there_is_one_stream_for_the_copies_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's allocator keeps blocks for each stream: one for each epoch and split would strand them."""
    used: list[Stream] = []

    def on(stream: Stream) -> nullcontext[None]:
        used.append(stream)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    _copy_stream.cache_clear()
    try:
        for index in (0, 0, 1):
            assert len(list(copy_ahead(iter([(Leaf(),), (Leaf(),)]), torch.device("cuda", index)))) == 2
    finally:
        _copy_stream.cache_clear()
    assert [stream.device.index for stream in used] == [0, 0, 0, 0, 1, 1]
    assert len(set(used)) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_arrive_whole_on_cuda(workers: int) -> None:
    source = DataLoader(TensorDataset(torch.arange(50)), 8, shuffle=True, num_workers=workers)
    loader = WorkerLoader(source, seed=0, device="cuda")
    for epoch in range(2):
        batches = [batch for (batch,) in loader.batches(epoch)]
        assert all(batch.is_cuda for batch in batches)
        assert torch.cat(batches).tolist() == epoch_order(50, 0, epoch).tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_batch_that_is_in_use_is_not_overwritten() -> None:
    pinned = ((torch.full((1 << 20,), value).pin_memory(),) for value in range(20))
    for value, (batch,) in enumerate(copy_ahead(pinned, torch.device("cuda"))):
        torch.cuda._sleep(1_000_000)
        total = batch.double().sum()
        del batch
        assert total.item() == value * (1 << 20)
