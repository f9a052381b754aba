import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from trainyard.data import Digits
from trainyard.errors import ConfigError
from trainyard.fused.runner import FusedRunner
from trainyard.hooks import EMA, Checkpoint, Hook, ModelSummary, TestTimeAugmentation
from trainyard.models import Supervised
from trainyard.runner import Runner, checkpoint

MLP = {"_target_": "trainyard.models.MLP", "in_features": 64, "num_classes": 10, "hidden": [16]}
ALL = {"accuracy": {"_target_": "trainyard.metrics.Accuracy"}, "loss": {"_target_": "trainyard.metrics.CrossEntropy"}}


class Seen(Hook):
    """The predictions that metrics read, and the batches that they are for."""

    priority = "LOWEST"
    stackable = True

    def __init__(self) -> None:
        self.val: list[Any] = []
        self.test: list[Any] = []
        self.batches: list[Any] = []

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        self.val.append(outputs.clone())

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        self.test.append(outputs.clone())
        self.batches.append(data_batch)


@pytest.fixture
def run(make: Any) -> Any:
    """A Runner on the digits, with what was predicted."""

    def run(hooks: Any, **more: Any) -> Any:
        seen = Seen()
        settings = {"model": MLP, "data": Digits(batch_size=256), "metrics": ALL, "epochs": 2}
        runner = make(hooks | {"seen": seen}, **(settings | more))
        return runner, seen

    return run


def by_hand(model: Any, x: Any, transforms: Any, merge: Any) -> Any:
    model.eval()
    with torch.no_grad():
        outputs = [model(each, mode="predict") for each in (x, *(transform(x) for transform in transforms))]
    if merge == "mean":
        return sum(outputs) / len(outputs)
    return (sum(output.softmax(-1) for output in outputs) / len(outputs)).log()


def left_to_right(x: Any) -> Any:
    return x.flip(-1)


@pytest.mark.parametrize("merge", [None, "softmax_mean", "mean"])
def test_predictions_are_the_mean_over_the_copies(run: Any, merge: str | None) -> None:
    hook = TestTimeAugmentation(["vertical_flip", left_to_right], merge=merge)
    runner, seen = run({"tta": hook})
    runner.train()
    runner.test()
    for (x, _), outputs in zip(seen.batches, seen.test, strict=True):
        transforms = [lambda x: x.flip(-2), lambda x: x.flip(-1)]
        expected = by_hand(runner.model, x, transforms, merge or "softmax_mean")
        torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(outputs, runner.model(x, mode="predict"), atol=0.1), "the copies say something else"


def test_log_probabilities_are_read_as_logits(run: Any) -> None:
    runner, seen = run({"tta": TestTimeAugmentation()})
    (results,) = runner.test()
    target = torch.cat([y for _, y in seen.batches])
    probabilities = torch.cat(seen.test).exp()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(target)))
    loss = -probabilities[torch.arange(len(target)), target].log().mean()
    assert results["test/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert results["test/accuracy"] == (probabilities.argmax(1) == target).double().mean().item()


class Pooled(nn.Module):
    """Sees no difference between an image and its mirror image."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 10)

    def forward(self, x: Any) -> Any:
        return self.head(x.mean((2, 3)))


def test_a_model_that_sees_no_difference_predicts_what_it_would_without(run: Any) -> None:
    results = []
    for hooks in ({"tta": TestTimeAugmentation(["horizontal_flip", "both_flips"])}, {}):
        runner, _ = run(hooks, model=Supervised(Pooled()))
        torch.nn.init.constant_(runner.model.net.head.weight, 0.3)
        torch.nn.init.zeros_(runner.model.net.head.bias)
        results.append(runner.test()[0])
    assert results[0] == pytest.approx(results[1], rel=1e-5)


@pytest.mark.parametrize("val", [False, True])
def test_validations_only_where_asked_for(run: Any, val: bool) -> None:
    runner, seen = run({"tta": TestTimeAugmentation(val=val)})
    runner.train()
    seen.val.clear()
    runner.val()
    (x, _) = next(iter(runner.loader("val").batches()))
    plain = runner.model(x, mode="predict")
    expected = by_hand(runner.model, x, [lambda x: x.flip(-1)], "softmax_mean") if val else plain
    torch.testing.assert_close(seen.val[0], expected, rtol=1e-5, atol=1e-5)


def tensors(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return [value]
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for entry in entries for tensor in tensors(entry)]


def noisy(x: Any) -> Any:
    return x + 0.3 * torch.randn_like(x)


def test_neither_weights_nor_checkpoints_know_of_it(run: Any, tmp_path: Path) -> None:
    states = []
    for name, hooks in (("with", {"tta": TestTimeAugmentation(["shift_up", noisy], val=True)}), ("without", {})):
        model = MLP | {"dropout": 0.3}
        runner, _ = run({"checkpoint": Checkpoint()} | hooks, model=model, work_dir=tmp_path / name)
        runner.train()
        states.append(checkpoint.newest(tmp_path / name / "checkpoints")[1])
    for state in states:
        state.pop("member")  # what the validations found
    ours, theirs = map(tensors, states)
    assert states[0].keys() == states[1].keys()
    assert states[0]["model"].keys() == states[1]["model"].keys()
    assert len(ours) == len(theirs) > 10
    assert all(torch.equal(mine, its) for mine, its in zip(ours, theirs, strict=True)), "not even the random numbers"


@pytest.mark.parametrize("order", [("ema", "tta"), ("tta", "ema")])
def test_the_average_is_what_predicts(run: Any, order: Any) -> None:
    hooks = {"ema": EMA(0.5, evaluate="both"), "tta": TestTimeAugmentation(["vertical_flip"], val=True)}
    runner, seen = run({name: hooks[name] for name in order})
    runner.train()
    runner.test()
    assert runner.eval_model is not runner.model
    batch = seen.batches[0]
    expected = by_hand(runner.eval_model, batch[0], [lambda x: x.flip(-2)], "softmax_mean")
    torch.testing.assert_close(seen.test[0], expected, rtol=1e-5, atol=1e-5)

    (x, y) = next(iter(runner.loader("val").batches()))  # the raw weights are compared with it on equal terms
    raw = nn.functional.cross_entropy(by_hand(runner.model, x, [lambda x: x.flip(-2)], "softmax_mean"), y)
    assert runner.members[0].metrics["val_raw/loss"] == pytest.approx(raw.item(), rel=1e-5)
    own = nn.functional.cross_entropy(by_hand(runner.eval_model, x, [lambda x: x.flip(-2)], "softmax_mean"), y)
    assert runner.members[0].metrics["val/loss"] == pytest.approx(own.item(), rel=1e-5)


def test_the_best_checkpoint_is_what_predicts(run: Any, tmp_path: Path) -> None:
    hooks = {"tta": TestTimeAugmentation(), "checkpoint": Checkpoint(), "ema": EMA(0.5)}
    runner, seen = run(hooks, work_dir=tmp_path, objective="val/accuracy", direction="minimize")
    runner.train()
    last = [weight.clone() for weight in runner.eval_model.parameters()]
    runner.load_best()
    assert not all(torch.equal(own, old) for own, old in zip(runner.eval_model.parameters(), last, strict=True))
    runner.test()
    best = checkpoint.load(tmp_path / "checkpoints" / "best.pt")
    runner.model.load_state_dict(best["eval_model"])
    expected = by_hand(runner.model, seen.batches[0][0], [lambda x: x.flip(-1)], "softmax_mean")
    torch.testing.assert_close(seen.test[0], expected, rtol=1e-5, atol=1e-5)


class Named(nn.Module):
    """Takes its images by name; a mapping's other entries are not the input."""

    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(16, outputs)

    def forward(self, image: Any, weight: Any) -> Any:
        return self.layer(image.flatten(1)) * weight.unsqueeze(1)


def mappings(outputs: Any, target: Any) -> Any:
    x = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    rows = [{"image": x[i], "weight": torch.tensor(1.0 + i), "label": target[i]} for i in range(20)]
    return (
        Supervised(Named(outputs), nn.MSELoss()),
        {split: DataLoader(rows, batch_size=8) for split in ("train", "test")},
        x,
    )


def test_batches_that_are_mappings_and_targets_that_are_numbers(run: Any) -> None:
    target = torch.rand(20, 3)
    model, data, x = mappings(3, target)
    metrics = {"mse": {"_target_": "trainyard.metrics.MeanSquaredError"}}
    runner, seen = run({"tta": TestTimeAugmentation()}, model=model, data=data, metrics=metrics)
    runner.test()
    weight = 1.0 + torch.arange(20)
    expected = (model.net(x, weight) + model.net(x.flip(-1), weight)) / 2
    torch.testing.assert_close(torch.cat(seen.test), expected)


def test_random_transforms_are_the_same_each_time(run: Any) -> None:
    runner, _ = run({"tta": TestTimeAugmentation([noisy])})
    first, second = runner.test(), runner.test()
    assert first == second
    runner, _ = run({"tta": TestTimeAugmentation([noisy])}, seed=1)
    runner.model.load_state_dict(run({})[0].model.state_dict())
    assert runner.test() == first, "and in every run"


def member(k: Any, folder: Any, merge: Any = None) -> Any:
    return {
        "model": MLP,
        "data": {"_target_": "trainyard.data.Digits", "batch_size": 256},
        "optim": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01},
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 2},
        "hook": {
            "tta": {
                "_target_": "trainyard.hooks.TestTimeAugmentation",
                "transforms": ["shift_left", {"_target_": "trainyard.hooks.image_transforms.Shift", "y": 2}],
                "merge": merge,
                "val": True,
            },
            "checkpoint": {"_target_": "trainyard.hooks.Checkpoint"},
            "ema": {"_target_": "trainyard.hooks.EMA", "decay": 0.5},
        },
        "metric": ALL,
        "device": "cpu",
        "seed": k,
        "work_dir": str(folder / str(k)),
    }


@pytest.mark.parametrize("merge", [None, "mean"])
def test_members_of_a_group(tmp_path: Path, merge: str | None) -> None:
    fused = FusedRunner([member(k, tmp_path / "fused", merge) for k in range(3)])
    solos = [Runner.from_cfg(member(k, tmp_path / "solo", merge)) for k in range(3)]
    for runner in (fused, *solos):
        runner.train()
        runner.load_best()
    together, alone = fused.test(), [solo.test()[0] for solo in solos]
    for k in range(3):
        assert together[k] == pytest.approx(alone[k], rel=1e-4)
    assert len({results["test/loss"] for results in alone}) == 3


class InterruptAt(Hook):
    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any) -> None:
        runner.interrupt()


def test_afterwards_the_runner_is_asked_as_before(run: Any) -> None:
    for hooks in ({}, {"interrupt": InterruptAt()}):
        runner, _ = run({"tta": TestTimeAugmentation(val=True)} | hooks)
        runner.test()
        (x, y) = next(iter(runner.loader("test").batches()))
        assert torch.equal(runner.predict_step("test")((x, y)), runner.model(x, mode="predict"))


def test_the_summary_counts_one_pass(run: Any, tmp_path: Path) -> None:
    texts = []
    for name, hooks in (("with", {"tta": TestTimeAugmentation(val=True)}), ("without", {})):
        runner, _ = run(hooks | {"summary": ModelSummary()}, work_dir=tmp_path / name, epochs=1)
        runner.train()
        texts.append((tmp_path / name / "summary.txt").read_text())
    assert texts[0] == texts[1]


def halved(x: Any) -> Any:
    return x[: len(x) // 2]


class Began(Hook):
    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any) -> Any:
        raise AssertionError("too late")


def test_what_cannot_work_is_known_before_the_training(make: Any, run: Any) -> None:
    points = make({"tta": TestTimeAugmentation(), "began": Began()}, metrics=ALL)
    with pytest.raises(
        ConfigError,
        match=r"'horizontal_flip' is .* the inputs of this data, \[64, 2\]; Flip needs images \[B, C, H, W\]",
    ) as error:
        points.train()
    assert error.value.key == "hook.test_time_augmentation.transforms"
    images, _ = run({"tta": TestTimeAugmentation([halved]), "began": Began()})
    found = r"of the same shape.*unchanged: torch.float32 \[180, 10\], halved: .*\[90, 10\]"
    with pytest.raises(ConfigError, match=found):
        images.train()


def test_predictions_that_are_no_numbers(run: Any) -> None:
    class Classes(Supervised):
        def test_step(self, batch: Any) -> Any:
            return super().test_step(batch).argmax(-1)

    runner, _ = run({"tta": TestTimeAugmentation()}, model=Classes(Pooled()), metrics={})
    with pytest.raises(ConfigError, match=r"a model that predicts .* are: torch.int64 \[256\]"):
        runner.test()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"transforms": []}, "transforms: .* a list of at least one transform"),
        ({"transforms": "horizontal_flip"}, "transforms: .* a list of at least one transform"),
        ({"transforms": ["horizontal_flop"]}, "Did you mean 'horizontal_flip'"),
        ({"transforms": [3]}, "transforms: 3 is invalid"),
        ({"merge": "softmax"}, "Did you mean 'softmax_mean'"),
        ({"val": "yes"}, "val: 'yes' is invalid. Expected true or false"),
    ],
)
def test_settings_that_cannot_be(arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TestTimeAugmentation(**arguments)


def test_it_tells_what_it_does(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "trainyard"):
        runner, _ = run({"tta": TestTimeAugmentation(["shift_up", nn.Identity(), left_to_right])})
        runner.test()
        runner.test()
    told = [message for message in caplog.messages if "augmentation" in message]
    assert told == [
        (
            "Test-time augmentation: each batch is predicted with these transforms: unchanged, shift_up, "
            "Identity, left_to_right."
        )
    ]


def test_the_mean_of_probabilities_is_not_that_of_logits() -> None:
    hook = TestTimeAugmentation([lambda x: -x])
    batch = torch.full((1, 1), 2.0), torch.zeros(1, dtype=torch.long)
    outputs = hook._predict(lambda batch: batch[0] * torch.tensor([1.0, 0.0]), False, batch)
    first, second = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))
    assert outputs.exp()[0].tolist() == pytest.approx([(first + second) / 2, 1 - (first + second) / 2])
