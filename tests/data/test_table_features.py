"""Tables with gaps, categories and texts: what is measured on the training rows is the model's."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from data_runs import resumes_to_the_bits, stack_follows_members, trained, training
from sklearn.datasets import load_diabetes

from trainyard.config.build import build
from trainyard.data import Arrays
from trainyard.errors import ConfigError
from trainyard.models import MLP, DataPreprocessor, TableEncoder
from trainyard.runner import Runner
from trainyard.track.shipper.served_model import as_table

FRAME = pd.DataFrame(
    {
        "age": [20.0, 30.0, np.nan, 50.0, 60.0, 40.0],
        "town": ["Bern", "Aarau", None, "Bern", "Chur", "Bern"],
        "size": [1, 2, 3, 4, 5, 6],
        "price": [1.5, 2.5, 0.5, 1.0, 3.0, 2.0],
    }
)
ALL = {"val_fraction": 0, "test_fraction": 0}
MODEL = {
    "_target_": "trainyard.models.MLP",
    "in_features": "auto",
    "num_classes": "auto",
    "loss": "auto",
    "hidden": [8],
}
METRICS = {"mse": {"_target_": "trainyard.metrics.MeanSquaredError"}}


def saved(frame: pd.DataFrame, path: Path) -> str:
    frame.to_csv(path, index=False)
    return str(path)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return saved(FRAME, tmp_path / "table.csv")


@pytest.fixture(scope="module")
def diabetes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A regression on a real table, with a column of categories, gaps and groups."""
    frame = load_diabetes(as_frame=True, scaled=False).frame
    rng = np.random.default_rng(0)
    frame["sex"] = np.where(frame["sex"] == 1, "f", "m")
    frame.loc[rng.choice(len(frame), 30, replace=False), "bmi"] = np.nan
    frame["target"] /= 100
    frame["clinic"] = rng.integers(0, 20, len(frame))
    return {
        "_target_": "trainyard.data.Arrays",
        "path": saved(frame, tmp_path_factory.mktemp("diabetes") / "diabetes.csv"),
        "target": "target",
        "group": "clinic",
        "missing": "mean",
        "standardize": True,
    }


def encoder(data: Arrays) -> TableEncoder:
    module: TableEncoder = build(dict(data.preprocessor or {}), "data.preprocessor")
    return module


def test_a_row_becomes_numbers_categories_and_gaps(path: str) -> None:
    data = Arrays(path, "price", missing="mean", **ALL)
    assert data.sources["train"][0][2].isnan().tolist() == [True, True, False]  # served as they are
    features = encoder(data)(data.sources["train"])[0]
    assert features.tolist() == [
        # age, size; Aarau, Bern, Chur; gaps in age, in town
        [20, 1, 0, 1, 0, 0, 0],
        [30, 2, 1, 0, 0, 0, 0],
        [40, 3, 0, 0, 0, 1, 1],
        [50, 4, 0, 1, 0, 0, 0],
        [60, 5, 0, 0, 1, 0, 0],
        [40, 6, 0, 1, 0, 0, 0],
    ]
    assert data.spec["in_features"] == encoder(data).out_features == 7


def test_numbers_are_standardized_and_gaps_are_the_mean_then(path: str) -> None:
    data = Arrays(path, "price", missing="median", standardize=True, **ALL)
    features = encoder(data)(data.sources["train"])[0]
    assert features[:, :2].mean(0).abs().max() < 1e-6
    assert features[2, 0] == 0
    torch.testing.assert_close(features[:, :2].std(0, unbiased=False), torch.ones(2))


def test_numbers_can_be_categories(path: str) -> None:
    data = Arrays(path, "price", features=["size"], categories=["size"], **ALL)
    assert torch.equal(encoder(data)(data.sources["train"])[0], torch.eye(6))


def test_other_rows_have_the_numbers_of_the_training(path: str, tmp_path: Path) -> None:
    """A category that the training has not, a column in another place, and no gap in the file at all."""
    other = FRAME.iloc[:2, ::-1].assign(town=["Genf", "Chur"], age=[120.0, 20.0])
    data = Arrays(path, "price", missing="mean", val_path=saved(other, tmp_path / "val.csv"), **ALL)
    assert encoder(data)(data.sources["val"])[0].tolist() == [[120, 1, 0, 0, 0, 0, 0], [20, 2, 0, 0, 1, 0, 0]]


def test_arrays_have_gaps_too(tmp_path: Path) -> None:
    x = np.array([[1, np.nan], [3, 4], [5, 6]], np.float32)
    np.savez(tmp_path / "set.npz", x=x, y=np.array([0, 1, 1]))
    data = Arrays(str(tmp_path / "set.npz"), missing="mean", **ALL)
    assert encoder(data)(data.sources["train"])[0].tolist() == [[1, 5, 1], [3, 4, 0], [5, 6, 0]]


def refused(key: str, match: str, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        Arrays(*args, **kwargs)
    assert caught.value.key == key


def test_a_table_of_test_data_with_other_columns(tmp_path: Path) -> None:
    frame = FRAME.drop(columns="town").fillna(1.0)
    given = {"path": saved(frame, tmp_path / "table.csv"), "target": "price"}
    texts = saved(frame.astype({"age": object}).replace({"age": {50.0: "?"}}), tmp_path / "texts.csv")
    told = r"a table with numbers in the column 'age', as in the training data; line 5 of .*texts.csv contains '\?'\."
    refused("test_path", told, **given, test_path=texts)
    for name in ("size", "price"):
        other = saved(frame.drop(columns=name), tmp_path / "other.csv")
        told = (
            rf"other.csv' is invalid\. Expected a table with the columns of data.path; the column '{name}' is missing"
        )
        refused("test_path", told, **given, test_path=other)
        refused("val_path.easy", told, **given, val_path={"easy": other})
    refused(
        "path", "a column of inputs; its only columns are price", saved(frame[["price"]], tmp_path / "a.csv"), "price"
    )


def test_what_a_table_cannot_have(path: str, tmp_path: Path) -> None:
    refused("features", r"data\.missing=mean", path, "price")
    refused("features", r"data\.max_categories=3\. .* data=hf", path, "price", missing="mean", max_categories=2)
    refused("categories", "Did you mean 'size'", path, "price", categories=["sise"])
    refused("missing", "refuse, mean, median", path, "price", missing="drop")
    refused("group", "Did you mean 'town'", path, "price", group="twon")
    refused("features", "other than the group", path, "price", features=["size"], group="size")
    refused("fold", "from 0 to 2: there are 3", path, "price", folds=3, fold=3)
    refused("fold", "Set data.folds", path, "price", fold=1)
    refused("folds", "at least 2", path, "price", folds=1)
    refused("folds", "given separately", path, "price", missing="mean", folds=2, val_path=path)
    empty = saved(FRAME.assign(age=np.nan), tmp_path / "empty.csv")
    refused("features", r"a column with a number .* data\.features=\[…\]", empty, "price", missing="mean")
    nowhere = np.array([[1, np.nan], [3, np.nan]], np.float32)
    np.savez(tmp_path / "nowhere.npz", x=nowhere, y=np.array([0, 1]))
    refused("path", r"column 1 \(counted from 0\) has none", str(tmp_path / "nowhere.npz"), missing="mean", **ALL)


def test_the_model_must_be_able_to_take_it(path: str) -> None:
    data = Arrays(path, "price", missing="mean", **ALL)
    with pytest.raises(ConfigError, match="a class whose __init__ takes data_preprocessor"):
        _ = Runner({"_target_": "test_table_features.Own"}, data).model_config


class Own(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Any, y: Any = None, mode: str = "tensor") -> Any:
        return x


@pytest.fixture(autouse=True)
def own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "test_table_features", sys.modules[__name__])


def test_it_stands_before_the_models_own(path: str) -> None:
    data = Arrays(path, "price", missing="mean", **ALL)
    own = {"_target_": "trainyard.models.DataPreprocessor", "mean": 1.0}
    for given, kinds in (
        (own, [TableEncoder, DataPreprocessor]),
        ([own], [TableEncoder, DataPreprocessor]),
        ({"mine": own}, [TableEncoder, DataPreprocessor]),
    ):
        model = Runner(MODEL | {"data_preprocessor": given}, data).model
        assert [type(each) for each in model.data_preprocessor] == kinds
    built = MLP(7, 1)
    for _ in range(2):
        _ = Runner(built, data).model_config
        assert type(built.data_preprocessor) is TableEncoder


def test_regression_trains_with_a_built_in_model(diabetes: dict[str, Any]) -> None:
    values = training(diabetes, MODEL, metric=METRICS, objective="val/mse")
    runner = trained(values | {"loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 20}})
    assert runner.model_config["loss"] == {"_target_": "torch.nn.MSELoss"}
    data: Any = runner.data
    variance = data.sources["val"][1].var().item()
    assert runner.members[0].metrics["val/mse"] < 0.8 * variance


def test_regression_resumes_to_the_bits(diabetes: dict[str, Any], tmp_path: Path) -> None:
    resumes_to_the_bits(training(diabetes, MODEL, metric=METRICS, objective="val/mse"), tmp_path, 8)


def test_a_stack_of_regressions_follows_its_members(diabetes: dict[str, Any]) -> None:
    stack_follows_members(training(diabetes, MODEL, metric=METRICS, objective="val/mse"))


def test_a_test_uses_the_numbers_of_the_checkpoint(diabetes: dict[str, Any], tmp_path: Path) -> None:
    hook = {"checkpoint": {"_target_": "trainyard.hooks.Checkpoint"}}
    values = training(diabetes, MODEL, metric=METRICS, objective="val/mse", hook=hook)
    before = trained(values | {"work_dir": str(tmp_path / "run")})
    frame = pd.read_csv(diabetes["path"])
    shifted = diabetes | {"path": saved(frame.assign(age=frame["age"] + 100), tmp_path / "shifted.csv")}
    file = sorted((tmp_path / "run" / "checkpoints").glob("epoch_*.pt"))[-1]
    runner = Runner.from_cfg(values | {"data": shifted, "load_from": str(file), "hook": {}})
    runner.prepare("test")
    assert torch.equal(runner.model.data_preprocessor.mean, before.model.data_preprocessor.mean)
    other = diabetes | {"path": saved(frame.replace({"sex": {"m": "x"}}), tmp_path / "other.csv")}
    with pytest.raises(ConfigError, match="columns and categories of the table on which the checkpoint was trained"):
        Runner.from_cfg(values | {"data": other, "load_from": str(file), "hook": {}}).prepare("test")


def test_a_served_model_takes_the_table_itself(diabetes: dict[str, Any]) -> None:
    from trainyard.run.record import predict
    from trainyard.track.shipper.served_model import ServedModel

    runner = trained(training(diabetes, MODEL, metric=METRICS, objective="val/mse"))
    data: Any = runner.data
    frame = pd.read_csv(diabetes["path"])
    expected = predict(runner.model.eval(), data.sources["test"][0])
    rows = frame[np.isin(frame["age"], data.sources["test"][0][:, 0])].iloc[:, ::-1]
    served = ServedModel(runner.model, predict).predict(rows)
    assert served.index.equals(rows.index)
    close = np.abs(served.to_numpy()[:, None] - expected.detach().numpy()[None]).min(axis=0)
    assert close.max() < 1e-5


@pytest.mark.parametrize("wrong", [1e39, float("inf")])
def test_a_number_beyond_float32_is_no_number_of_a_table(path: str, wrong: float) -> None:
    table = FRAME.drop(columns="price").astype({"age": float})
    table.loc[2, "age"] = wrong
    with pytest.raises(
        ConfigError, match=r"columns: 'age' is invalid.*; in this column, row 2 \(counted from 0\) contains (1e.39|inf)"
    ):
        encoder(Arrays(path, "price", missing="mean", **ALL)).encode_table(table)


def test_the_example_of_a_served_model_is_a_table(path: str) -> None:
    data = Arrays(path, "price", missing="mean", **ALL)
    model = Runner(MODEL, data).model
    rows = data.sources["train"][0].numpy()
    table = as_table(model, rows)
    assert table["town"].tolist() == FRAME["town"].where(FRAME["town"].notna(), None).tolist()
    assert np.array_equal(encoder(data).encode_table(table), rows, equal_nan=True)
    numbers = Arrays(path, "price", features=["age"], missing="mean", **ALL)
    assert as_table(Runner(MODEL, numbers).model, rows) is rows
