"""A Runner in a script or a notebook: trained again, interrupted, changed between two trainings."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from trainyard.errors import ConfigError
from trainyard.hooks import Checkpoint, Hook, Logger
from trainyard.metrics import CrossEntropy
from trainyard.models import MLP
from trainyard.runner import EpochBasedTrainLoop, Runner


class Presses(Hook):
    """Presses Ctrl-C in an iteration."""

    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if runner.iter == self.at:
            self.at = -1
            os.kill(os.getpid(), signal.SIGINT)


def made(folder: Path | None = None, epochs: int = 3, width: int = 8, **hooks: Any) -> Runner:
    torch.manual_seed(0)
    x, y = torch.randn(24, 4), torch.randint(3, (24,))
    loaders = {name: DataLoader(TensorDataset(x, y), 4, shuffle=name == "train") for name in ("train", "val")}
    return Runner(
        MLP(4, 3, [width], dropout=0.5),
        loaders,
        partial(torch.optim.Adam, lr=0.01),
        loop=EpochBasedTrainLoop(epochs),
        metrics={"loss": CrossEntropy()},
        hooks={"logger": Logger(interval=4)} | hooks,
        work_dir=folder,
        device="cpu",
    )


@pytest.fixture
def ctrl_c() -> Any:
    """Ctrl-C raises KeyboardInterrupt, as in a script, whatever other tests have left."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def same(one: Runner, other: Runner) -> bool:
    ours = other.model.state_dict()
    return all(torch.equal(value, ours[name]) for name, value in one.model.state_dict().items())


@pytest.mark.parametrize("in_folder", [False, True])
def test_ctrl_c_saves_and_returns_and_training_again_goes_on(ctrl_c: Any, tmp_path: Path, in_folder: bool) -> None:
    whole = made()
    whole.train()
    parts = made(tmp_path / "run" if in_folder else None, presses=Presses(8), checkpoint=Checkpoint())
    parts.train()
    assert (parts.iter, parts.interrupted) == (8, True)
    if in_folder:
        assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("iter*.pt")] == ["iter_00000008.pt"]
    parts.train()
    assert (parts.iter, parts.interrupted) == (18, False)
    assert same(whole, parts)


def test_a_second_ctrl_c_ends_it_at_once(ctrl_c: Any) -> None:
    class Twice(Hook):
        def after_train_iter(self, *_: Any, **__: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        made(twice=Twice()).train()


def test_a_run_that_has_ended_says_so_and_goes_on_if_the_loop_is_longer(caplog: pytest.LogCaptureFixture) -> None:
    runner = made(epochs=2)
    runner.train()
    runner.train()
    assert "Nothing to train: the run has finished (epoch 2 of 2). To train longer, set" in caplog.text
    runner.train_loop.length = 1
    runner.train()
    assert "(epoch 2 of 1). To train longer, set loop.max_epochs=4 in the config" in caplog.text
    runner.train_loop.length = 3
    runner.train()
    assert runner.epoch == 3
    whole = made()
    whole.train()
    assert same(whole, runner)


def test_a_loop_made_longer_validates_at_its_new_end() -> None:
    loop = EpochBasedTrainLoop(2, val_interval=5)
    loop.length = 3
    assert [count for count in range(1, 5) if loop.validates_after(count)] == [3]


def test_an_interruption_before_the_training_holds() -> None:
    runner = made()
    runner.prepare()
    runner.interrupt()
    runner.train()
    assert runner.iter == 0


def test_a_checkpoint_by_hand(tmp_path: Path) -> None:
    whole = made()
    whole.train()
    half = made(epochs=2)
    half.train()
    file = half.save_checkpoint(tmp_path / "folder" / "half.pt")
    other = made()
    other.load_checkpoint(file)
    other.train()
    assert same(whole, other)
    assert other.epoch == 3
    with pytest.raises(ConfigError, match=r"^path: '.*absent.pt' is invalid"):
        other.load_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(ConfigError, match=r"^path: '.*half.pt' is invalid. Expected a checkpoint of this model"):
        made(width=3).load_checkpoint(file)


def test_hooks_that_are_added() -> None:
    class Counts(Hook):
        seen = 0

        def after_train_epoch(self, runner: Runner) -> None:
            self.seen += 1

    counts, runner = Counts(), made()
    runner.register_hook(counts)
    runner.train()
    assert counts.seen == 3
    with pytest.raises(ConfigError, match=r"name: 'Counts' is invalid. Expected a name that no"):
        runner.register_hook(Counts())
    runner.register_hook(Counts(), "more", at="LOW")
    with pytest.raises(ConfigError, match=r"^at: 'LOWER' is invalid"):
        runner.register_hook(Counts(), "another", at="LOWER")


def test_predictions_for_a_loader() -> None:
    runner = made()
    runner.train()
    x = torch.randn(10, 4)
    found = runner.predict(DataLoader(TensorDataset(x, torch.zeros(10)), 4))
    with torch.no_grad():
        torch.testing.assert_close(found, runner.model.eval()(x, mode="predict"))
    assert runner.predict("val").shape == (24, 3)
    with pytest.raises(ConfigError, match="at least one batch"):
        runner.predict([])
