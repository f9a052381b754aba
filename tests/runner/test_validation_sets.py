"""Several validation and test sets under names."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, TensorDataset

from trainyard.data import ArrayData, Arrays, Loaders
from trainyard.errors import ConfigError
from trainyard.fused.runner import FusedRunner
from trainyard.hooks import EMA, Checkpoint, EarlyStopping, Hook, ParamSchedule
from trainyard.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from trainyard.schedules import Plateau
from trainyard.track import read

SETS = {"train": 96, "val/easy": 40, "val/hard": 24, "test/near": 16, "test/far": 8}
METRICS = {
    "accuracy": {"_target_": "trainyard.metrics.Accuracy"},
    "loss": {"_target_": "trainyard.metrics.CrossEntropy"},
    "confusion": {"_target_": "trainyard.metrics.ConfusionMatrix"},
}


def points(count: Any, noise: Any, seed: int = 0) -> Any:
    """Two classes, side by side; with much noise they are hard to tell apart."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 2
    return torch.randn(count, 2, generator=generator) * noise + 2 * y[:, None] - 1, y


class Points(ArrayData):
    """Importable, as a config names it."""

    def __init__(self, batch_size: int = 16) -> None:
        noises = {"train": 0.7, "val/easy": 0.3, "val/hard": 2.0, "test/near": 0.7, "test/far": 3.0}
        # Given in another order than they have.
        sources = {name: points(SETS[name], noises[name]) for name in reversed(SETS)}
        super().__init__(sources, {"in_features": 2, "num_classes": 2}, batch_size=batch_size, eval_batch_size=16)


def config(**more: Any) -> Any:
    return {
        "model": {"_target_": "trainyard.models.MLP", "in_features": "auto", "num_classes": "auto", "hidden": [8]},
        "data": {"_target_": f"{__name__}.Points"},
        "optim": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01},
        "metrics": METRICS,
        "hooks": {},
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 3},
        "objective": "val/hard/accuracy",
        "direction": "maximize",
        "device": "cpu",
    } | more


NAMES = [f"val/{name}/{metric}" for name in ("hard", "easy") for metric in ("accuracy", "loss")]


def evaluated(runner: Any, name: Any) -> Any:
    """The reference: the model on the whole set, by hand."""
    x, y = runner.data.sources[name]
    with torch.no_grad():
        logits = runner.model.eval()(x, mode="tensor")
    return {
        f"{name}/accuracy": (logits.argmax(1) == y).double().mean().item(),
        f"{name}/loss": torch.nn.functional.cross_entropy(logits, y).item(),
    }


def test_each_has_results_of_its_own() -> None:
    runner = Runner(**config())
    (metrics,) = runner.train()
    expected = evaluated(runner, "val/easy") | evaluated(runner, "val/hard")
    assert {key: metrics[key] for key in metrics if key.startswith("val/")} == pytest.approx(expected, abs=1e-6)
    assert runner.members[0].best is not None
    assert runner.val() == [pytest.approx(expected, abs=1e-6)]
    tested = evaluated(runner, "test/near") | evaluated(runner, "test/far")
    assert runner.test() == [pytest.approx(tested, abs=1e-6)]
    assert expected["val/easy/accuracy"] > expected["val/hard/accuracy"]


def test_they_come_in_the_order_of_the_data_and_hooks_know_which(tmp_path: Path) -> None:
    class Order(Hook):
        def __init__(self) -> None:
            self.calls: list[Any] = []

        def before_val_epoch(self, runner: Runner) -> None:
            self.calls.append("epoch")

        def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any) -> None:
            self.calls.append((runner.val_loop.current, batch_idx))

        def after_val_epoch(self, runner: Runner, metrics: Any) -> None:
            assert list(metrics) == NAMES
            self.calls.append("epoch")

        def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            self.calls.append((runner.test_loop.current, batch_idx))

    order = Order()
    runner = Runner(**config(hooks={"order": order}, work_dir=tmp_path))
    assert runner.sets("val") == ("val/hard", "val/easy")
    runner.val()
    runner.test()
    hard, easy = [("val/hard", 0), ("val/hard", 1)], [("val/easy", 0), ("val/easy", 1), ("val/easy", 2)]
    assert order.calls == ["epoch", *hard, *easy, "epoch", ("test/far", 0), ("test/near", 0)]
    arrays = {r["name"]: r["value"] for r, _ in read(tmp_path / "metrics.jsonl") if r["kind"] == "array"}
    sums = {name: int(np.sum(value)) for name, value in arrays.items()}
    assert sums == {f"{name}/confusion": count for name, count in SETS.items() if name != "train"}


@pytest.mark.parametrize(
    "loop", [EpochBasedTrainLoop(4), IterBasedTrainLoop(20, val_interval=5)], ids=["epoch", "iter"]
)
def test_hooks_and_schedules_read_any_of_them(loop: Any, tmp_path: Path) -> None:
    hooks = {
        "ema": EMA(0.9, evaluate="both"),
        "stop": EarlyStopping("val/easy/loss", "minimize", patience=9),
        "schedule": ParamSchedule(),
        "checkpoint": Checkpoint(save_best={"val/easy/loss": "minimize", "val_raw/hard/accuracy": "maximize"}),
    }
    schedule = Plateau(monitor="val/easy/loss", patience=0)
    runner = Runner(**config(hooks=hooks, loop=loop, schedule=schedule, work_dir=tmp_path))
    (metrics,) = runner.train()
    raw = evaluated(runner, "val/easy") | evaluated(runner, "val/hard")
    found = {key: value for key, value in metrics.items() if key.startswith("val_raw/")}
    assert found == pytest.approx({key.replace("val/", "val_raw/"): value for key, value in raw.items()}, abs=1e-6)
    files = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert {"best.pt", "best_easy_loss.pt", "best_val_raw_hard_accuracy.pt"} <= files
    assert runner.members[0].best.value == max(
        r["values"]["val/hard/accuracy"] for r, _ in read(tmp_path / "metrics.jsonl")
        if r["kind"] == "metrics" and "val/hard/accuracy" in r["values"]
    )  # fmt: skip


def test_a_fused_group(tmp_path: Path) -> None:
    configs = [
        {
            **{{"metrics": "metric", "hooks": "hook"}.get(key, key): value for key, value in config().items()},
            "seed": seed,
            "hook": {"ema": {"_target_": "trainyard.hooks.EMA", "decay": 0.9, "evaluate": "both"}},
            "work_dir": str(tmp_path / str(seed)),
        }
        for seed in range(2)
    ]
    together = FusedRunner(configs)
    trained = [dict(each) for each in together.train()]
    tested = together.test()
    for own, of_group, test in zip(configs, trained, tested, strict=True):
        alone = Runner.from_cfg(own, work_dir=None)
        assert of_group == pytest.approx(alone.train()[0], abs=1e-5)
        assert test == pytest.approx(alone.test()[0], abs=1e-5)
    assert {"val/easy/accuracy", "val_raw/hard/loss"} <= set(trained[0])


def test_their_losses_in_a_workflow() -> None:
    loop = EpochBasedTrainLoop(2, workflow=[["train", 1], ["val", 1]])
    runner = Runner(**config(loop=loop))
    (metrics,) = runner.train()
    for name in ("easy", "hard"):
        assert metrics[f"val_loss/{name}/loss"] == pytest.approx(metrics[f"val/{name}/loss"], abs=1e-6)


def test_an_objective_that_is_of_no_set_is_told_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        Runner(**config(objective="val/hard/acc", work_dir=tmp_path / "run")).train()
    told = "objective: No metric named 'val/hard/acc'. This run computes val/hard/accuracy, val/hard/loss, val/"
    assert str(error.value).startswith(told)
    assert "Did you mean 'val/hard/accuracy'?" in str(error.value)
    assert not (tmp_path / "run").exists()


# -- where they come from ----------------------------------------------------------------------------------------------


def test_loaders_by_name() -> None:
    def loader(name: Any, noise: Any) -> Any:
        return DataLoader(TensorDataset(*points(SETS[name], noise)), batch_size=16)

    data = {
        "train": loader("train", 0.7),
        "val": {"easy": loader("val/easy", 0.3), "hard": loader("val/hard", 2.0), "none": None},
        "spec": {"in_features": 2, "num_classes": 2},
    }
    runner = Runner(**config(data=data))
    (metrics,) = runner.train()
    assert runner.data.splits == ("train", "val/easy", "val/hard")
    assert {key: value for key, value in metrics.items() if key.startswith("val/")} == pytest.approx(
        evaluated_on(runner, {"val/easy": points(40, 0.3), "val/hard": points(24, 2.0)}), abs=1e-6
    )


def evaluated_on(runner: Any, sources: Any) -> Any:
    runner.data.sources = sources
    return {key: value for name in sources for key, value in evaluated(runner, name).items()}


@pytest.mark.parametrize("inside", [True, False], ids=["conf/data/loaders.yaml", "a plain mapping"])
def test_loaders_by_name_from_a_config(inside: bool) -> None:
    node = {
        "_target_": "torch.utils.data.DataLoader",
        "dataset": {"_target_": f"{__name__}.dataset", "count": 32},
        "batch_size": 16,
    }
    data = {"train": node, "val": {"easy": node, "hard": node}, "spec": {"in_features": 2, "num_classes": 2}}
    if inside:
        data["_target_"] = "trainyard.data.Loaders"
    cfg = OmegaConf.create({{"metrics": "metric", "hooks": "hook"}.get(k, k): v for k, v in config(data=data).items()})
    for given in (cfg, OmegaConf.to_container(cfg)):
        (metrics,) = Runner.from_cfg(given).train()
        assert metrics["val/easy/loss"] == metrics["val/hard/loss"]


def dataset(count: Any) -> Any:
    return TensorDataset(*points(count, 0.5))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"val": {"easy": 3}}, "data.val.easy: 3 is invalid. Expected a torch.utils.data.DataLoader"),
        (
            {"val": [3]},
            "data.val: [3] is invalid. Expected a torch.utils.data.DataLoader, an object with batch_size and "
            "batches(epoch, start), a mapping of names to these, or null.",
        ),
        ({"val": {}}, "data.train: None is invalid. Expected a loader for at least one"),
        ({"train": {"a": DataLoader([1])}}, "data.train: {'a'"),
        ({"val": {"a/b": DataLoader([1])}}, "data.val: 'a/b' is invalid. Expected a non-empty name without a slash"),
        ({"val": {"": DataLoader([1])}}, "data.val: '' is invalid"),
    ],
)
def test_what_is_no_set(data: Any, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        Runner(**config(data=data)).train()
    assert str(error.value).startswith(told)


def test_names_of_splits_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"sources: 'vall' is invalid. .* Did you mean 'val'"):
        ArrayData({"train": points(8, 1.0), "vall": points(8, 1.0)}, {})
    with pytest.raises(ConfigError, match="sources: 'train/more' is invalid"):
        ArrayData({"train": points(8, 1.0), "train/more": points(8, 1.0)}, {})


def test_files_by_name(tmp_path: Path) -> None:
    for name, noise in (("all", 0.7), ("easy", 0.3), ("hard", 2.0)):
        x, y = points(40, noise)
        np.savez(tmp_path / f"{name}.npz", x=x.numpy(), y=y.numpy())
    files = {name: str(tmp_path / f"{name}.npz") for name in ("easy", "hard")}
    with pytest.raises(ConfigError, match="val_path: 'a/b' is invalid"):
        Arrays(str(tmp_path / "all.npz"), val_path={"a/b": files["easy"]})
    data = Arrays(str(tmp_path / "all.npz"), val_path=files, test_fraction=0.0, standardize=True)
    assert data.splits == ("train", "val/easy", "val/hard")
    assert len(data.sources["train"][0]) == 40, "nothing is drawn for a validation that has its own"
    assert data.preprocessor is not None
    assert np.allclose(data.preprocessor["mean"], points(40, 0.7)[0].numpy().mean(0), atol=1e-6)  # of the training
    hard: Any = data.sources["val/hard"]
    assert np.allclose(hard[0].numpy(), points(40, 2.0)[0].numpy())
    with pytest.raises(ConfigError, match=r"val_path\.hard: 'none\.npz'"):
        Arrays(str(tmp_path / "all.npz"), val_path=files | {"hard": "none.npz"})
    np.savez(tmp_path / "wide.npz", x=np.zeros((4, 3)), y=np.zeros(4, dtype=int))
    with pytest.raises(ConfigError, match=r"val_path\.hard: the inputs have the shape \[3\]. Expected \[2\]"):
        Arrays(str(tmp_path / "all.npz"), val_path=files | {"hard": str(tmp_path / "wide.npz")})


def test_a_split_of_one_and_sets_of_others() -> None:
    loaders = {"train": DataLoader([1]), "val": DataLoader([1]), "test": {"a": DataLoader([1])}}
    assert Loaders(**loaders).splits == ("train", "val", "test/a")
