"""The user's own arrays and tables."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from trainyard.config.build import build
from trainyard.data import Arrays
from trainyard.errors import ConfigError

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3)).astype(np.float32)
LABELS = np.arange(40) % 4 * 10  # 0, 10, 20, 30
FRAME = pd.DataFrame(
    {"a": X[:, 0], "b": X[:, 1], "count": np.arange(40), "kind": np.array(["cat", "dog"])[LABELS % 20 // 10]}
)


@pytest.fixture
def save(tmp_path: Path) -> Any:
    def save(name: Any, **arrays: Any) -> Any:
        np.savez(tmp_path / name, **arrays)
        return str(tmp_path / name)

    return save


@pytest.fixture
def table(tmp_path: Path) -> Any:
    def table(name: Any, frame: Any = FRAME) -> Any:
        path = tmp_path / name
        frame.to_csv(path, index=False) if name.endswith("csv") else frame.to_parquet(path)
        return str(path)

    return table


def everything(data: Any) -> Any:
    parts = [data.sources[split] for split in data.splits]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def pairs(x: Any, y: Any) -> Any:
    return sorted((*np.asarray(row).ravel().tolist(), label) for row, label in zip(x, y, strict=True))


# --- npz and npy


def test_npz_of_one_set_is_split(save: Any) -> None:
    data = Arrays(save("set.npz", x=X, y=LABELS), val_fraction=0.2, test_fraction=0.1)
    assert {split: len(data.sources[split][0]) for split in data.splits} == {"train": 28, "val": 8, "test": 4}
    x, y = everything(data)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert pairs(x.numpy(), y.tolist()) == pairs(X, (LABELS // 10).tolist())
    assert data.classes == [0, 10, 20, 30]
    assert data.spec == {"input_shape": [3], "in_features": 3, "num_classes": 4}
    assert torch.bincount(data.sources["val"][1]).tolist() == [2, 2, 2, 2]
    batch = next(data.loader("train", seed=0, device=CPU).batches())
    assert batch[0].shape == (28, 3)


def test_npz_with_splits_of_its_own(save: Any) -> None:
    path = save("set.npz", x_train=X[:30], y_train=LABELS[:30], x_test=X[30:], y_test=LABELS[30:])
    data = Arrays(path, val_fraction=0.2)
    assert {split: len(data.sources[split][0]) for split in data.splits} == {"train": 24, "val": 6, "test": 10}
    assert torch.equal(data.sources["test"][0], torch.from_numpy(X[30:]))
    assert Arrays(path, val_fraction=0).splits == ("train", "test")


def test_npz_with_another_key_for_the_target(save: Any) -> None:
    data = Arrays(save("set.npz", x=X, label=LABELS), target="label")
    assert data.spec["num_classes"] == 4


def test_images_keep_their_shape(save: Any) -> None:
    images = RNG.integers(0, 256, (40, 3, 5, 5), dtype=np.uint8)
    data = Arrays(save("set.npz", x=images, y=LABELS), val_fraction=0, test_fraction=0)
    assert data.spec == {
        "input_shape": [3, 5, 5],
        "in_features": 75,
        "in_channels": 3,
        "image_size": 5,
        "num_classes": 4,
    }
    assert torch.equal(data.sources["train"][0], torch.from_numpy(images).float())


def test_a_lone_feature_is_a_column(save: Any) -> None:
    assert Arrays(save("set.npz", x=X[:, 0], y=LABELS[:, None])).spec["input_shape"] == [1]


def test_npy_pair(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", LABELS.astype(str))
    data = Arrays(str(tmp_path / "x.npy"), str(tmp_path / "y.npy"))
    assert data.classes == ["0", "10", "20", "30"]


@pytest.mark.parametrize("y", [X[:, 0].astype(np.float64), X[:, :2]], ids=["one", "two"])
def test_float_targets_are_for_regression(save: Any, y: Any) -> None:
    data = Arrays(save("set.npz", x=X, y=y))
    facts = {"out_features": 1 if y.ndim == 1 else 2, "loss": {"_target_": "torch.nn.MSELoss"}}
    assert data.spec == {"input_shape": [3], "in_features": 3, **facts}
    assert data.classes == []
    served = everything(data)[1]
    assert served.dtype == torch.float32
    assert served.shape == y.shape


# --- tables


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_of_classes(table: Any, suffix: str) -> None:
    data = Arrays(table(f"set.{suffix}"), target="kind")
    assert data.classes == ["cat", "dog"]
    assert data.spec == {"input_shape": [3], "in_features": 3, "num_classes": 2}
    x, y = everything(data)
    expected = FRAME[["a", "b", "count"]].to_numpy(np.float32)
    assert pairs(x.numpy(), y.tolist()) == pairs(expected, (FRAME["kind"] == "dog").astype(int).tolist())


def test_integer_targets_are_classes_unless_told_otherwise(table: Any) -> None:
    path = table("set.csv")
    assert Arrays(path, "count", features=["a", "b"], val_fraction=0, test_fraction=0).spec["num_classes"] == 40
    data = Arrays(path, "count", features=["a", "b"], task="regression")
    assert (data.spec["in_features"], data.spec["out_features"]) == (2, 1)
    assert data.sources["train"][1].dtype == torch.float32


def test_whole_numbers_for_validation_in_a_regression(table: Any) -> None:
    """A column is read as integers if all its numbers are whole."""
    path, whole = table("set.csv"), table("whole.csv", FRAME.assign(a=FRAME["count"]))
    for train, val, task in ((path, whole, "auto"), (whole, path, "regression")):
        data = Arrays(train, "a", features=["b"], task=task, val_path=val)
        assert data.spec["out_features"] == 1
        assert [data.sources[split][1].dtype for split in data.splits] == [torch.float32] * 3
    with pytest.raises(ConfigError, match=r"the targets are strings\. Expected numbers"):
        Arrays(path, "a", features=["b"], val_path=table("texts.csv", FRAME.assign(a=FRAME["kind"])))
    with pytest.raises(ConfigError, match=r"the targets are floats\. Expected integers"):
        Arrays(whole, "a", features=["b"], val_path=path)


def test_several_target_columns(table: Any) -> None:
    data = Arrays(table("set.csv"), ["a", "count"], features=["b"])
    assert data.spec["out_features"] == 2
    assert data.sources["train"][1].shape == (32, 2)
    with pytest.raises(ConfigError, match=r"target: None is invalid.*column to predict, or a list of several names"):
        Arrays(table("set.csv"))


def test_booleans_and_nullable_columns(table: Any) -> None:
    frame = FRAME.assign(flag=FRAME["count"] > 3, count=FRAME["count"].astype("Int64"))
    data = Arrays(table("set.parquet", frame), "flag", features=["count", "a"])
    assert data.classes == [0, 1]
    assert data.sources["train"][0].shape == (32, 2)


def test_files_of_their_own_for_the_splits(table: Any) -> None:
    train, val = table("train.csv", FRAME[:25]), table("val.csv", FRAME[25:])
    data = Arrays(train, "kind", val_path=val, test_fraction=0.2)
    assert {split: len(data.sources[split][0]) for split in data.splits} == {"train": 20, "val": 15, "test": 5}
    assert data.sources["val"][0][:, 2].tolist() == list(range(25, 40))


def test_classes_are_those_of_all_files(table: Any) -> None:
    data = Arrays(table("a.csv", FRAME[FRAME["kind"] == "dog"]), "kind", val_path=table("b.csv"))
    assert data.classes == ["cat", "dog"]
    assert data.sources["train"][1].unique().tolist() == [1]


# --- standardisation


def preprocessed(data: Any, split: str) -> Any:
    """The inputs of a split as the model gets them."""
    return build(dict(data.preprocessor), "data.preprocessor")(data.sources[split])[0]


def test_standardisation_uses_the_training_split_alone(save: Any) -> None:
    x = X * [1, 100, 0] + [5, 0, 7]  # the last is constant
    data = Arrays(save("set.npz", x=x, y=LABELS), standardize=True)
    train = preprocessed(data, "train")
    assert train[:, :2].mean(0).abs().max() < 1e-5
    assert (train[:, :2].std(0, unbiased=False) - 1).abs().max() < 1e-5
    assert (train[:, 2] == 0).all()
    assert preprocessed(data, "val")[:, :2].mean(0).abs().max() > 1e-3
    raw = Arrays(save("set.npz", x=x, y=LABELS))
    assert torch.equal(data.sources["test"][0], raw.sources["test"][0])
    assert raw.preprocessor is None


def test_images_are_standardised_by_channel(save: Any) -> None:
    images = RNG.normal([[[3]], [[-1]]], 2, (40, 2, 4, 4))
    data = Arrays(save("set.npz", x=images, y=LABELS), standardize=True)
    assert len(data.preprocessor["mean"]) == 2
    assert preprocessed(data, "train").mean((0, 2, 3)).abs().max() < 1e-5


# --- what cannot work


def refused(key: Any, match: Any, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        Arrays(*args, **kwargs)
    assert caught.value.key == key


def test_wrong_targets_are_named_by_their_own_file(save: Any, tmp_path: Path) -> None:
    cube = np.zeros((len(X), 2, 2))
    x, y = str(tmp_path / "x.npy"), str(tmp_path / "targets.npy")
    np.save(x, X)
    np.save(y, cube)
    refused("target", r"targets\.npy' is invalid. Expected targets \[N\] or \[N, D\] of numbers or strings, not", x, y)
    np.save(y, np.full(len(X), np.nan))
    refused("target", r"targets\.npy' is invalid. Expected finite targets within", x, y)
    told = r"'label' is invalid. Expected targets .* or strings in .*set\.npz, not float64"
    refused("target", told, save("set.npz", x=X, label=cube), "label")
    text = tmp_path / "text.npz"
    text.write_text("no archive")
    refused("path", "strings. Reading the file failed: The content is neither in the .npy nor", str(text))
    other = str(tmp_path / "data.txt")
    Path(other).write_text("")
    refused("path", "ends in one of .npz, .npy, .csv, .parquet", other)
    refused("val_path", "ends in one of .npz, .csv, .parquet", save("set.npz", x=X, y=LABELS), val_path=other)


def test_missing_files(save: Any, tmp_path: Path) -> None:
    path = save("iris.npz", x=X, y=LABELS)
    refused("path", r"Did you mean '.*iris\.npz'", path.replace("iris", "irsi"))
    refused("path", "The folder .* does not exist", str(tmp_path / "none" / "a.npz"))
    refused("path", "path of an existing file", str(tmp_path))
    refused("val_path", "Did you mean", path, val_path=path.replace("iris", "irs"))


def test_files_of_the_wrong_kind(tmp_path: Path, save: Any) -> None:
    for name in ("notes.txt", "broken.npz", "broken.npy", "broken.parquet", "empty.csv"):
        (tmp_path / name).write_bytes(b"" if name == "empty.csv" else b"nonsense")
    refused("path", r"\.parquet", str(tmp_path / "notes.txt"))
    refused("path", "Reading the file failed", str(tmp_path / "broken.npz"))
    refused("path", "Reading the file failed", str(tmp_path / "broken.npy"), str(tmp_path / "broken.npy"))
    refused("path", "Reading the file failed", str(tmp_path / "broken.parquet"), "y")
    refused("path", "Reading the file failed", str(tmp_path / "empty.csv"), "y")
    np.savez(tmp_path / "pickled.npz", x=np.array([{}]), y=LABELS[:1])
    refused("path", "Reading the file failed", str(tmp_path / "pickled.npz"))


def test_npz_without_what_is_needed(save: Any) -> None:
    refused("path", "The file contains a, b", save("set.npz", a=X, b=LABELS))
    refused("target", "Did you mean 'label'", save("set.npz", x=X, label=LABELS), target="lable")
    refused("target", "Did you mean 'label'", save("set.npz", x_train=X, label_train=LABELS), target="lable")
    refused("path", "x_train", save("set.npz", x_val=X, y_val=LABELS))
    refused("features", "one array", save("set.npz", x=X, y=LABELS), features=["a"])
    refused("target", "key of the targets", save("set.npz", x=X, y=LABELS), target=["y"])


def test_a_separate_file_with_other_splits(save: Any) -> None:
    path = save("set.npz", x=X, y=LABELS)
    several = save("v.npz", x_train=X, y_train=LABELS, x_test=X[:5], y_test=LABELS[:5])
    refused("val_path", "x_val, or a single split. The file contains x_train, x_test", path, val_path=several)
    assert len(Arrays(path, test_path=several).sources["test"][0]) == 5


def test_npy_needs_its_target(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    refused("target", "None is invalid. Expected the path of the .npy file with the targets", str(tmp_path / "x.npy"))
    refused("val_path", "x_train", str(tmp_path / "x.npy"), str(tmp_path / "x.npy"), val_path="v.npy")


def test_npy_that_is_an_archive_and_the_reverse(tmp_path: Path, save: Any) -> None:
    np.save(tmp_path / "x.npy", X)
    archive = save("set.npz", x=X, y=LABELS)
    match = r"set\.npz' .* single array .* contains x, y\. .* ends in \.npz"
    refused("target", match, str(tmp_path / "x.npy"), archive)
    renamed = Path(archive).rename(tmp_path / "set.npy")
    refused("path", r"set\.npy' .* single array", str(renamed), str(tmp_path / "x.npy"))
    (tmp_path / "x.npy").rename(tmp_path / "x.npz")
    refused("path", "an .npz archive", str(tmp_path / "x.npz"))


def test_numbers_that_float32_cannot_represent(table: Any, save: Any) -> None:
    large = X.astype(np.float64)
    large[7, 1] = -1e39
    refused(
        "path",
        r"range of float32; row 7, column 1 \(counted from 0\) contains -1e\+39",
        save("set.npz", x=large, y=LABELS),
    )
    refused(
        "target", r"finite targets .*; row 7 \(counted from 0\) contains -1e\+39", save("set.npz", x=X, y=large[:, 1])
    )
    images = np.where(np.arange(40)[:, None, None, None] == 3, 1e39, np.zeros((40, 1, 2, 2)))
    refused("path", r"; row 3 \(counted from 0\) contains 1e\+39", save("set.npz", x=images, y=LABELS))
    frame = FRAME.assign(b=large[:, 1])
    for name, where in (("set.csv", "line 9"), ("set.parquet", r"row 7 \(counted from 0\)")):
        said = rf"'b' .*; in this column, {where} of .*{name} contains -1e"
        refused("features", said, table(name, frame), target="kind")
        refused("target", said, table(name, frame), target="b", features=["a"])
        refused("target", said, table(name, frame), target=["a", "b"], features=["count"])
    largest = Arrays(save("set.npz", x=np.where(np.isinf(X), 0, np.finfo(np.float32).max), y=LABELS))
    assert all(torch.isfinite(largest.sources[split][0]).all() for split in largest.splits)


def test_arrays_that_do_not_fit(save: Any) -> None:
    refused("path", "not 39 targets for 40 inputs", save("set.npz", x=X, y=LABELS[:39]))
    refused("path", "not 1 target for 40 inputs", save("set.npz", x=X, y=LABELS[:1]))
    pairs = save("set.npz", x=X, y=LABELS, patients=np.zeros((40, 2)))
    refused("group", r"'patients' is invalid. Expected one group per sample: \[40\], not", pairs, group="patients")
    gap = X.copy()
    gap[7, 1] = np.nan
    refused("path", r"set.npz' is invalid. .* row 7 \(counted from 0\) contains NaN", save("set.npz", x=gap, y=LABELS))
    sets = save("set.npz", x_train=X, y_train=LABELS, x_val=gap, y_val=LABELS)
    refused("path", r"row 7 \(counted from 0\) of val contains NaN", sets)
    refused("path", "row 7", save("set.npz", x=np.where(np.isnan(gap), np.inf, gap), y=LABELS))
    refused("target", "row 7", save("set.npz", x=X, y=gap[:, 1]))
    refused("path", "numbers, not", save("set.npz", x=LABELS.astype(str), y=LABELS))
    refused("path", "of shape", save("set.npz", x=X[:0], y=LABELS[:0]))
    refused("path", "of shape", save("set.npz", x=np.float32(3), y=LABELS))
    refused("target", r"\[N, D\]", save("set.npz", x=X, y=np.zeros((40, 2, 2))))
    refused("target", "one class per sample", save("set.npz", x=X, y=np.ones((40, 2), int)))
    refused("task", "auto or classification, because", save("set.npz", x=X, y=LABELS.astype(str)), task="regression")
    refused("path", "of the split test", save("set.npz", x_train=X, y_train=LABELS, x_test=X[:, :2], y_test=LABELS))
    refused("val_path", "integers", save("set.npz", x=X, y=LABELS), val_path=save("v.npz", x=X, y=X[:, 0]))


def test_columns_that_do_not_fit(table: Any) -> None:
    path = table("set.csv")
    refused("target", "The columns are a, b", path)
    refused("target", "Did you mean 'kind'", path, target="knd")
    refused("features", "Did you mean 'count'", path, target="kind", features=["a", "cuont"])
    times = FRAME.assign(a=pd.date_range("2020", periods=40))
    refused("features", "columns of numbers", table("times.parquet", times), target="kind")
    refused("features", "other than the target", path, target="a", features=["a", "b"])
    refused("features", "at least one", path, target="a", features=[])
    refused("target", "columns of numbers", path, target=["a", "kind"], features=["b"])
    gaps = FRAME.assign(b=FRAME["b"].where(FRAME.index != 5), kind=FRAME["kind"].where(FRAME.index != 6))
    path = table("gaps.csv", gaps)
    refused("features", r"data\.missing=mean", path, target="count", features=["a", "b"])
    texts = pd.DataFrame({"a": range(150), "note": [f"patient {number}" for number in range(150)]})
    refused("target", "the targets are 150 different strings in 150 rows", table("texts.csv", texts), target="note")
    refused("features", "'b' .*; in this column, line 7 of .*gaps.csv is empty or NaN", path, target="count")
    refused("target", "in this column, line 8 of .*gaps.csv is empty", path, target="kind", features=["a"])


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a,b,kind\n1,2,x\n1,,y\n", "line 3 of"),
        ("a,b,kind\r\n1,2,x\r\n1,,y", "line 3 of"),
        ("a,b,kind\n\n1,2,x\n1,,y\n", r"row 1 \(counted from 0\) of"),
        ('a,b,kind\n1,2,"x\nx"\n1,,y\n', r"row 1 \(counted from 0\) of"),
    ],
    ids=["lines", "of Windows", "blank line", "text of two lines"],
)
def test_the_line_of_a_csv_file_is_named_if_each_row_has_one(tmp_path: Path, text: str, where: str) -> None:
    (tmp_path / "set.csv").write_bytes(text.encode())
    refused("features", f"in this column, {where} .*set.csv is empty", str(tmp_path / "set.csv"), target="kind")


@pytest.mark.parametrize(
    ("option", "value"),
    [("task", "clasification"), ("standardize", "yes"), ("split_seed", -1), ("batch_size", 0), ("val_fraction", 2)],
)
def test_bad_options(save: Any, option: str, value: int | str) -> None:
    refused(option, "Expected", save("set.npz", x=X, y=LABELS), **{option: value})
