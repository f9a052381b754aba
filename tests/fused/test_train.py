"""Several configs as one program, as the launcher of sweeps asks for it."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from torch import Tensor, nn

from trainyard.config.hydra_versions import VERSION_BASE
from trainyard.config.resolving import resolve
from trainyard.errors import StackDivided, Unfusable
from trainyard.fused import train as stack_trainer
from trainyard.fused.probe import probe
from trainyard.hooks import Hook
from trainyard.models import MLP, BaseModel, Supervised
from trainyard.runner import Runner, checkpoint
from trainyard.track.sweep_position import SweepPosition

CONF = Path(__file__).parents[2] / "conf"


class Branching(nn.Module):
    """A classifier whose way depends on a value: `vmap` refuses it."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.layer = nn.Linear(64, num_classes)

    def forward(self, x: Tensor, y: Tensor, mode: str) -> Any:
        logits = self.layer(x.flatten(1))
        if logits.mean().item() > 1e6:
            logits = logits / 2
        return {"loss": nn.functional.cross_entropy(logits, y)} if mode == "loss" else logits


class Dropped(Supervised):
    """A classifier with a dropout whose probability cannot differ between members."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.AlphaDropout(dropout)))


class Alone(Hook):
    """A hook that says nothing of members."""

    def after_train_epoch(self, runner: Runner) -> None:
        assert runner.members


class Ends(Hook):
    """Stops the first member after its first epoch; the second fails after its second."""

    stackable = True

    def after_train_epoch(self, runner: Runner) -> None:
        for member in runner.members:
            if runner.epoch == member.seed + 1:
                member.stop("it was told to", failed=member.seed == 1)


class Hungry(nn.Module):
    """A classifier that finds no memory for more than two members, once it has trained for a while."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x: Tensor, y: Tensor, mode: str) -> Any:
        logits = self.layer(x.flatten(1))
        return {"loss": nn.functional.cross_entropy(logits, y)} if mode == "loss" else logits

    def train_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        Hungry.steps += 1
        weight = self.layer.weight
        wide = torch._C._functorch.is_batchedtensor(weight) and torch._C._functorch.get_unwrapped(weight).shape[0] > 2
        if wide and Hungry.steps > 30:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        losses: dict[str, Tensor] = self(*batch, mode="loss")
        return losses


class Stops(Hook):
    """Stops the first member after its first validation, the second after its second."""

    stackable = True

    def after_val(self, runner: Runner) -> None:
        for member in runner.members:
            if runner.training and runner.epoch == member.seed + 1 < 3:
                member.stop("it was told to")


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    hydra = HydraConfig.instance()
    before = hydra.cfg
    yield
    hydra.cfg = before


def jobs(count: int, folder: Path, *overrides: str) -> list[DictConfig]:
    """Jobs of a sweep over the learning rate and the seed, as Hydra composes them."""
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        base = compose("train", ["tracker=none", "model.hidden=[16]", *overrides], return_hydra_config=True)
    made = []
    for num in range(count):
        config = copy.deepcopy(base)
        with open_dict(config):
            config.seed, config.optim.lr = num, 1e-3 * (num + 1)
            config.hydra.runtime.output_dir = str(folder / str(num))
            config.hydra.job.num, config.hydra.job.id, config.hydra.job.name = num, str(num), "train"
            config.hydra.overrides.task = [f"seed={num}"]
        made.append(config)
    return made


def positions(count: int) -> list[SweepPosition]:
    return [SweepPosition(None, ("seed", "optim.lr"), f"seed={num}") for num in range(count)]


def last(folder: Path) -> dict[str, float]:
    """The last value under each name in a journal."""
    values: dict[str, float] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        values |= json.loads(line).get("values", {})
    return values


def test_the_tags_of_hooks_do_not_replace_those_of_the_place_in_the_sweep(tmp_path: Path) -> None:
    places = [replace(place, stack="#0-#1", lane=lane) for lane, place in enumerate(positions(2))]
    stack_trainer.train_stack(jobs(2, tmp_path, "loop.max_epochs=1"), places)
    for num in range(2):
        own = json.loads((tmp_path / str(num) / "run.json").read_text())["tags"]
        later: dict[str, str] = {}
        for line in (tmp_path / str(num) / "metrics.jsonl").read_text().splitlines():
            later |= json.loads(line).get("tags", {})
        assert (own["stack"], own["lane"], later["stack_width"]) == ("#0-#1", str(num), "2")
        assert not own.keys() & later.keys()


def test_a_stack_leaves_a_directory_for_each_member(tmp_path: Path) -> None:
    results = stack_trainer.train_stack(jobs(3, tmp_path / "stack", "loop.max_epochs=3"), positions(3))
    alone = [
        stack_trainer.train_stack(jobs(3, tmp_path / "alone", "loop.max_epochs=3")[num:][:1], positions(1))
        for num in range(3)
    ]
    for num, (result, (solo,)) in enumerate(zip(results, alone, strict=True)):
        assert result.state == solo.state == "done"
        assert result.value == pytest.approx(solo.value, abs=0.006)  # one picture of 180
        ours, theirs = tmp_path / "stack" / str(num), tmp_path / "alone" / str(num)
        names = {str(path.relative_to(theirs)) for path in theirs.rglob("*") if path.is_file()}
        assert {str(path.relative_to(ours)) for path in ours.rglob("*") if path.is_file()} == names
        assert last(ours)["test/accuracy"] == pytest.approx(last(theirs)["test/accuracy"], abs=0.012)
        mine, its = ((folder / "config.yaml").read_text().replace("/stack/", "/alone/") for folder in (ours, theirs))
        assert mine == its


def test_a_stack_that_was_killed_goes_on_from_where_each_member_stood(tmp_path: Path) -> None:
    """One member's newest checkpoint is an epoch behind the others': killed while they were being written."""
    options = ("loop.max_epochs=4", "hook.checkpoint.min_seconds=0", "hook.checkpoint.max_keep=null")
    whole = stack_trainer.train_stack(jobs(3, tmp_path / "whole", *options), positions(3))
    stack_trainer.train_stack(jobs(3, tmp_path / "cut", *options), positions(3))
    for num, kept in enumerate((2, 1, 2)):
        folder = tmp_path / "cut" / str(num) / "checkpoints"
        for path in folder.glob("*.pt"):
            if path.name == "best.pt" or int(path.stem.rpartition("_")[2]) > kept:
                path.unlink()
        checkpoint.write_last(folder, sorted(path.name for path in folder.glob("epoch_*.pt")))
    again = jobs(3, tmp_path / "cut", *options)
    for config in again:
        config.resume = True
    results = stack_trainer.train_stack(again, positions(3))
    for num, (result, expected) in enumerate(zip(results, whole, strict=True)):
        assert result.value == expected.value
        cut, undisturbed = (
            checkpoint.load(tmp_path / name / str(num) / "checkpoints" / "epoch_0004.pt") for name in ("cut", "whole")
        )
        for name, tensor in undisturbed["model"].items():
            assert torch.equal(cut["model"][name], tensor), "the stack went back to what all of its members had"


def resumed(configs: list[DictConfig]) -> list[DictConfig]:
    for config in configs:
        config.resume = True
    return configs


class KilledError(Exception):
    """Ends a training as a kill would: nothing is written after it."""


def after(calls: int, function: Callable[..., None]) -> Callable[..., None]:
    """Return a function that works so often, and then ends the training."""
    done: list[Path] = []

    def killed(path: Path, *arguments: Any) -> None:
        if len(done) == calls:
            raise KilledError
        done.append(path)
        function(path, *arguments)

    return killed


def assert_same(cut: Path, whole: Path, *names: str) -> None:
    """Compare the bits of what two directories hold under these names."""
    for name in names:
        mine, its = (checkpoint.load(folder / "checkpoints" / name) for folder in (cut, whole))
        assert mine["member"]["best"] == its["member"]["best"]
        assert mine["iter"] == its["iter"]
        for part in ("model", "eval_model"):
            assert mine.get(part, {}).keys() == its.get(part, {}).keys()
            for key, tensor in its.get(part, {}).items():
                assert torch.equal(mine[part][key], tensor), (name, key)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    hydra = HydraConfig.instance()
    before, folder = hydra.cfg, tmp_path_factory.mktemp("undisturbed")
    stack_trainer.train_stack(jobs(3, folder, *WRITING), positions(3))
    hydra.cfg = before
    return folder


WRITING = ("loop.max_epochs=3", "hook.checkpoint.min_seconds=0", "hook.checkpoint.max_keep=1", "model.dropout=0.2")


@pytest.mark.parametrize(
    ("function", "calls"),
    [("save", 1), ("save", 2), ("write_last", 1), ("write_last", 2), ("save", 5), ("write_last", 5)],
)
def test_a_stack_killed_while_it_writes_ends_with_the_same_bits(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, calls: int
) -> None:
    """Killed after some calls of a function that writes: of one member's file, or of the record of its files."""
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, function, after(calls, getattr(checkpoint, function)))
        with pytest.raises(KilledError):
            stack_trainer.train_stack(jobs(3, tmp_path / "cut", *WRITING), positions(3))
    results = stack_trainer.train_stack(resumed(jobs(3, tmp_path / "cut", *WRITING)), positions(3))
    assert [result.state for result in results] == ["done"] * 3
    for num in range(3):
        assert_same(tmp_path / "cut" / str(num), undisturbed / str(num), "epoch_0003.pt", "best.pt")


@pytest.mark.parametrize(
    ("calls", "hooks"), [(2, "default"), (3, "ema"), (4, "default"), (5, "ema"), (6, "default"), (7, "ema")]
)
def test_a_killed_stack_of_which_some_had_ended_goes_on_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int, hooks: str
) -> None:
    """Seeds, so lanes of the data, differ; after the second epoch one member is left."""
    options = (*WRITING, "loop.max_epochs=5", f"hook=[{hooks}]", f"+hook.ends._target_={__name__}.Stops")
    whole = stack_trainer.train_stack(jobs(3, tmp_path / "whole", *options), positions(3))
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", after(calls, checkpoint.save))
        with pytest.raises(KilledError):
            stack_trainer.train_stack(jobs(3, tmp_path / "cut", *options), positions(3))
    results = stack_trainer.train_stack(resumed(jobs(3, tmp_path / "cut", *options)), positions(3))
    assert results == whole
    for num, epochs in enumerate((1, 2, 5)):
        assert_same(tmp_path / "cut" / str(num), tmp_path / "whole" / str(num), f"epoch_{epochs:04d}.pt", "best.pt")
        mine, its = last(tmp_path / "cut" / str(num)), last(tmp_path / "whole" / str(num))
        assert {key: mine[key] for key in mine if "time" not in key} == {
            key: its[key] for key in its if "time" not in key
        }


@pytest.mark.parametrize("hook", ["default", "norms"])
def test_members_that_did_not_train_together_are_divided_where_a_hook_counts_for_all(tmp_path: Path, hook: str) -> None:
    options = ("hook.checkpoint.min_seconds=0", "hook.checkpoint.max_keep=1", f"hook=[{hook}]")
    for num, epochs in enumerate((1, 2, 2)):
        config = jobs(3, tmp_path / "jobs", *options, f"loop.max_epochs={epochs}")[num]
        stack_trainer.train_stack([config], positions(1))
    longer = resumed(jobs(3, tmp_path / "jobs", *options, "loop.max_epochs=3"))
    if hook == "norms":
        with pytest.raises(StackDivided, match=r"different positions in the training \(hook\.norms") as divided:
            stack_trainer.train_stack(longer, positions(3))
        assert divided.value.groups == [[0], [1, 2]]
        longer = longer[1:]
    results = stack_trainer.train_stack(longer, positions(len(longer)))
    assert [result.state for result in results] == ["done"] * len(longer)
    assert (tmp_path / "jobs" / "0" / "checkpoints" / "epoch_0003.pt").exists() == (hook == "default")


def test_out_of_memory_halves_the_stack(tmp_path: Path) -> None:
    configs = jobs(4, tmp_path / "stack", "loop.max_epochs=3", "hook.checkpoint.min_seconds=0")
    for config in configs:
        with open_dict(config):
            config.model = {"_target_": f"{__name__}.Hungry"}
    Hungry.steps = 0
    with pytest.raises(StackDivided, match="4 members do not fit into memory") as divided:
        stack_trainer.train_stack(configs, positions(4))
    assert divided.value.groups == [[0, 1], [2, 3]]
    for group in divided.value.groups:
        results = stack_trainer.train_stack(resumed([configs[index] for index in group]), positions(2))
        assert [result.state for result in results] == ["done"] * 2
    assert Hungry.steps > 60
    for num in range(4):
        steps = [
            json.loads(line) for line in (tmp_path / "stack" / str(num) / "metrics.jsonl").read_text().splitlines()
        ]
        assert max(line.get("step", 0) for line in steps) == 60


def test_a_probe_tells_the_width_and_leaves_nothing(tmp_path: Path) -> None:
    fit = stack_trainer.probe(jobs(6, tmp_path / "stack"), 6)
    assert fit.note
    assert fit.width >= 1
    assert fit.width == 1 or fit.reason is None
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_a_probe_names_the_operation_and_the_line_that_vmap_refuses() -> None:
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        base = compose("train", ["tracker=none", "work_dir=null", "hook=[]"])
    values = resolve(base) | {"model": {"_target_": Branching}}
    fit = probe([values, values | {"seed": 1}], 2)
    assert fit.width == 1
    assert fit.reason is not None
    assert ".item()" in fit.reason
    assert "test_train.py" in fit.reason
    assert "if logits.mean().item() > 1e6" in fit.reason


def test_a_hook_for_one_member_is_named(tmp_path: Path) -> None:
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        base = compose("train", ["tracker=none", "work_dir=null", "hook=[default]"])
    values = resolve(base)
    values["hook"]["mine"] = {"_target_": Alone}
    fit = probe([values, values | {"seed": 1}], 2)
    assert fit.width == 1
    assert fit.reason == "hook.mine (Alone) supports one member only"


def test_a_probe_names_a_number_in_which_the_first_two_members_are_equal() -> None:
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        base = compose("train", ["tracker=none", "work_dir=null", "hook=[]"])
    values = resolve(base) | {"model": {"_target_": Dropped}}
    other = values | {"model": {"_target_": Dropped, "dropout": 0.2}}
    fit = probe([values, values | {"seed": 1}, other], 3)
    assert fit.width == 1
    assert fit.reason == "the models differ in net.2.p, which is neither a parameter nor a buffer"


def test_what_cannot_be_stacked_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(Unfusable, match="compile"):
        stack_trainer.train_stack(jobs(2, tmp_path / "stack", "compile=true"), positions(2))
    assert not (tmp_path / "stack").exists()


def test_one_that_stopped_is_tested_though_all_others_fail(tmp_path: Path) -> None:
    configs = jobs(2, tmp_path / "stack", "loop.max_epochs=4", f"+hook.ends._target_={__name__}.Ends")
    stopped, failed = stack_trainer.train_stack(configs, positions(2))
    assert (stopped.state, failed.state) == ("done", "failed")
    assert failed.error == "The training failed: it was told to."
    assert "test/accuracy" in last(tmp_path / "stack" / "0")
    assert "test/accuracy" not in last(tmp_path / "stack" / "1")


class Leaky(BaseModel):
    """A layer for which torch has no rule of vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 10), torch.nn.RReLU())

    def forward(self, x: Any, y: Any = None, mode: str = "tensor") -> Any:
        out = self.layers(x.flatten(1))
        return {"loss": torch.nn.functional.cross_entropy(out, y)} if mode == "loss" else out


class Named(MLP):
    """Returns names beside its predictions."""

    def val_step(self, batch: Any) -> Any:
        return {"scores": super().val_step(batch), "of": "digits"}


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"_target_": Leaky}, "torch.vmap has no rule for aten::rrelu: to stack the jobs, use another operation"),
        ({"_target_": Named, "in_features": 64, "num_classes": 10}, "the model returns a value of the type str: "),
    ],
)
def test_a_probe_says_what_to_change(model: Any, reason: str) -> None:
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        own = ["objective=val/loss", "direction=minimize"]
        base = compose("train", ["tracker=none", "work_dir=null", "hook=[]", "metric={}", *own])
    values = resolve(base) | {"model": model, "metric": {}}
    fit = probe([values, values | {"seed": 1}], 2)
    assert fit.width == 1
    assert (fit.reason or "").startswith(reason)
