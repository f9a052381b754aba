"""Paused members that go on in the same process: from memory, with the bits that their checkpoints give."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lane_jobs import config
from same_run import points

from trainyard.fused.feed import LaneJob
from trainyard.fused.member import StackMember
from trainyard.fused.runner import FusedRunner
from trainyard.hooks import Checkpoint
from trainyard.run.rungs import reporting
from trainyard.runner import checkpoint
from trainyard.runner.kept_states import KeptStates
from trainyard.track import RunInfo
from trainyard.track.sweep_position import Rungs, SweepPosition

REST = Rungs((2,), "epoch", 2)


class Generations:
    """Feed of two members that pause after two epochs: the second goes on as the first, the first as itself."""

    def __init__(self, folder: Path) -> None:
        self.closed = False
        self.runner: Any = None
        self._folder = folder

    def jobs(self) -> list[dict[str, Any]]:
        return [config(seed, 4, self._folder) for seed in range(2)]

    def take(self, count: int, *, wait: bool) -> Sequence[LaneJob]:
        if not wait:
            return []
        first, second = self.jobs()
        link = self._folder / "inherited.pt"
        if link.exists():
            self.closed = True
            return []
        link.hardlink_to(self._folder / "0/checkpoints/epoch_0002.pt")
        shutil.rmtree(self._folder / "1/checkpoints")
        heir = second | {"seed": 0, "resume": str(link), "resume_override": ["optim.lr"]}
        # In the other order of lanes: a row is read after it was written.
        return [self._job(heir), self._job(first | {"resume": True})]

    def _job(self, values: dict[str, Any]) -> LaneJob:
        return LaneJob(values, RunInfo(str(values["work_dir"])), SweepPosition(None, (), "job"))

    def cutting(self) -> None: ...
    def placed(self, spans: Any) -> None: ...
    def asked(self) -> Sequence[tuple[int, bool]]:
        return ()

    def left(self, members: Sequence[StackMember]) -> None:
        hook = next(each for each in self.runner.dispatch.hooks.values() if isinstance(each, Checkpoint))
        hook.wait()
        for member in members:
            member.journal.close()
        self.runner.all_members = [each for each in self.runner.all_members if each not in members]

    def refused(self, job: LaneJob, error: Exception) -> None:
        raise error


def trained(folder: Path) -> None:
    feed = Generations(folder)
    runner = feed.runner = FusedRunner(feed.jobs(), feed=feed)
    position = SweepPosition(None, (), "job", rungs=REST)
    runner.added_hooks |= reporting([position, replace(position)], joinable=True)
    runner.train()


def test_members_go_on_from_memory_with_the_bits_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_default_dtype(torch.float32)
    read: list[Path] = []
    load = checkpoint.load

    def noted(path: Path) -> dict[str, Any]:
        read.append(path)
        return load(path)

    monkeypatch.setattr(checkpoint, "load", noted)
    trained(tmp_path / "memory")
    assert read == [], "none is read"
    monkeypatch.setattr(KeptStates, "state", lambda self, path: None)
    trained(tmp_path / "files")
    for num in "01":
        assert points(tmp_path / "memory" / num) == points(tmp_path / "files" / num)
        own, other = (load(tmp_path / folder / num / "checkpoints/epoch_0004.pt") for folder in ("memory", "files"))
        for part in ("model", "eval_model", "optimizer", "schedule", "hooks", "random", "step"):
            assert repr(own[part]) == repr(other[part]), part
        assert all(torch.equal(own["model"][key], other["model"][key]) for key in own["model"])


def test_the_oldest_states_are_forgotten(tmp_path: Path) -> None:
    files = [tmp_path / str(k) for k in range(3)]
    kept = KeptStates(most=2 * 40)
    for k, file in enumerate(files):
        file.write_text(str(k))
        kept.keep(file, {"model": torch.full((10,), float(k))})
    assert kept.state(files[0]) is None
    found = kept.state(files[2])
    assert found is not None
    found["model"].zero_()
    again = kept.state(files[2])
    assert again is not None
    assert again["model"][0] == 2, "each takes a copy"
    files[2].write_text("another")
    assert kept.state(files[2]) is None
    assert kept.state(tmp_path / "none") is None
