"""The validation's metrics on training data: what is evaluated, and what cannot be."""

from pathlib import Path
from typing import Any

import pytest
import torch
from streams import StatefulLoader, StatefulStream, Stream, sample
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from trainyard.data import Rings
from trainyard.errors import ConfigError
from trainyard.hooks import Hook, TestTimeAugmentation, TrainMetrics
from trainyard.metrics import Metric
from trainyard.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

BATCH, BATCHES = 32, 6


class Samples(Metric):
    """How many samples were evaluated, and the sum of their inputs."""

    def process(self, batch: Any, outputs: Any) -> None:
        self.add({"count": torch.tensor(float(len(batch[0]))), "sum": batch[0].double().sum()})

    def compute(self) -> dict[str, Tensor]:
        return {"count": self.state["count"], "sum": self.state["sum"]}


def make(hooks: Any, **more: Any) -> Runner:
    settings = {
        "model": {"_target_": "trainyard.models.MLP", "in_features": "auto", "num_classes": "auto", "hidden": [8]},
        "data": Rings(num_samples=320, batch_size=BATCH),
        "optim": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01},
        "loop": EpochBasedTrainLoop(1),
        "metrics": {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}, "samples": Samples()},
        "device": "cpu",
    }
    return Runner(hooks=hooks, **(settings | more))


def trained(batches: int | None, hooks: Any = None, **more: Any) -> dict[str, float]:
    """The results of a training with the hook."""
    runner = make({"train": TrainMetrics(batches)} | (hooks or {}), **more)
    runner.train()
    return dict(runner.members[0].metrics)


def first(count: int, seed: int) -> float:
    """The sum of the inputs in the first batches of an epoch that is shuffled with a seed."""
    loader = Rings(num_samples=320, batch_size=BATCH).loader("train", seed=seed, device=torch.device("cpu"))
    return sum(float(x.double().sum()) for (x, _), _ in zip(loader.batches(), range(count), strict=False))


@pytest.mark.parametrize(
    ("batches", "limit", "count"),
    [(2, None, 2), (4, 2, 2), (None, 3, 3), (100, 0.5, BATCHES // 2), (2, 0.9, 2)],
)
def test_a_limit_of_the_training_data_is_one_of_the_hook_too(batches: Any, limit: Any, count: int) -> None:
    found = trained(batches, limit=limit and {"train_batches": limit})
    assert found["train_eval/count"] == count * BATCH
    assert found["train_eval/sum"] == pytest.approx(first(count, 0))
    assert (
        trained(batches, limit=limit and {"train_batches": limit}, seed=5)["train_eval/sum"] == found["train_eval/sum"]
    )


def test_a_run_that_overfits_is_evaluated_on_its_own_batches() -> None:
    found = trained(None, overfit=2, seed=3)
    assert found["train_eval/sum"] == pytest.approx(first(2, 3))
    for name in ("loss", "count", "sum"):
        assert found[f"train_eval/{name}"] == found[f"val/{name}"]


def test_both_evaluations_use_test_time_augmentation() -> None:
    """Of the same batches, so that their results are equal, and other ones than without."""

    def noise(x: Tensor) -> Tensor:
        return x + 3 * torch.randn_like(x)

    found = trained(None, {"tta": TestTimeAugmentation([noise], val=True)}, overfit=2)
    assert found["train_eval/loss"] == found["val/loss"]
    plain = trained(None, {"tta": TestTimeAugmentation([noise])}, overfit=2)
    assert plain["train_eval/loss"] == plain["val/loss"] != found["val/loss"]


def test_an_interrupted_evaluation_records_nothing() -> None:
    seen: list[int] = []

    class Interrupting(Samples):
        def process(self, batch: Any, outputs: Any) -> None:
            super().process(batch, outputs)
            if runner.training:
                seen.append(len(batch[0]))
                runner.interrupt()

    metrics = {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}, "samples": Interrupting()}
    runner = make({"train": TrainMetrics()}, metrics=metrics, loop=EpochBasedTrainLoop(3))
    runner.train()
    assert seen[0] == BATCH
    assert not [name for name in runner.members[0].metrics if name.startswith("train_eval/")]


def test_workers_that_persist_serve_every_evaluation() -> None:
    """In the middle of an epoch, whose batches they do not touch."""
    data = Rings(num_samples=320, batch_size=BATCH)
    points = TensorDataset(*data.resident("train", torch.device("cpu")))

    def trained(workers: int, hooks: Any) -> Runner:
        loader = DataLoader(points, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
        validated = DataLoader(points, BATCH)
        spec = {"in_features": 2, "num_classes": 2}
        own = {"train": loader, "val": validated, "spec": spec}
        runner = make(hooks, data=own, loop=IterBasedTrainLoop(10, val_interval=4))
        runner.train()
        return runner

    plain, alone = trained(0, {}), trained(0, {"train": TrainMetrics(2)})
    worked = trained(1, {"train": TrainMetrics(2)})
    for one, other in zip(plain.model.parameters(), worked.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert worked.members[0].metrics == alone.members[0].metrics


class Bare:
    """A validation loop without a base class."""

    current = "val"

    def run(self, runner: Any) -> Any:
        runner.train_loop.val_due = False
        return [{}]

    def sanity_check(self, runner: Any) -> list[str]:
        return ["val/loss"]


ITER, EPOCH = IterBasedTrainLoop(2, val_interval=1), EpochBasedTrainLoop(1)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"data": DataLoader(Stream(20), 4)}, "This data is a stream."),
        ({"data": DataLoader(StatefulStream(20), 4)}, "This data is a stream."),
        ({"data": StatefulLoader([sample(i) for i in range(20)], 4), "loop": EPOCH}, "would share the position"),
        ({"data": StatefulLoader([sample(i) for i in range(20)], 4), "loop": ITER}, "would share the position"),
        ({"val_loop": Bare()}, "Expected a val_loop that is derived from ValLoop, or no such hook."),
    ],
)
def test_what_it_cannot_evaluate_is_told_before_the_training(tmp_path: Path, more: Any, told: str) -> None:
    if "data" in more:
        val: Any = DataLoader([sample(i) for i in range(8)], 4)
        more["data"] = {"train": more["data"], "val": val, "spec": {"in_features": 4, "num_classes": 3}}
    with pytest.raises(ConfigError) as error:
        make({"train": TrainMetrics()}, work_dir=tmp_path / "run", **more).train()
    assert str(error.value).startswith("hook.train: 'TrainMetrics' is invalid. Expected ")
    assert told in str(error.value)
    assert not (tmp_path / "run").exists()


def test_without_a_validation_set_it_does_nothing() -> None:
    class Failing(Hook):
        def before_val(self, runner: Any) -> None:
            raise AssertionError

    data = Rings(num_samples=320, batch_size=BATCH, val_fraction=0)
    runner = make({"train": TrainMetrics(), "failing": Failing()}, data=data)
    runner.train()
    assert runner.epoch == 1
