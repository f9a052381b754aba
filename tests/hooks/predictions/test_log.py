import os
import sys
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trainyard.data import Digits, Rings
from trainyard.errors import ConfigError
from trainyard.fused.runner import FusedRunner
from trainyard.hooks import Checkpoint, PredictionLog
from trainyard.hooks.predictions.samples import Gathering, Shown, merged
from trainyard.metrics import Metric
from trainyard.models import Supervised
from trainyard.runner import Runner
from trainyard.track import read

MLP = {"_target_": "trainyard.models.MLP", "in_features": 64, "num_classes": 10, "hidden": [16]}
LOSS = {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}}
DIGITS = {"model": MLP, "data": Digits(batch_size=256), "metrics": LOSS}


def files(folder: Any) -> Any:
    return sorted(file.name for file in (folder / "figures").glob("*"))


def artifacts(folder: Any) -> Any:
    return [(r["path"], r["to"]) for r, _ in read(folder / "metrics.jsonl") if r["kind"] == "artifact"]


def test_validations_and_tests_leave_figures_that_are_artifacts(make: Any, tmp_path: Path) -> None:
    runner = make({"log": PredictionLog(count=9)}, epochs=2, work_dir=tmp_path, **DIGITS)
    with runner.session():
        runner.train()
        runner.test()
    places, kinds = ("val_00000005", "val_00000010", "test_00000010"), ("samples", "confusion")
    names = [f"{place}_{kind}.png" for place in places for kind in kinds]
    assert files(tmp_path) == sorted(names)
    assert artifacts(tmp_path) == [(f"figures/{name}", "figures") for name in names]
    for name in names:
        picture = imread(tmp_path / "figures" / name)
        assert min(picture.shape[:2]) > 300
        assert len(np.unique(picture[..., :3].reshape(-1, 3), axis=0)) > 100, "there is something to see"


def predictions(runner: Any, split: str = "val") -> Any:
    batches = list(runner.loader(split).batches())
    with torch.no_grad():
        logits = torch.cat([runner.model(x, mode="predict") for x, _ in batches])
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]), logits


def gathered(runner: Any, which: Any, count: Any, split: str = "val") -> Any:
    runner.model.eval()
    loader = runner.loader(split)
    gathering = Gathering(which, count, loader.num_samples, None)
    with torch.no_grad():
        for x, y in loader.batches():
            gathering.add((x, y), runner.model(x, mode="predict"))
    (shown,) = gathering.finish()
    return shown


@pytest.mark.parametrize("batch_size", [7, 50, 1000])
def test_the_worst_are_those_of_the_highest_loss(make: Any, batch_size: int) -> None:
    runner = make({}, model=MLP, data=Digits(eval_batch_size=batch_size), metrics=LOSS)
    shown = gathered(runner, "worst", 12)
    x, y, logits = predictions(runner)
    loss = nn.functional.cross_entropy(logits, y, reduction="none")
    rows = loss.argsort(descending=True)[:12]
    assert shown.index.tolist() == rows.tolist()
    assert np.array_equal(shown.inputs, x[rows])
    assert np.array_equal(shown.target, y[rows])
    assert np.array_equal(shown.predicted, logits.argmax(1)[rows])
    assert np.allclose(shown.loss, loss[rows])
    assert np.allclose(shown.confidence, logits.softmax(1).amax(1)[rows])
    assert shown.samples == len(y) == 180


@pytest.mark.parametrize("batch_size", [7, 1000])
def test_the_first_and_random_ones(make: Any, batch_size: int) -> None:
    first, second = (
        make({}, model=MLP, data=Digits(eval_batch_size=batch_size), metrics=LOSS, seed=seed) for seed in (0, 1)
    )
    assert gathered(first, "first", 10).index.tolist() == list(range(10))
    drawn = gathered(first, "random", 10)
    assert len(set(drawn.index.tolist())) == 10
    assert drawn.index.tolist() != list(range(10))
    assert drawn.index.tolist() == gathered(second, "random", 10).index.tolist(), "every run shows the same"
    x, y, logits = predictions(first)
    assert np.array_equal(drawn.inputs, x[drawn.index])
    assert np.array_equal(drawn.predicted, logits.argmax(1)[drawn.index])
    assert np.array_equal(drawn.target, y[drawn.index])
    assert len(gathered(first, "random", 999).index) == 180


def test_the_confusion_matrix_counts_the_whole_split(make: Any) -> None:
    runner = make({}, model=MLP, data=Digits(eval_batch_size=50), metrics=LOSS)
    _, y, logits = predictions(runner)
    expected = np.zeros((10, 10), dtype=int)
    for true, predicted in zip(y.tolist(), logits.argmax(1).tolist(), strict=True):
        expected[true, predicted] += 1
    assert np.array_equal(gathered(runner, "first", 5).confusion, expected)


def test_padding_is_never_among_the_worst_and_nan_always_is() -> None:
    outputs = torch.zeros(6, 3)
    outputs[2] = float("nan")
    outputs[4, 0] = 9.0
    target = torch.tensor([0, -100, 1, -100, 1, 2])
    gathering = Gathering("worst", 3, 6, None)
    gathering.add((torch.zeros(6, 5), target), outputs)
    (shown,) = gathering.finish()
    assert shown.index[:2].tolist() == [2, 4]
    assert shown.target[2] >= 0


@pytest.mark.parametrize("first", [True, False])
def test_a_batch_without_a_target_is_counted_but_not_shown(first: bool) -> None:
    gathering = Gathering("first", 8, 8, None)
    outputs, inputs, target = torch.eye(4), torch.zeros(4, 3), torch.arange(4)
    batches = [inputs, (inputs, target)]
    for batch in batches if first else reversed(batches):
        gathering.add(batch, outputs)
    (shown,) = gathering.finish()
    assert shown.index.tolist() == [number + 4 * first for number in range(4)]
    assert shown.samples == 8
    assert gathering.complaint == ""


@pytest.mark.parametrize(("interval", "expected"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (9, [5])], ids=str)
def test_every_so_many_validations_and_the_last(make: Any, tmp_path: Path, interval: int, expected: Any) -> None:
    make({"log": PredictionLog(interval=interval, confusion=False)}, epochs=5, work_dir=tmp_path).train()
    assert files(tmp_path) == [f"val_{6 * epoch:08d}_samples.png" for epoch in expected]


def test_a_resumed_run_goes_on_counting(make: Any, tmp_path: Path, interrupt_at: Any) -> None:
    hooks = {"log": PredictionLog(interval=2, confusion=False), "checkpoint": Checkpoint()}
    make(hooks | {"interrupt": interrupt_at(20)}, epochs=5, work_dir=tmp_path).train()
    assert files(tmp_path) == ["val_00000012_samples.png"]
    hooks = {"log": PredictionLog(interval=2, confusion=False), "checkpoint": Checkpoint()}
    make(hooks, epochs=5, work_dir=tmp_path, resume=True).train()
    assert files(tmp_path) == [f"val_{6 * epoch:08d}_samples.png" for epoch in (2, 4, 5)]


def test_it_changes_nothing_of_the_training(make: Any, tmp_path: Path) -> None:
    model = MLP | {"dropout": 0.3}
    for which in ("worst", "random"):
        with_it = make({"log": PredictionLog(which=which)}, work_dir=tmp_path / which, **(DIGITS | {"model": model}))
        without = make({}, **(DIGITS | {"model": model}))
        assert with_it.train() == without.train()
        assert len(files(tmp_path / which)) == 6


def test_a_run_without_a_directory_draws_nothing(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make({"log": PredictionLog()}).train()
    assert list(tmp_path.iterdir()) == []


def test_points_in_the_plane_are_all_shown(make: Any) -> None:
    runner = make({}, data=Rings(num_samples=900, eval_batch_size=64))
    shown = gathered(runner, "worst", 5)
    assert shown.points
    assert shown.index.tolist() == list(range(180))


def loaders(x: Any, y: Any) -> Any:
    return {split: DataLoader(TensorDataset(x, y), batch_size=16) for split in ("train", "val")}


def test_rows_are_a_table_and_numbers_are_dots(make: Any, tmp_path: Path) -> None:
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    more = {"model": Supervised(nn.Linear(5, 3)), "data": loaders(x, torch.arange(40) % 3), "metrics": LOSS}
    make({"log": PredictionLog()}, work_dir=tmp_path / "rows", epochs=1, **more).train()
    assert files(tmp_path / "rows") == ["val_00000003_confusion.png", "val_00000003_samples.png"]
    for name, y in (("one", torch.randn(40, 1)), ("two", torch.randn(40, 2))):
        metrics = {"loss": {"_target_": "trainyard.metrics.MeanSquaredError"}}
        more = {"model": Supervised(nn.Linear(5, y.shape[1]), nn.MSELoss()), "data": loaders(x, y), "metrics": metrics}
        make({"log": PredictionLog()}, work_dir=tmp_path / name, epochs=1, **more).train()
        assert files(tmp_path / name) == ["val_00000003_samples.png"], "of numbers there is no confusion"


class Zero(Metric):
    def process(self, batch: Any, outputs: Any) -> None:
        pass

    def compute(self) -> Any:
        return torch.zeros(())


def test_what_is_nothing_to_look_at_is_said_once(make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    x, y = torch.randn(32, 5), torch.randint(3, (32, 4, 4))

    class Segmenting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 48)

        def forward(self, x: Any) -> Any:
            return self.layer(x).view(-1, 3, 4, 4)

    model = Supervised(Segmenting())
    make({"log": PredictionLog()}, model=model, data=loaders(x, y), metrics={"loss": Zero()}, work_dir=tmp_path).train()
    assert not (tmp_path / "figures").exists()
    told = "because the predictions are torch.float32 [16, 3, 4, 4] and the targets are torch.int64 [16, 4, 4]."
    assert sum(told in text for text in caplog.messages) == 1


TEXT = {
    "model": {
        "_target_": "trainyard.models.Transformer",
        "vocab_size": "auto",
        "context_length": "auto",
        "dim": 8,
        "layers": 1,
        "heads": 1,
    },
    "loop": {"_target_": "trainyard.runner.IterBasedTrainLoop", "max_iters": 3},
}


def test_tokens_are_text(make: Any, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\n" * 60)
    data = {"_target_": "trainyard.data.Text", "path": str(text), "context_length": 16, "val_fraction": 0.2}
    runner = make({"log": PredictionLog(count=3, which="first")}, data=data, work_dir=tmp_path / "run", **TEXT)
    runner.train()
    assert files(tmp_path / "run") == ["val_00000003_samples.txt"]
    written = (tmp_path / "run" / "figures" / "val_00000003_samples.txt").read_text()
    tokens, target = next(iter(runner.loader("val").batches()))
    predicted = runner.model(tokens, mode="predict").argmax(-1)
    for k in range(3):
        right = int((predicted[k] == target[k]).sum())
        assert f"Sample {k}: {right} of 16 tokens right" in written
        for name, row in (("true", target[k]), ("predicted", predicted[k])):
            assert f"{name:<9}  {runner.data.decode(row)}".replace("\n", "↵").rstrip() + "\n" in written


def test_a_figure_that_cannot_be_drawn_ends_no_training(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\n" * 60)
    data = {"_target_": "trainyard.data.Text", "path": str(text), "context_length": 16, "val_fraction": 0.2}
    runner = make({"log": PredictionLog()}, data=data, work_dir=tmp_path, **TEXT)
    runner.data.decode = lambda tokens: 1 / 0
    runner.train()
    assert any("could not draw the figures of val, epoch 0, iteration 3" in message for message in caplog.messages)
    assert artifacts(tmp_path) == []


def test_several_validation_sets_have_figures_each(make: Any, tmp_path: Path) -> None:
    class Sets(Digits):
        def __init__(self) -> None:
            super().__init__(batch_size=256)
            self.sources["val/easy"], self.sources["val/hard"] = self.sources.pop("val"), self.sources["test"]
            self.splits = ("train", "val/easy", "val/hard")

    more = DIGITS | {"data": Sets(), "objective": "val/easy/loss"}
    make({"log": PredictionLog()}, epochs=1, work_dir=tmp_path, **more).train()
    kinds = ("confusion", "samples")
    assert files(tmp_path) == [f"val_{name}_00000005_{kind}.png" for name in ("easy", "hard") for kind in kinds]


def member(k: Any, folder: Any) -> Any:
    return {
        "model": MLP,
        "data": {"_target_": "trainyard.data.Digits", "batch_size": 256, "eval_batch_size": 50},
        "optim": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 1},
        "hook": {"log": {"_target_": "trainyard.hooks.PredictionLog", "count": 9}},
        "metric": LOSS,
        "device": "cpu",
        "seed": k,
        "work_dir": str(folder / str(k)),
    }


def test_members_of_a_group_draw_what_they_would_draw_alone(tmp_path: Path) -> None:
    fused = FusedRunner([member(k, tmp_path / "fused") for k in range(2)])
    for runner in (fused, *(Runner.from_cfg(member(k, tmp_path / "solo")) for k in range(2))):
        runner.train()
        runner.test()
    drawn = []
    for k in range(2):
        ours, theirs = tmp_path / "fused" / str(k), tmp_path / "solo" / str(k)
        assert files(ours) == files(theirs)
        assert artifacts(ours) == artifacts(theirs)
        assert len(files(theirs)) == 4
        for name in files(theirs):
            assert np.array_equal(imread(ours / "figures" / name), imread(theirs / "figures" / name))
        drawn.append((theirs / "figures" / "val_00000005_samples.png").read_bytes())
    assert len(set(drawn)) == 2


def part(index: Any, loss: Any, confusion: Any) -> Any:
    index, loss = np.array(index), np.array(loss)
    return Shown("classes", index, index[:, None] * 1.0, index % 3, index % 3, loss, loss, np.array(confusion), 10)


def test_what_several_ranks_have_seen_becomes_one() -> None:
    parts = [part([0, 3], [0.1, 5.0], [[1, 0], [2, 3]]), part([0, 1, 2], [7.0, 0.2, 3.0], [[0, 4], [0, 1]])]
    worst = merged(parts, "worst", 3)
    assert worst.loss.tolist() == [7.0, 5.0, 3.0]
    assert worst.index.tolist() == [0, 3, 2]
    assert worst.inputs[:, 0].tolist() == [0.0, 3.0, 2.0]
    assert worst.confusion.tolist() == [[1, 4], [2, 4]]
    assert worst.samples == 20
    assert merged(parts, "first", 3).index.tolist() == [0, 0, 1]
    assert merged(parts[:1], "first", 1) is parts[0]


def test_classes_go_by_their_names(make: Any, tmp_path: Path) -> None:
    class Named(Digits):
        classes = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

    plain = make({"log": PredictionLog()}, epochs=1, work_dir=tmp_path / "plain", **DIGITS)
    more = DIGITS | {"data": Named(batch_size=256)}
    named = make({"log": PredictionLog()}, epochs=1, work_dir=tmp_path / "named", **more)
    for runner in (plain, named):
        runner.train()
    for name in files(tmp_path / "plain"):
        ours, theirs = (imread(tmp_path / kind / "figures" / name) for kind in ("named", "plain"))
        assert ours.shape != theirs.shape


def test_nothing_is_imported_before_there_is_something_to_draw() -> None:
    code = "import sys, trainyard.hooks; trainyard.hooks.PredictionLog(); assert 'matplotlib' not in sys.modules"
    done = forked.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": ":".join(sys.path)})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count: 0 is invalid. Expected an integer of at least 1"),
        ({"count": 2.5}, "count: 2.5 is invalid"),
        ({"interval": True}, "interval: True is invalid"),
        ({"which": "worse"}, "Did you mean 'worst'"),
        ({"confusion": 1}, "confusion: 1 is invalid. Expected true or false"),
    ],
)
def test_settings_that_cannot_be(arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PredictionLog(**arguments)
