"""TensorLoader and ArrayData."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainyard.data import ArrayData, ImageLoader, Loader, TensorLoader, epoch_order
from trainyard.data import tensor_loader as module
from trainyard.data.lengths import exact_length, samples_hint
from trainyard.errors import ConfigError

CPU = torch.device("cpu")


def tensors(n: Any) -> Any:
    x = torch.arange(2.0 * n).view(n, 2)
    return x, torch.arange(n)


def rows(batches: Any) -> Any:
    return torch.cat([y for _, y in batches]).tolist()


@given(
    n=st.integers(1, 150),
    batch_size=st.integers(1, 60),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    epoch=st.integers(0, 99),
    block=st.integers(1, 4000),
    data=st.data(),
)
def test_batches_follow_the_order_from_any_start(
    n: int, batch_size: int, shuffle: bool, drop_last: bool, epoch: int, block: int, data: st.DataObject
) -> None:
    if drop_last:
        batch_size = min(batch_size, n)
    loader = TensorLoader(tensors(n), batch_size, shuffle=shuffle, drop_last=drop_last, seed=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_BYTES_CPU", block)  # blocks of one batch, of several, of all
        whole = list(loader.batches(epoch))
        assert len(whole) == len(loader)
        expected = epoch_order(n, 5, epoch).tolist() if shuffle else list(range(n))
        assert rows(whole) == expected[: loader.num_samples]
        assert all(torch.equal(x, torch.stack([2.0 * y, 2.0 * y + 1], dim=1)) for x, y in whole)
        assert all(len(y) == batch_size for _, y in whole[:-1])
        start = data.draw(st.integers(0, len(whole)))
        tail = list(loader.batches(epoch, start))
    assert len(tail) == len(whole) - start
    assert rows([*whole[:start], *tail]) == rows(whole)


def test_nothing_before_the_start_is_read() -> None:
    class Watched(TensorLoader):
        def gather(self, indices: Any) -> Any:
            self.seen.append(indices)  # type: ignore[attr-defined]
            return super().gather(indices)

    loader = Watched(tensors(100), 10, shuffle=True, seed=1)
    loader.seen = []  # type: ignore[attr-defined]
    list(loader.batches(2, start=7))
    gathered = [index for part in loader.seen if not isinstance(part, slice) for index in part.tolist()]  # type: ignore[attr-defined]
    assert gathered == epoch_order(100, 1, 2)[70:].tolist()


def test_unshuffled_batches_are_slices_of_the_resident_tensors() -> None:
    x, y = tensors(10)
    batches = list(TensorLoader((x, y), 4).batches())
    assert [len(b) for b, _ in batches] == [4, 4, 2]
    assert batches[1][0].data_ptr() == x[4:].data_ptr()


def test_a_batch_may_be_changed_in_place_under_autograd() -> None:
    weight = torch.ones(2, requires_grad=True)
    loader = TensorLoader(tensors(8), 4, shuffle=True)
    (first, _), (second, _) = loader.batches()
    first += weight
    assert first.requires_grad
    assert not second.requires_grad
    first.sum().backward()
    assert weight.grad.tolist() == [4.0, 4.0]


def test_gather_can_be_overridden() -> None:
    class Doubled(TensorLoader):
        def gather(self, indices: Any) -> Any:
            x, y = super().gather(indices)
            return 2 * x, y

    for shuffle in (False, True):
        for x, y in Doubled(tensors(9), 4, shuffle=shuffle).batches():
            assert torch.equal(x[:, 0], 4.0 * y)


def test_uint8_images_are_served_as_floats() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(16, 1, 4, 4)
    loader = ImageLoader((images, torch.arange(16)), 5)
    x = torch.cat([x for x, _ in loader.batches()])
    assert x.dtype == torch.float32
    assert torch.equal(x, images.float() / 255)


def test_tensors_must_agree_in_length() -> None:
    with pytest.raises(ValueError, match="the same length"):
        TensorLoader((torch.zeros(3), torch.zeros(4)), 2)


def array_data(**options: Any) -> Any:
    return ArrayData({split: tensors(n) for split, n in (("test", 10), ("train", 100), ("val", 20))}, {}, **options)


def test_splits_are_in_their_usual_order_and_only_training_is_shuffled() -> None:
    data = array_data(batch_size=32, drop_last=True)
    assert data.splits == ("train", "val", "test")
    train, val, test = (data.loader(split, seed=0, device=CPU) for split in data.splits)
    assert all(isinstance(loader, Loader) for loader in (train, val, test))
    assert (len(train), train.num_samples, train.batch_size) == (3, 96, 32)
    assert (len(val), val.num_samples, val.batch_size) == (1, 20, 256)
    assert rows(val.batches(3)) == list(range(20))
    assert rows(train.batches(3)) == epoch_order(100, 0, 3)[:96].tolist()
    assert data.baselines("val") == {}


def test_evaluation_batches_are_never_smaller_by_default() -> None:
    assert array_data(batch_size=1000).eval_batch_size == 1000
    assert array_data(batch_size=8, eval_batch_size=4).eval_batch_size == 4


def test_a_batch_larger_than_the_set_is_the_set() -> None:
    loader = array_data(batch_size=5000).loader("train", seed=0, device=CPU)
    assert [len(y) for _, y in loader.batches()] == [100]


def test_seeds_give_different_orders_and_share_the_tensors() -> None:
    data = array_data()
    one, two = (data.loader("train", seed=seed, device=CPU) for seed in (0, 1))
    assert rows(one.batches()) != rows(two.batches())
    assert one.tensors[0].data_ptr() == two.tensors[0].data_ptr()


def test_workers_serve_the_same_batches() -> None:
    data, worked = array_data(drop_last=True), array_data(drop_last=True, workers=1)
    plain = data.loader("train", seed=4, device=CPU)
    loader = worked.loader("train", seed=4, device=CPU)
    assert (len(loader), loader.num_samples, loader.batch_size) == (1, 64, 64)
    for epoch in (0, 1):
        for (x, y), (plain_x, plain_y) in zip(loader.batches(epoch), plain.batches(epoch), strict=True):
            assert torch.equal(x, plain_x)
            assert torch.equal(y, plain_y)


def test_a_map_style_data_set_can_be_a_split() -> None:
    dataset = torch.utils.data.TensorDataset(*tensors(50))
    data = ArrayData({"train": dataset}, {}, batch_size=20)
    loader = data.loader("train", seed=7, device=CPU)
    assert (exact_length(loader), samples_hint(loader)) == (3, 50)
    assert rows(loader.batches(2)) == epoch_order(50, 7, 2).tolist()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("batch_size", 0),
        ("batch_size", -4),
        ("batch_size", 2.5),
        ("batch_size", "64"),
        ("batch_size", None),
        ("eval_batch_size", 0),
        ("eval_batch_size", 1.0),
        ("drop_last", "no"),
        ("drop_last", 1),
        ("workers", -1),
        ("workers", True),
    ],
)
def test_bad_options_are_refused_by_name(option: str, value: bool | float | str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        array_data(**{option: value})
    assert caught.value.key == option


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'train'"):
        array_data().loader("trian", seed=0, device=CPU)


def test_dropping_the_only_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="at most 100"):
        array_data(batch_size=101, drop_last=True).loader("train", seed=0, device=CPU)
