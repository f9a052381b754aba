"""File of predictions: whatever is written comes back as the same batches."""

from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainyard.errors import TrainyardError
from trainyard.hooks.predictions import file as module
from trainyard.hooks.predictions.file import META, MissingError, Predictions, PredictionWriter, UnfitError, join


def written(path: Path, batches: list[tuple[Any, Any]], **options: Any) -> Predictions:
    writer = PredictionWriter(path, **options)
    for batch, outputs in batches:
        writer.add(batch, outputs)
    writer.finish(split="test")
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # the temporary one is gone
    return Predictions.read(path)


def same(one: Any, other: Any) -> None:
    """Nests of tensors that are equal to the bit."""
    if isinstance(one, Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.numel() == 0 or torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
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


def test_what_the_columns_are_called(tmp_path: Path) -> None:
    outputs = {"logits": torch.zeros(2, 3), "parts": (torch.ones(2), [torch.zeros(2, 1, 4)])}
    batch = {"image": torch.zeros(2, 5), "label": torch.tensor([1, 2]), "path": ["a", "b"]}
    written(tmp_path / "a.parquet", [(batch, outputs)], inputs=True)
    frame = pd.read_parquet(tmp_path / "a.parquet")
    assert frame["targets"].tolist() == [1, 2]
    assert {name: np.stack(frame[name]).shape for name in frame} == {
        "index": (2,),
        "outputs.logits": (2, 3),
        "outputs.parts.0": (2,),
        "outputs.parts.1.0": (2, 4),
        "batch.image": (2, 5),
        "targets": (2,),
    }


integers = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64]
floats = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.complex64]
dtypes = st.sampled_from([*integers, *floats, torch.bool])
nests = st.recursive(
    st.tuples(dtypes, st.lists(st.integers(0, 3), max_size=2)) | st.none(),
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
        numbers = torch.randn(n, *shape) * 100
        if numbers.numel():
            numbers.view(-1)[0] = float("nan") if dtype.is_floating_point else 1
        return (numbers if dtype.is_floating_point or dtype.is_complex else numbers.abs()).to(dtype)
    return type(nest)(made(entry, n) for entry in nest)


@settings(max_examples=25)
@given(data=st.data(), nest=nests, sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4))
@pytest.mark.parametrize("group_bytes", [1, 100, 1 << 22])
def test_batches_come_back(
    group_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    nest: Any,
    sizes: list[int],
) -> None:
    monkeypatch.setattr(module, "GROUP_BYTES", group_bytes)
    kind = data.draw(st.sampled_from(["tuple", "list", "dict"]))
    batches = []
    for n in sizes:
        x, y = torch.randn(n, 2), torch.randint(5, (n,))
        batch: Any = {"x": x, "label": y} if kind == "dict" else (x, y) if kind == "tuple" else [x, y]
        batches.append((batch, made(nest, n)))
    folder = tmp_path_factory.mktemp("one")
    predictions = written(folder / "a.parquet", batches, inputs=True)
    for (batch, outputs), (their_batch, theirs) in zip(batches, predictions.batches(), strict=True):
        same(batch, their_batch)
        same(outputs, theirs)
    size = data.draw(st.integers(1, 9))
    labels = [batch["label"] if kind == "dict" else batch[1] for batch, _ in predictions.batches(size)]
    assert [len(label) for label in labels[:-1]] == [size] * (len(labels) - 1)
    assert torch.equal(torch.cat(labels), torch.cat([b["label"] if kind == "dict" else b[1] for b, _ in batches]))
    assert len(predictions) == sum(sizes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_number_of_half_precision_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    """All 65,536, each NaN and both zeros among them."""
    outputs = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    predictions = written(tmp_path / "a.parquet", [((0, torch.zeros(1 << 16)), outputs)])
    ((_, found),) = predictions.batches()
    same(outputs, found)
    frame = pd.read_parquet(tmp_path / "a.parquet")
    assert frame["outputs"].dtype == (np.float16 if dtype == torch.float16 else np.float32)
    np.testing.assert_array_equal(frame["outputs"], outputs.float())


def test_every_kind_of_nan_comes_back(tmp_path: Path) -> None:
    outputs = torch.tensor([0x7FC00000, 0x7FC00001, 0x7F800001, -1, -0x80000000, 0], dtype=torch.int32).view(
        torch.float32
    )
    ((_, found),) = written(tmp_path / "a.parquet", [((0, torch.zeros(6)), outputs)]).batches()
    same(outputs, found)


def test_pandas_reads_it(tmp_path: Path) -> None:
    outputs, target = torch.randn(4, 3), torch.arange(4)
    written(tmp_path / "a.parquet", [((0, target), outputs)], index=[3, 0, 2, 1])
    frame = pd.read_parquet(tmp_path / "a.parquet")
    assert frame["index"].tolist() == [3, 0, 2, 1]
    assert frame["targets"].tolist() == [0, 1, 2, 3]
    assert np.array_equal(np.stack(frame["outputs"]), outputs)
    assert json.loads(pq.read_metadata(tmp_path / "a.parquet").metadata[META.encode()])["split"] == "test"


def test_rows_that_the_index_does_not_have(tmp_path: Path) -> None:
    batches = [((0, torch.zeros(2)), torch.zeros(2))] * 3
    written(tmp_path / "a.parquet", batches, index=[4, 2, 0])
    assert pq.read_table(tmp_path / "a.parquet")["index"].to_pylist() == [4, 2, 0, None, None, None]


def test_memory_holds_one_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP_BYTES", 1000)
    writer = PredictionWriter(tmp_path / "a.parquet")
    outputs = torch.randn(10, 8)  # with a target of 40 bytes, 360
    for number in range(20):
        writer.add((0, torch.zeros(10)), outputs + number)
        assert sum(array.nbytes for arrays in writer._gathered for array in arrays.values()) <= 720
    writer.finish()
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    assert [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)] == [20] * 10
    for number, (_, found) in enumerate(Predictions.read(tmp_path / "a.parquet").batches()):
        same(outputs + number, found)


def test_outputs_may_be_overwritten_afterwards(tmp_path: Path) -> None:
    """As a captured step does, whose outputs are the same memory each time."""
    writer = PredictionWriter(tmp_path / "a.parquet")
    outputs, target = torch.zeros(2), torch.zeros(2)
    for number in range(3):
        writer.add((0, target), outputs.fill_(number))
    writer.finish()
    found = [outputs.tolist() for _, outputs in Predictions.read(tmp_path / "a.parquet").batches()]
    assert found == [[0, 0], [1, 1], [2, 2]]


def test_the_file_has_its_name_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP_BYTES", 1)
    (tmp_path / "a.parquet").write_text("the one before")
    for end in ("close", "finish"):
        writer = PredictionWriter(tmp_path / "a.parquet")
        for _ in range(3):
            writer.add((0, torch.zeros(2)), torch.zeros(2))
        assert (tmp_path / "a.parquet").read_text() == "the one before"
        assert len(list(tmp_path.iterdir())) == 2
        getattr(writer, end)()
        assert [file.name for file in tmp_path.iterdir()] == ["a.parquet"]
    assert len(Predictions.read(tmp_path / "a.parquet")) == 6


def test_a_batch_without_a_target(tmp_path: Path) -> None:
    written(tmp_path / "a.parquet", [(torch.zeros(2), torch.ones(2))])
    assert set(pd.read_parquet(tmp_path / "a.parquet")) == {"index", "outputs"}


def test_what_is_not_there_says_so_when_it_is_read(tmp_path: Path) -> None:
    batch = {"image": torch.zeros(2, 3), "meta": ("a", torch.zeros(2)), "label": torch.zeros(2)}
    ((found, _),) = written(tmp_path / "a.parquet", [(batch, torch.zeros(2))]).batches()
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
        with pytest.raises(MissingError, match=r"the metric reads batch\.image, .*inputs=true"):
            read()
    with pytest.raises(MissingError, match=r"batch\.meta\.1"):
        part.mean()
    (tmp_path / "b").mkdir()
    outputs = {"scores": torch.zeros(2), "names": np.zeros(2)}
    ((_, predicted),) = written(tmp_path / "b" / "b.parquet", [(batch, outputs)]).batches()
    with pytest.raises(MissingError, match=r"reads outputs\.names, .* The file contains only tensors\."):
        len(predicted["names"])


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("batches", "why"),
    [
        ([(torch.zeros(2), torch.zeros(3))], "outputs .3., targets .2."),
        ([(torch.zeros(2), torch.tensor(1.0))], "outputs .., targets"),
        ([(torch.zeros(2), (torch.zeros(2, 1), torch.zeros(1)))], "row for each sample: outputs.0"),
        ([(torch.zeros(2), torch.zeros(2, 3)), (torch.zeros(2), torch.zeros(2, 4))], r"float32 \[4\] in one batch"),
        ([(torch.zeros(2), torch.zeros(2)), (torch.zeros(2), torch.zeros(2).double())], "float64"),
        ([(torch.zeros(2), torch.zeros(2)), (torch.zeros(2), (torch.zeros(2),))], "nesting"),
        ([(torch.zeros(2), {"a.b": torch.zeros(2), "a": {"b": torch.zeros(2)}})], "two tensors .* outputs.a.b"),
        ([(torch.zeros(2), {0: torch.zeros(2)})], "not strings"),
        ([(torch.zeros(2), torch.zeros(2, 2).to_sparse())], "cannot be converted to an array"),
        ([(torch.zeros(2), torch.zeros(2, 300))], "more than 0.002 MB"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, batches: list[tuple[Tensor, Any]], why: str) -> None:
    writer = PredictionWriter(tmp_path / "a.parquet", max_bytes=2000)
    *before, (target, outputs) = batches
    for earlier in before:
        writer.add((0, earlier[0]), earlier[1])
    with pytest.raises(UnfitError, match=why):
        writer.add((0, target), outputs)
    writer.close()
    assert not list(tmp_path.iterdir())


def test_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(UnfitError, match="no sample"):
        PredictionWriter(tmp_path / "a.parquet").finish()
    assert not list(tmp_path.iterdir())


def test_named_tuples_are_tuples(tmp_path: Path) -> None:
    point = Point(torch.zeros(2), torch.ones(2))
    ((_, outputs),) = written(tmp_path / "a.parquet", [((0, torch.zeros(2)), point)]).batches()
    same(outputs, tuple(point))


@pytest.mark.parametrize("kind", ["absent", "text", "empty", "cut", "other", "rows", "structure", "type", "folder"])
def test_what_is_no_such_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.parquet"
    written(path, [((0, torch.zeros(2)), torch.zeros(2))])
    says = "not a predictions file"
    match kind:
        case "absent":
            path.unlink()
            says = "does not exist"
        case "text":
            path.write_text("accuracy 0.9")
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(path.read_bytes()[:-20])
        case "other":
            pd.DataFrame({"x": [1, 2]}).to_parquet(path)
        case "rows":
            noted(path, sizes=[3])
        case "structure":
            noted(path, structure={"batch": None, "outputs": {"tensor": "logits"}})
        case "type":
            noted(path, columns={"outputs": ["nn", []], "targets": ["float32", []]})
        case "folder":
            path.unlink()
            path.mkdir()
    with pytest.raises(TrainyardError, match=says) as error:
        Predictions.read(path)
    assert str(path) in str(error.value)


def noted(path: Path, **changed: Any) -> None:
    """Change what the file says of its columns."""
    table = pq.read_table(path)
    meta = json.loads(pq.read_metadata(path).metadata[META.encode()])
    pq.write_table(table.replace_schema_metadata({META: json.dumps(meta | changed)}), path)


def test_a_file_of_another_version_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    written(path, [((0, torch.zeros(2)), torch.zeros(2))])
    noted(path, version=1)
    with pytest.raises(TrainyardError, match=r"a.parquet has version 1 .* version 2 is required\. Run the test again"):
        Predictions.read(path)
    np.savez(tmp_path / "predictions.npz", outputs=np.zeros(3))
    with pytest.raises(TrainyardError, match=r"predictions.npz is a zip .*\.npz .*not a parquet file\. Run the test"):
        Predictions.read(tmp_path / "predictions.npz")


def test_a_page_that_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    predictions = written(path, [((0, torch.zeros(2)), torch.rand(2, 500))])
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(TrainyardError, match=r"a\.parquet is not a predictions file, or it is damaged"):
        list(predictions.batches())


@settings(max_examples=20)
@given(count=st.integers(1, 9), ranks=st.integers(1, 3))
def test_ranks_take_turns(tmp_path_factory: pytest.TempPathFactory, count: int, ranks: int) -> None:
    folder = tmp_path_factory.mktemp("ranks")
    batches = [((torch.zeros(2), torch.tensor([2 * i, 2 * i + 1])), torch.randn(2, 3)) for i in range(count)]
    parts = []
    for rank in range(min(ranks, count)):
        writer = PredictionWriter(folder / f"{rank}.parquet")
        for batch, outputs in batches[rank::ranks]:
            writer.add(batch, outputs)
        writer.finish()
        parts.append(Predictions.read(folder / f"{rank}.parquet"))
    whole = PredictionWriter(folder / "all.parquet")
    join(parts, whole)
    whole.finish()
    joined = Predictions.read(folder / "all.parquet")
    ((batch, outputs),) = joined.batches(len(joined))
    assert batch[1].tolist() == list(range(2 * count))
    assert torch.equal(outputs, torch.cat([outputs for _, outputs in batches]))
    assert joined.sizes == [2] * count
