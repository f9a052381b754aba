"""Tokens on disk, and streams of shards: what they serve, and where a resumed run goes on."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from data_runs import resumes_to_the_bits, stack_follows_members, trained, training
from hypothesis import given
from hypothesis import strategies as st

from trainyard.data import Stream, Tokens, WindowLoader
from trainyard.data import stream as streams
from trainyard.errors import ConfigError, TrainyardError

CPU = torch.device("cpu")
IDS = np.random.default_rng(0).integers(0, 50, 1000)
LANGUAGE = {
    "_target_": "trainyard.models.Transformer",
    "vocab_size": "auto",
    "context_length": "auto",
    "dim": 8,
    "heads": 2,
    "layers": 1,
}


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, Any]:
    IDS.astype(np.uint16).tofile(tmp_path / "ids.bin")
    return {
        "_target_": "trainyard.data.Tokens",
        "path": str(tmp_path / "ids.bin"),
        "context_length": 8,
        "batch_size": 16,
    }


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "uint32", "int64"])
def test_files_serve_the_windows_of_their_tokens(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "ids.npy", IDS.astype(dtype))
    IDS.astype(dtype).tofile(tmp_path / "ids.bin")
    for name in ("ids.npy", "ids.bin"):
        data = Tokens(str(tmp_path / name), dtype, context_length=8, batch_size=16)
        assert data.spec == {"vocab_size": 50, "context_length": 8}
        assert [len(data.sources[split][0]) for split in ("train", "val", "test")] == [900, 50, 50]
        loader = data.loader("train", seed=3, device=CPU)
        expected = WindowLoader(torch.from_numpy(IDS[:900]), 8, 8, 16, shuffle=True, seed=3)
        for ours, theirs in zip(loader.batches(2, 3), expected.batches(2, 3), strict=True):
            assert all(torch.equal(a, b) and a.dtype == torch.int64 for a, b in zip(ours, theirs, strict=True))
        first, following = next(data.loader("test", seed=0, device=CPU).batches())
        assert first[0].tolist() == IDS[950:958].tolist()
        assert following[0].tolist() == IDS[951:959].tolist()


def test_files_of_their_own_for_the_splits(tokens: dict[str, Any], tmp_path: Path) -> None:
    np.save(tmp_path / "val.npy", IDS[:100].astype(np.uint16))
    data = Tokens(tokens["path"], val_path=str(tmp_path / "val.npy"), test_fraction=0, context_length=8, vocab_size=64)
    assert data.splits == ("train", "val")
    assert data.spec["vocab_size"] == 64


def refused(kind: Any, key: str, match: str, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        kind(*args, **kwargs)
    assert caught.value.key == key


def test_what_is_no_file_of_tokens(tokens: dict[str, Any], tmp_path: Path) -> None:
    refused(Tokens, "path", "Did you mean", tokens["path"].replace("ids", "isd"))
    refused(Tokens, "dtype", "uint16", tokens["path"], "float32")
    refused(Tokens, "context_length", "less than 50", tokens["path"], context_length=100)
    refused(Tokens, "val_fraction", "the val part has 0 tokens", tokens["path"], val_fraction=1e-6, test_fraction=0)
    np.save(tmp_path / "one.npy", IDS[:1].astype(np.uint16))
    one = str(tmp_path / "one.npy")
    refused(Tokens, "val_path", "a file with more tokens.* the val part has 1 token", tokens["path"], val_path=one)
    refused(Tokens, "path", "the train part has 1 token", one, val_fraction=0, test_fraction=0)
    (tmp_path / "odd.bin").write_bytes(b"abc")
    refused(Tokens, "path", "The file has 3 bytes", str(tmp_path / "odd.bin"))
    (tmp_path / "odd.bin").write_bytes(b"")
    told = r"numbers of 1 byte each \(data.dtype=uint8\)"
    refused(Tokens, "path", told, str(tmp_path / "odd.bin"), dtype="uint8")
    np.save(tmp_path / "swapped.npy", IDS.astype(">i4"))
    refused(Tokens, "path", "in the byte order of this machine, not >i4", str(tmp_path / "swapped.npy"))
    np.save(tmp_path / "floats.npy", np.zeros(9))
    refused(Tokens, "path", "one-dimensional array of integers", str(tmp_path / "floats.npy"))
    np.save(tmp_path / "negative.npy", -IDS[IDS > 0])
    negative = str(tmp_path / "negative.npy")
    refused(Tokens, "path", "tokens of at least 0, not -49, read as int64", negative)
    refused(Tokens, "test_path", "tokens of at least 0, not -49", tokens["path"], test_path=negative)
    np.save(tmp_path / "empty.npy", np.zeros(0, dtype=np.uint16))
    refused(Tokens, "path", "The array is empty", str(tmp_path / "empty.npy"))
    (tmp_path / "broken.npy").write_bytes(b"abc")
    refused(Tokens, "path", "Reading the file failed", str(tmp_path / "broken.npy"))
    with (tmp_path / "archive.npy").open("wb") as file:
        np.savez(file, ids=IDS)
    refused(Tokens, "path", "a file of tokens in the .npy format.*magic string", str(tmp_path / "archive.npy"))


def test_a_token_outside_the_vocabulary(tokens: dict[str, Any], tmp_path: Path) -> None:
    told = r"^data\.vocab_size: 49 is invalid. Expected at least 50, because the data contains the token 49\."
    with pytest.raises(ConfigError, match=told):
        trained(training(tokens | {"vocab_size": 49}, LANGUAGE))
    np.save(tmp_path / "negative.npy", IDS - 1)
    data = Tokens(str(tmp_path / "negative.npy"), vocab_size=50, context_length=8)
    with pytest.raises(ConfigError, match="Expected tokens of at least 0, but the data contains the token -1"):
        list(data.loader("train", seed=0, device=CPU).batches())


def test_tokens_resume_to_the_bits(tokens: dict[str, Any], tmp_path: Path) -> None:
    resumes_to_the_bits(training(tokens, LANGUAGE), tmp_path, 10)


def test_a_stack_over_tokens_follows_its_members(tokens: dict[str, Any]) -> None:
    stack_follows_members(training(tokens, LANGUAGE))


# --- streams

SIZES = [13, 0, 1, 40, 7, 29]


def shards(folder: Path, sizes: Any = SIZES, suffix: str = ".npz") -> str:
    first = 0
    for number, size in enumerate(sizes):
        x = np.arange(first, first + size, dtype=np.float32)[:, None] / 100
        y = (np.arange(first, first + size) % 3).astype(np.int64)
        first += size
        path = folder / f"{number}{suffix}"
        frame = pd.DataFrame({"x": x[:, 0], "y": y})
        if suffix == ".npz":
            np.savez(path, x=x, y=y)
        elif suffix == ".csv":
            frame.to_csv(path, index=False)
        else:
            frame.to_parquet(path)
    return str(folder / f"*{suffix}")


def numbers(batches: Any) -> list[int]:
    return [round(float(value) * 100) for x, _ in batches for value in x[:, 0]]


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet"])
def test_an_epoch_serves_every_row_once(tmp_path: Path, suffix: str) -> None:
    data = Stream(shards(tmp_path, suffix=suffix), target="y", num_classes=3, batch_size=8)
    loader = data.loader("train", seed=1, device=CPU)
    epochs = [list(loader.batches(epoch)) for epoch in range(2)]
    for batches in epochs:
        assert [len(x) for x, _ in batches] == [8] * 11 + [2]
        assert sorted(numbers(batches)) == list(range(90))
        assert all((y == (x[:, 0] * 100).round().long() % 3).all() for x, y in batches)
    assert numbers(epochs[0]) != numbers(epochs[1])
    assert data.spec == {"input_shape": [1], "in_features": 1, "num_classes": 3}


@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any),
    batch=st.integers(1, 9),
    epoch=st.integers(0, 2),
    drop=st.booleans(),
)
def test_a_start_at_any_batch_serves_the_rest(
    sizes: Any, batch: int, epoch: int, drop: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    options: Any = {"target": "y", "num_classes": 3, "batch_size": batch, "drop_last": drop}
    loader = Stream(shards(folder, sizes), **options).loader("train", seed=4, device=CPU)
    whole = list(loader.batches(epoch))
    for start in range(len(whole) + 1):
        assert numbers(loader.batches(epoch, start)) == numbers(whole[start:])
    with pytest.raises(TrainyardError, match="the data has changed"):
        list(loader.batches(epoch, len(whole) + 2))


def test_shards_of_an_evaluation_are_named(tmp_path: Path) -> None:
    for split in ("val", "test"):
        (tmp_path / split).mkdir()
    more = {f"{split}_shards": shards(tmp_path / split, [3]) for split in ("val", "test")}
    data = Stream(shards(tmp_path), num_classes=3, **more)
    for split in ("val", "test"):
        loader = data.loader(split, seed=0, device=CPU)
        with pytest.raises(
            TrainyardError, match=rf"^data\.{split}_shards: The data ends .* already read 4: the data has"
        ):
            list(loader.batches(0, 4))
        (tmp_path / split / "0.npz").write_bytes(b"broken")
        with pytest.raises(ConfigError, match="Reading the file failed") as caught:
            list(loader.batches())
        assert caught.value.key == f"{split}_shards"


def test_a_start_reads_no_shard_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    inner = streams.read_shard
    monkeypatch.setattr(streams, "read_shard", lambda key, path, *rest: (read.append(path), inner(key, path, *rest))[1])  # type: ignore[func-returns-value]
    data = Stream(shards(tmp_path, [8] * 10), num_classes=3, batch_size=8)
    read.clear()
    list(data.loader("train", seed=0, device=CPU).batches(0, 7))
    assert len(read) == 3


def test_what_is_no_stream(tmp_path: Path) -> None:
    pattern = shards(tmp_path)
    refused(Stream, "shards", "that matches files", str(tmp_path / "none*"))
    told = "the targets are values from 0 to 2. Expected one class per row, an integer from 0 to 1"
    refused(Stream, "target", told, pattern, num_classes=2)
    refused(Stream, "eval_batch_size", "0 is invalid", pattern, num_classes=3, eval_batch_size=0)
    (tmp_path / "notes.txt").write_text("no")
    refused(Stream, "shards", "end in one of", str(tmp_path / "*"))
    texts = pd.DataFrame({"word": ["a", "b"], "y": [0, 1]})
    texts.to_csv(tmp_path / "texts.csv", index=False)
    pairs = ["y", "z"]
    pd.DataFrame({"x": [0.5, 1.5], "y": [0, 1], "z": [1, 0]}).to_csv(tmp_path / "pairs.csv", index=False)
    told = "there are 2 targets per row. Expected one class per row"
    refused(Stream, "target", told, str(tmp_path / "pairs.csv"), target=pairs, num_classes=2)
    refused(Stream, "features", "must be numbers", str(tmp_path / "texts.csv"), target="y", num_classes=2)
    (tmp_path / "0.npz").write_bytes(b"broken")
    refused(Stream, "shards", "Reading the file failed", pattern, num_classes=3)


def test_each_shard_serves_the_columns_of_the_first(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0], "y": [0, 1]})
    frame.to_csv(tmp_path / "0.csv", index=False)
    frame[["b", "y", "a"]].assign(c=5.0).to_csv(tmp_path / "1.csv", index=False)
    data = Stream(str(tmp_path / "*.csv"), target="y", num_classes=2, shuffle=False)
    (batch,) = data.loader("train", seed=0, device=CPU).batches()
    assert batch[0].tolist() == [[1.0, 3.0], [2.0, 4.0]] * 2
    texts = str(tmp_path / "texts.npz")
    np.savez(texts, x=frame[["a"]].to_numpy(), y=np.array(["no", "yes"]))
    refused(Stream, "target", "the targets are strings. Expected numbers in .*, because data.num_classes=null", texts)
    refused(Stream, "target", "the targets are strings. Expected one class per row", texts, num_classes=2)
    np.savez(texts, X=frame[["a"]].to_numpy())
    refused(Stream, "shards", "failed: There is no item named 'x.npy'", texts)


@pytest.mark.parametrize("missing", ["b", "y"])
@pytest.mark.parametrize("features", [None, ["a", "b"]])
def test_a_column_that_a_later_shard_lacks_is_an_error_of_the_shard(
    tmp_path: Path, missing: str, features: Any
) -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0], "y": [0, 1]})
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
        frame.to_csv(tmp_path / name / "0.csv", index=False)
        frame.drop(columns=missing).to_csv(tmp_path / name / "1.csv", index=False)
    given = {f"{split}shards": str(tmp_path / name / "*.csv") for split, name in (("", "train"), ("val_", "val"))}
    data = Stream(**given, target="y", features=features, num_classes=2, shuffle=False)
    told = rf"1.csv' is invalid. Expected a table with the columns of .*train.0.csv; the column '{missing}' is missing"
    for split, key in (("train", "shards"), ("val", "val_shards")):
        with pytest.raises(ConfigError, match=told) as caught:
            list(data.loader(split, seed=0, device=CPU).batches())
        assert caught.value.key == key
    with pytest.raises(ConfigError, match="one of the columns") as caught:
        Stream(given["shards"], target="y", features=["a", "c"], num_classes=2)
    assert caught.value.key == "features"


def test_a_later_shard_of_another_form_is_named(tmp_path: Path) -> None:
    arrays = {"x": np.zeros((4, 2), np.float32), "y": np.zeros((4, 2), np.float32)}
    for other, told in (
        ({"x": np.zeros((4, 3), np.float32)}, r"inputs of shape \[N, 2\], as in .*0.npz, not \[N, 3\]"),
        ({"y": np.zeros(4, np.float32)}, r"targets of shape \[N, 2\], as in .*0.npz, not \[N\]"),
        ({"y": None}, r"a file with the targets under 'y'\. The file contains x\."),
    ):
        np.savez(tmp_path / "0.npz", **arrays)
        held: Any = {name: array for name, array in (arrays | other).items() if array is not None}
        np.savez(tmp_path / "1.npz", **held)
        data = Stream(str(tmp_path / "*.npz"), shuffle=False)
        with pytest.raises(ConfigError, match=rf"1.npz' is invalid. Expected {told}") as caught:
            list(data.loader("train", seed=0, device=CPU).batches())
        assert caught.value.key == "shards"


MODEL = {
    "_target_": "trainyard.models.MLP",
    "in_features": "auto",
    "num_classes": "auto",
    "hidden": [8],
    "loss": "auto",
}


def test_in_a_run_the_key_of_a_shard_is_that_of_the_config(tmp_path: Path) -> None:
    pattern = shards(tmp_path)
    (tmp_path / "5.npz").write_bytes(b"broken")
    data = {"_target_": "trainyard.data.Stream", "shards": pattern, "num_classes": 3, "shuffle": False}
    with pytest.raises(ConfigError, match=r"^data\.shards: '.*5.npz' is invalid"):
        trained(training(data, MODEL))


@pytest.mark.parametrize("classes", [3, None])
def test_streams_resume_to_the_bits(tmp_path: Path, classes: Any) -> None:
    pattern = shards(tmp_path)
    data = {"_target_": "trainyard.data.Stream", "shards": pattern, "val_shards": pattern, "num_classes": classes}
    metric = {"_target_": f"trainyard.metrics.{'CrossEntropy' if classes else 'MeanSquaredError'}"}
    values = training(data | {"batch_size": 8}, MODEL, metric={"loss": metric})
    resumes_to_the_bits(values, tmp_path, 17)
