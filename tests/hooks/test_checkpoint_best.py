"""`begin`, the best of several metrics, what is published, and the copies that are written."""

import hashlib
import itertools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.errors import ConfigError
from trainyard.hooks import EMA, Checkpoint, Hook
from trainyard.hooks._host_copy import HostBuffers
from trainyard.runner import EpochBasedTrainLoop, checkpoint

RULES = {"val/score": "maximize", "val/easy/loss": "minimize"}
VALUES = st.lists(st.sampled_from([0.1, 0.2, 0.3, float("nan")]), min_size=4, max_size=4)


def metrics(scripted: Any, score: Any, easy: Any, loss: Any = (1.0, 1.0, 1.0, 1.0)) -> Any:
    return {"score": scripted(score), "easy/loss": scripted(easy), "loss": scripted(loss)}


def epoch_of(folder: Any, name: Any) -> Any:
    return checkpoint.load(Path(folder) / "checkpoints" / name)["epoch"]


def kept(folder: Any) -> Any:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("by", "names"), [("epoch", ["epoch_0003.pt", "epoch_0005.pt"]), ("iter", ["iter_00000010.pt", "iter_00000018.pt"])]
)
def test_no_regular_one_before_begin(make: Any, scripted: Any, tmp_path: Path, by: str, names: Any) -> None:
    interval, begin = {"epoch": (2, 3), "iter": (8, 10)}[by]
    hook = Checkpoint(interval, by=by, begin=begin, save_last=False, max_keep=None)
    make({"checkpoint": hook}, epochs=6 if by == "epoch" else 3, work_dir=tmp_path).train()
    assert checkpoint.read_last(tmp_path / "checkpoints") == names
    assert (tmp_path / "checkpoints" / "best.pt").exists()


@settings(max_examples=15)
@given(score=VALUES, easy=VALUES, interval=st.integers(1, 3), seconds=st.sampled_from([0.0, 1000.0]))
def test_each_best_is_the_first_with_the_best_value(
    make: Any, scripted: Any, score: Any, easy: Any, interval: int, seconds: float
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        hook = Checkpoint(interval, save_best=RULES, min_seconds=seconds)
        make({"checkpoint": hook}, epochs=4, work_dir=folder, metrics=metrics(scripted, score, easy)).train()
        for values, name, extreme in ((score, "best_score.pt", max), (easy, "best_easy_loss.pt", min)):
            numbers = [value for value in values if value == value]
            assert (Path(folder) / "checkpoints" / name).exists() is bool(numbers)
            if numbers:
                assert epoch_of(folder, name) == values.index(extreme(numbers)) + 1
        assert epoch_of(folder, "best.pt") == 1


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_resumed_run_knows_the_bests(make: Any, scripted: Any, tmp_path: Path, at: int) -> None:
    score, easy = [0.3, 0.1, 0.4, 0.2], [0.2, 0.3, 0.3, 0.1]

    def run(begin: Any, end: Any, resume: Any) -> Any:
        return make(
            {"checkpoint": Checkpoint(save_best=RULES)},
            loop=EpochBasedTrainLoop(end),
            work_dir=tmp_path,
            resume=resume,
            metrics=metrics(scripted, score[begin:], easy[begin:]),
        )

    run(0, at, False).train()
    run(at, 4, True).train()
    assert (epoch_of(tmp_path, "best_score.pt"), epoch_of(tmp_path, "best_easy_loss.pt")) == (3, 4)


def test_in_another_directory_the_bests_are_found_anew(make: Any, scripted: Any, tmp_path: Path) -> None:
    for folder, end, resume, score in (
        ("one", 2, False, [0.9, 0.1]),
        ("two", 4, tmp_path / "one" / "checkpoints" / "epoch_0002.pt", [0.3, 0.2]),
    ):
        make(
            {"checkpoint": Checkpoint(save_best={"val/score": "maximize"})},
            loop=EpochBasedTrainLoop(end),
            work_dir=tmp_path / folder,
            resume=resume,
            metrics=metrics(scripted, score, [1.0, 1.0]),
        ).train()
    assert epoch_of(tmp_path / "two", "best_score.pt") == 3


def test_one_state_is_written_once(make: Any, scripted: Any, tmp_path: Path) -> None:
    hook = Checkpoint(save_best=RULES)
    make({"checkpoint": hook}, epochs=1, work_dir=tmp_path, metrics=metrics(scripted, [0.5], [0.5])).train()
    directory = tmp_path / "checkpoints"
    names = ["best.pt", "best_easy_loss.pt", "best_score.pt", "epoch_0001.pt"]
    assert kept(tmp_path) == [*names, "last.json"]
    assert all((directory / name).samefile(directory / "best.pt") for name in names)


def test_a_metric_that_nobody_computes_ends_at_the_first_validation(make: Any, tmp_path: Path) -> None:
    hook = Checkpoint(save_best={"val/acuracy": "maximize"})
    with pytest.raises(ConfigError, match=r"hook.checkpoint.save_best: No metric named 'val/acuracy'. .*val/accuracy"):
        make(
            {"checkpoint": hook},
            work_dir=tmp_path,
            metrics={
                "accuracy": {"_target_": "trainyard.metrics.Accuracy"},
                "loss": {"_target_": "trainyard.metrics.CrossEntropy"},
            },
        ).train()


class KilledError(BaseException):
    """Ends the run where a signal that cannot be caught would."""


@pytest.mark.parametrize("moment", range(1, 9))
def test_killed_between_any_two_files_a_resumed_run_ends_alike(
    make: Any, scripted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: Any
) -> None:
    """Each rename makes something visible: the run dies before one of them."""
    score, easy = [0.1, 0.4, 0.3], [0.3, 0.2, 0.1]

    def run(begin: Any, folder: Any, resume: bool = False) -> Any:
        return make(
            {"checkpoint": Checkpoint(save_best=RULES, max_keep=2)},
            work_dir=tmp_path / folder,
            resume=resume,
            metrics=metrics(scripted, score[begin:], easy[begin:]),
        )

    run(0, "whole").train()
    count, replace = itertools.count(1), Path.replace

    def dying(self: Any, target: Any) -> Any:
        if self.parent.name == "checkpoints" and next(count) == moment:
            raise KilledError
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(KilledError):
            run(0, "killed").train()
    found = checkpoint.newest(tmp_path / "killed" / "checkpoints")
    run(found[1]["epoch"] if found else 0, "killed", resume=True).train()
    assert [name for name in kept(tmp_path / "killed") if name[0] != "."] == kept(tmp_path / "whole")
    for name in kept(tmp_path / "whole"):
        if name.endswith(".pt"):
            states = [checkpoint.load(tmp_path / way / "checkpoints" / name) for way in ("whole", "killed")]
            assert states[0]["epoch"] == states[1]["epoch"], name
            assert all(torch.equal(states[0]["model"][key], tensor) for key, tensor in states[1]["model"].items())


@pytest.mark.parametrize("average", [False, True])
def test_what_is_published_are_the_evaluated_weights_of_the_best(
    make: Any, scripted: Any, tmp_path: Path, average: bool
) -> None:
    hooks = {"ema": EMA(0.5)} if average else {}
    for epochs in (1, 3):  # the second time the best is another, and the older file is not left
        make(
            {"checkpoint": Checkpoint(published=True), **hooks},
            loop=EpochBasedTrainLoop(epochs),
            work_dir=tmp_path,
            resume=True,
            metrics={"loss": scripted([0.3] if epochs == 1 else [0.1, 0.2])},
        ).train()
    (file,) = (tmp_path / "published").iterdir()
    assert file.name == f"best-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pt"
    weights = torch.hub.load_state_dict_from_url(file.as_uri(), str(tmp_path / "hub"), check_hash=True, progress=False)
    best = checkpoint.load(tmp_path / "checkpoints" / "best.pt")
    assert list(weights) == ["model"]
    expected = best["eval_model" if average else "model"]
    assert all(torch.equal(weights["model"][name], tensor) for name, tensor in expected.items())
    runner = make({}, load_from=file)
    runner.val()
    assert all(torch.equal(expected[name], tensor) for name, tensor in runner.model.state_dict().items())


def test_without_a_best_the_last_is_published(make: Any, tmp_path: Path) -> None:
    make({"checkpoint": Checkpoint(published=True, save_best=False)}, epochs=2, work_dir=tmp_path).train()
    (file,) = (tmp_path / "published").iterdir()
    assert file.name[:5] == "last-"


def test_an_interrupted_run_publishes_nothing(make: Any, interrupt_at: Any, tmp_path: Path) -> None:
    make({"checkpoint": Checkpoint(published=True), "stop": interrupt_at(8)}, work_dir=tmp_path).train()
    assert not (tmp_path / "published").exists()


SHAPES = st.lists(st.sampled_from([(3,), (128, 64), (64, 128), (20_000,), ()]), max_size=6)


@settings(max_examples=30)
@given(shapes=st.lists(SHAPES, min_size=1, max_size=4), out=st.integers(1, 2))
def test_copies_hold_what_was_there_whatever_memory_they_share(shapes: Any, out: int) -> None:
    buffers, pending = HostBuffers(), []
    for number, kinds in enumerate(shapes):
        filled = [torch.full(shape, float(number * 10 + index)) for index, shape in enumerate(kinds)]
        tensors = [tensor.t() if tensor.ndim == 2 else tensor for tensor in filled]
        pending.append((buffers.copy({"a": tensors, "b": (1, {"c": tensors[:1]})}), number, kinds))
        for tensor in tensors:
            tensor.fill_(-1)
        for copy, then, theirs in pending:
            for index, (tensor, shape) in enumerate(zip(copy.state["a"], theirs, strict=True)):
                assert tensor.shape == torch.Size(shape)[::-1]
                assert (tensor == then * 10 + index).all()
        if len(pending) == out:
            pending.pop(0)[0].release()


def test_memory_is_used_again() -> None:
    buffers = HostBuffers()
    state = {"weight": torch.randn(256, 256), "row": torch.randn(300, 300)[:, :200]}
    buffers.reserve(state)
    places = set()
    for _ in range(5):
        copy = buffers.copy(state)
        places |= {tensor.data_ptr() for tensor in copy.state.values()}
        assert all(torch.equal(copy.state[name], tensor) for name, tensor in state.items())
        copy.release()
    assert len(places) == 2


def test_a_large_state_finds_its_memory_ready(make: Any, tmp_path: Path) -> None:
    class Count(Hook):
        def __init__(self) -> None:
            self.waiting: list[Any] = []

        def before_save_checkpoint(self, runner: Any, checkpoint: Any) -> None:
            hook._writer.wait()
            self.waiting.append(sum(len(free) for free in hook._buffers._free.values()))

    hook, count = Checkpoint(), Count()
    model = {"_target_": "trainyard.models.MLP", "in_features": 2, "num_classes": 2, "hidden": [512, 512]}
    make({"count": count, "checkpoint": hook, "ema": EMA()}, epochs=2, model=model, work_dir=tmp_path).train()
    assert count.waiting == [4, 4], "the large weight, its average and its two moments"


@pytest.mark.gpu
def test_copies_from_the_device(make: Any, tmp_path: Path) -> None:
    hooks = {"checkpoint": Checkpoint(1, by="iter", max_keep=None), "ema": EMA(0.5)}
    runner = make(hooks, device="cuda", work_dir=tmp_path)
    runner.train()
    state = checkpoint.newest(tmp_path / "checkpoints")[1]
    assert all(torch.equal(state["model"][name], tensor.cpu()) for name, tensor in runner.model.state_dict().items())
    earlier = checkpoint.load(tmp_path / "checkpoints" / "iter_00000001.pt")
    assert not torch.equal(earlier["model"]["net.0.weight"], state["model"]["net.0.weight"])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"begin": -1}, "begin: -1 is invalid. Expected an integer of at least 0"),
        (
            {"save_best": "val/loss"},
            "save_best: 'val/loss' is invalid. Expected true, false, or a direction for each metric",
        ),
        ({"save_best": {"val/a": "max"}}, "save_best.val/a: 'max' is invalid. Expected one of maximize, minimize"),
        (
            {"save_best": {"val/a_b": "minimize", "val/a/b": "minimize"}},
            "metrics with different file names, but the file names are best_a_b.pt, best_a_b.pt",
        ),
    ],
)
def test_settings_that_cannot_work(settings: Any, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        Checkpoint(**settings)
    assert told in str(error.value)
