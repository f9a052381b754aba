"""The file of predictions: whatever is written comes back as the batches that it was."""

from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainyard.errors import TrainyardError
from trainyard.hooks.predictions.file import MissingError, Predictions, PredictionWriter, UnfitError, join

FORMATS = pytest.mark.parametrize("ending", ["npz", "parquet"])


def written(path: Path, batches: list[tuple[Any, Any]], index: Any = None, **options: Any) -> Predictions:
    writer = PredictionWriter(path.parent, **options)
    for batch, outputs in batches:
        writer.add(batch, outputs)
    writer.finish(path, index=index, split="test")
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing is left of the gathering
    return Predictions.read(path)


def same(one: Any, other: Any) -> None:
    """Nests of tensors that are equal to the bit."""
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, tuple | list):
        assert type(one) is type(other)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    else:
        assert one is other is None


def test_what_the_arrays_are_called(tmp_path: Path) -> None:
    outputs = {"logits": torch.zeros(2, 3), "parts": (torch.ones(2), [torch.zeros(2, 1, 4)])}
    batch = {"image": torch.zeros(2, 5), "label": torch.tensor([1, 2]), "path": ["a", "b"]}
    written(tmp_path / "a.npz", [(batch, outputs)], inputs=True)
    with np.load(tmp_path / "a.npz") as file:
        shapes = {name: file[name].shape for name in file.files if name != "trainyard"}
        assert file["targets"].tolist() == [1, 2]
    assert shapes == {
        "index": (2,),
        "outputs.logits": (2, 3),
        "outputs.parts.0": (2,),
        "outputs.parts.1.0": (2, 1, 4),
        "batch.image": (2, 5),
        "targets": (2,),
    }


dtypes = st.sampled_from([torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool])
nests = st.recursive(
    st.tuples(dtypes, st.lists(st.integers(1, 3), max_size=2)) | st.none(),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3)
        | st.lists(inner, min_size=1, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3)
    ),
    max_leaves=5,
)


def made(nest: Any, n: int) -> Any:
    """Tensors of `n` rows in the place of their types and shapes; numbers of every kind, NaN among them."""
    if nest is None:
        return None
    if isinstance(nest, dict):
        return {key: made(entry, n) for key, entry in nest.items()}
    if isinstance(nest, tuple) and len(nest) == 2 and isinstance(nest[0], torch.dtype):
        dtype, shape = nest
        numbers = torch.randn(n, *shape)
        numbers.view(-1)[0] = float("nan") if dtype.is_floating_point else 1
        return numbers.to(dtype)
    return type(nest)(made(entry, n) for entry in nest)


@FORMATS
@settings(max_examples=30, deadline=None)
@given(data=st.data(), nest=nests, sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_batches_come_back(
    ending: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, nest: Any, sizes: list[int]
) -> None:
    kind = data.draw(st.sampled_from(["tuple", "list", "dict"]))
    batches = []
    for n in sizes:
        x, y = torch.randn(n, 2), torch.randint(5, (n,))
        batch: Any = {"x": x, "label": y} if kind == "dict" else (x, y) if kind == "tuple" else [x, y]
        batches.append((batch, made(nest, n)))
    folder = tmp_path_factory.mktemp("one")
    predictions = written(folder / f"a.{ending}", batches, inputs=True)
    for (batch, outputs), (their_batch, theirs) in zip(batches, predictions.batches(), strict=True):
        same(batch, their_batch)
        same(outputs, theirs)
    size = data.draw(st.integers(1, 9))
    chunks = list(predictions.batches(size))
    assert [len(batch["label"] if kind == "dict" else batch[1]) for batch, _ in chunks[:-1]] == [size] * (
        len(chunks) - 1
    )
    assert len(predictions) == sum(sizes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(tmp_path: Path, dtype: torch.dtype) -> None:
    outputs = torch.randn(3, 4).to(dtype)
    predictions = written(tmp_path / "a.npz", [((0, torch.zeros(3)), outputs)])
    assert predictions.arrays["outputs"].dtype == np.float32
    assert torch.equal(torch.from_numpy(predictions.arrays["outputs"]), outputs.float())


@FORMATS
def test_pandas_and_numpy_read_it(tmp_path: Path, ending: str) -> None:
    outputs, target = torch.randn(4, 3), torch.arange(4)
    written(tmp_path / f"a.{ending}", [((0, target), outputs)], index=[3, 0, 2, 1])
    if ending == "npz":
        with np.load(tmp_path / "a.npz") as file:
            found = {name: file[name] for name in ("index", "targets", "outputs")}
            assert json.loads(str(file["trainyard"]))["split"] == "test"
    else:
        import pandas as pd

        frame = pd.read_parquet(tmp_path / "a.parquet")
        found = {"index": frame["index"], "targets": frame["targets"], "outputs": np.stack(frame["outputs"])}
    assert found["index"].tolist() == [3, 0, 2, 1]
    assert found["targets"].tolist() == [0, 1, 2, 3]
    assert np.array_equal(found["outputs"], outputs)


def test_a_batch_without_a_target(tmp_path: Path) -> None:
    predictions = written(tmp_path / "a.npz", [(torch.zeros(2), torch.ones(2))])
    assert set(predictions.arrays) == {"index", "outputs"}


def test_what_is_not_there_says_so_when_it_is_read(tmp_path: Path) -> None:
    batch = {"image": torch.zeros(2, 3), "meta": ("a", torch.zeros(2)), "label": torch.zeros(2)}
    ((found, _),) = written(tmp_path / "a.npz", [(batch, torch.zeros(2))]).batches()
    assert torch.equal(found["label"], batch["label"])
    image, part = found["image"], found["meta"][1]
    for read in (
        lambda: image.flatten(1),
        lambda: image[0],
        lambda: len(image),
        lambda: list(image),
        lambda: torch.zeros(2, 3) + image,
        lambda: torch.cdist(torch.zeros(2, 3), image),
        lambda: np.asarray(image),
    ):
        with pytest.raises(MissingError, match=r"it reads batch\.image, .*inputs=true"):
            read()
    with pytest.raises(MissingError, match=r"batch\.meta\.1"):
        part.mean()


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("batches", "why"),
    [
        ([(torch.zeros(2), torch.zeros(3))], "outputs .3., targets .2."),
        ([(torch.zeros(2), torch.tensor(1.0))], "outputs .., targets"),
        ([(torch.zeros(2), (torch.zeros(2, 1), torch.zeros(1)))], "row for each sample: outputs.0"),
        ([(torch.zeros(2), torch.zeros(2, 3)), (torch.zeros(2), torch.zeros(2, 4))], r"float32 \[4\] in one batch"),
        ([(torch.zeros(2), torch.zeros(2)), (torch.zeros(2), torch.zeros(2).double())], "float64"),
        ([(torch.zeros(2), torch.zeros(2)), (torch.zeros(2), (torch.zeros(2),))], "nested"),
        ([(torch.zeros(2), {"a.b": torch.zeros(2), "a": {"b": torch.zeros(2)}})], "two tensors .* outputs.a.b"),
        ([(torch.zeros(2), {0: torch.zeros(2)})], "no text"),
        ([(torch.zeros(2), torch.zeros(2, 2).to_sparse())], "no array"),
        ([(torch.zeros(2), torch.zeros(2, 300))], "more than 0 MB"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, batches: list[tuple[Tensor, Any]], why: str) -> None:
    writer = PredictionWriter(tmp_path, max_bytes=2000)
    *before, (target, outputs) = batches
    for earlier in before:
        writer.add((0, earlier[0]), earlier[1])
    with pytest.raises(UnfitError, match=why):
        writer.add((0, target), outputs)
    writer.close()


def test_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(UnfitError, match="no sample"):
        PredictionWriter(tmp_path).finish(tmp_path / "a.npz")
    writer = PredictionWriter(tmp_path)
    writer.add((0, torch.zeros(2)), torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(UnfitError, match="parquet"):
        writer.finish(tmp_path / "a.parquet")
    assert not list(tmp_path.iterdir())


def test_named_tuples_are_tuples(tmp_path: Path) -> None:
    point = Point(torch.zeros(2), torch.ones(2))
    ((_, outputs),) = written(tmp_path / "a.npz", [((0, torch.zeros(2)), point)]).batches()
    same(outputs, tuple(point))


@FORMATS
@pytest.mark.parametrize("kind", ["absent", "text", "empty", "cut", "other", "newer", "folder"])
def test_what_is_no_such_file(tmp_path: Path, ending: str, kind: str) -> None:
    path = tmp_path / f"a.{ending}"
    written(path, [((0, torch.zeros(2)), torch.zeros(2))])
    says = "no file of predictions"
    match kind:
        case "absent":
            path.unlink()
            says = "there is no such file"
        case "text":
            path.write_text("accuracy 0.9")
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(path.read_bytes()[:-20])
        case "other":
            np.savez(path.open("wb"), x=np.zeros(3))
        case "newer":
            meta = json.dumps({"version": 2, "structure": {}, "sizes": []})
            np.savez(path.open("wb"), trainyard=np.array(meta))
            says = "version 2"
        case "folder":
            path.unlink()
            path.mkdir()
    with pytest.raises(TrainyardError, match=says) as error:
        Predictions.read(path)
    assert str(path) in str(error.value)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 9), ranks=st.integers(1, 3))
def test_ranks_take_turns(tmp_path_factory: pytest.TempPathFactory, count: int, ranks: int) -> None:
    folder = tmp_path_factory.mktemp("ranks")
    batches = [((torch.zeros(2), torch.tensor([2 * i, 2 * i + 1])), torch.randn(2, 3)) for i in range(count)]
    parts = []
    for rank in range(min(ranks, count)):
        writer = PredictionWriter(folder)
        for batch, outputs in batches[rank::ranks]:
            writer.add(batch, outputs)
        writer.finish(folder / f"{rank}.npz")
        parts.append(Predictions.read(folder / f"{rank}.npz"))
    whole = PredictionWriter(folder)
    join(parts, whole)
    whole.finish(folder / "all.npz")
    joined = Predictions.read(folder / "all.npz")
    assert joined.arrays["targets"].tolist() == list(range(2 * count))
    assert np.array_equal(joined.arrays["outputs"], torch.cat([outputs for _, outputs in batches]))
    assert joined.sizes == [2] * count
