"""`scripts/torture.py` finds what is broken, and the command that it prints finds it again."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from trainyard.data.dataloader import WorkerLoader
from trainyard.hooks import Hook

BROKEN = """
import os, torch
from trainyard.hooks import Hook

class Broken(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        with torch.no_grad():
            next(iter(runner.model.parameters())).view(-1)[0] += os.urandom(1)[0]
"""


@pytest.fixture(autouse=True)
def temporary_files_stay_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_a_hook_that_draws_without_a_seed_is_found_and_found_again(
    torture: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    also = ["--also", "+hook.broken._target_=broken.Broken"]
    assert torture.main(["runs", "--seed", "73", "--cases", "1", *also, "--json", str(tmp_path / "found.json")]) == 1
    said = capsys.readouterr().out
    (row,) = json.loads((tmp_path / "found.json").read_text())
    assert (row["part"], row["cases"], row["failures"]) == ("runs", 1, 1)
    assert "killed and resumed against undisturbed" in row["faults"]["0"]
    found = re.search(r"^repeat: python scripts/torture.py (.*)$", said, re.MULTILINE)
    assert found is not None
    assert shlex.split(found[1]) == ["runs", "--seed", "73", "--case", "0", *also]
    assert torture.main(shlex.split(found[1])) == 1
    again = capsys.readouterr().out
    drawn = [re.search(r"^runs 0  FAILED  [\d.]+ s  (.*)$", each, re.MULTILINE) for each in (said, again)]
    assert drawn[0] is not None
    assert drawn[1] is not None
    cases = [re.sub(r"@time:\d+", "@time", each[1]) for each in drawn if each]  # a share of what the run took
    assert cases[0] == cases[1]


class Nudge(Hook):
    """Changes a weight of a member that is not alone."""

    stackable = True

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if len(runner.members) > 1:
            with torch.no_grad():
                next(iter(runner.members[1].model.parameters())).view(-1)[0] += 1e-8


def test_a_member_that_differs_in_the_ninth_digit_is_found(torture: Any, tmp_path: Path) -> None:
    import child
    import stacks
    from trials import FaultError

    for number in range(50):
        configs = stacks.drawn(Random(number))
        if configs[0]["optim"]["_target_"].endswith("Adam"):
            break
    configs = [{**config, "hook": {"param_schedule": config["hook"]["param_schedule"]}} for config in configs]
    assert child.run(lambda: stacks.compare(configs), tmp_path).status == 0
    nudged = [{**config, "hook": {**config["hook"], "nudge": {"_target_": Nudge}}} for config in configs]
    with pytest.raises(FaultError, match="member 1 in the stack against alone"):
        child.run(lambda: stacks.compare(nudged), tmp_path)


def test_a_batch_that_is_left_out_is_found(torture: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lengths
    from trials import FaultError, Trial

    whole = WorkerLoader.batches

    def cut(self: Any, epoch: int = 0, start: int = 0, *more: Any) -> Any:
        return whole(self, epoch, start + (epoch == 1), *more)

    monkeypatch.setattr(WorkerLoader, "batches", cut)
    with pytest.raises(FaultError, match="by hand"):
        lengths.attempt(Trial(Random(2), tmp_path))


@pytest.mark.parametrize(
    ("status", "said", "left", "fault"),
    [
        (0, "", ["run"], None),
        (2, "optim.lr: wrong.", [], None),
        (2, "optim.lr: wrong.", ["run"], "left run"),
        (1, "Traceback (most recent call last):", [], "a traceback"),
        (-11, "", [], "status -11"),
    ],
)
def test_how_a_command_may_end(
    torture: Any, tmp_path: Path, status: int, said: str, left: list[str], fault: str | None
) -> None:
    import child
    import overrides
    from trials import FaultError

    for name in left:
        (tmp_path / name).mkdir()
    ended = child.Ended(status, {}, None, said)
    if fault is None:
        overrides.check(ended, tmp_path)
    else:
        with pytest.raises(FaultError, match=fault):
            overrides.check(ended, tmp_path)


@pytest.mark.parametrize(
    ("status", "said", "fault"),
    [
        (0, "", None),
        (2, "optim.lr: 'abc' is invalid.", None),
        (2, "timm: pip install timm", None),
        (2, "lr: 'abc' is invalid.", "does not name the key"),
        (1, "Traceback (most recent call last):", "a traceback"),
        (-11, "", "status -11"),
    ],
)
def test_how_a_command_with_a_wrong_value_may_end(
    torture: Any, tmp_path: Path, status: int, said: str, fault: str | None
) -> None:
    import child
    import values
    from trials import Trial

    ended = child.Ended(status, {}, None, said)
    found = values._fault(values.Place("optim/adam", "optim.lr"), "abc", ended, Trial(Random(0), tmp_path))
    assert found is None if fault is None else fault in str(found)


def test_every_group_has_keys_with_wrong_values(torture: Any) -> None:
    import values

    keys = {place.key for place in values.places()}
    assert {"seed", "limit.val_batches", "env.threads", "strategy.port", "tracker.wait", "loop.max_epochs"} <= keys
    assert {"hydra.launcher.partition", "hydra.sweeper.population", "hydra.sweeper.pruner.eta"} <= keys
    assert {"hydra.sweeper.sampler.seed", "model.data_preprocessor.alpha", "data.context_length"} <= keys
    assert torture.PARTS["values"].complete() == len(values.places())


def test_a_damaged_checkpoint_that_is_believed_is_found(
    torture: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import damage
    from trials import FaultError, Trial

    def changed(random: Random, file: Path) -> str:
        if file.suffix == ".pt":
            state = torch.load(file, weights_only=True)
            next(iter(state["model"].values())).view(-1)[0] += 1
            torch.save(state, file)
        return "a weight"

    monkeypatch.setattr(damage, "_damage", changed)
    trial = Trial(Random(1), tmp_path / "0")
    trial.folder.mkdir()
    monkeypatch.setattr(trial.random, "choice", lambda options: options[-1])  # all files
    with pytest.raises(FaultError, match="resumed after the damage against undisturbed"):
        damage.damage_checkpoints(trial)


def test_a_job_that_is_done_twice_is_found(torture: Any, tmp_path: Path) -> None:
    import sweeps
    from trials import FaultError

    job = {"kind": "job", "num": 0, "overrides": []}
    done = {"kind": "state", "num": 0, "state": "done"}
    for name, records in (("once", [job, done]), ("twice", [job, done, done])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    with pytest.raises(FaultError, match=r"how often: \{0: 2\}"):
        sweeps._check(tmp_path / "twice", tmp_path / "once", exact=True)


def test_a_moment_is_the_same_place_each_time(torture: Any, tmp_path: Path) -> None:
    import child

    def write() -> None:
        for number in range(5):
            Path(f"{number}.txt").write_text("")

    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        ended = child.run(write, tmp_path / name, child.Moment("file", 4, signal.SIGKILL))
        assert ended.status == -signal.SIGKILL
        assert sorted(file.name for file in (tmp_path / name).glob("?.txt")) == ["0.txt", "1.txt", "2.txt"]
    assert child.run(write, tmp_path / "first").counts["file"] == 5


def test_a_tree_of_processes(torture: Any) -> None:
    import process_tree

    pid = os.getpid()
    assert process_tree.tree(pid)[0] == pid
    assert pid in process_tree.tree(os.getppid())
    assert process_tree.alive([pid]) == [pid]
    assert Path(sys.executable).name in process_tree.command(pid)


def test_the_page_keeps_the_rows_of_other_parts(torture: Any, tmp_path: Path) -> None:
    import reliability_page
    from trials import Result

    page = tmp_path / "page.md"
    page.write_text("# Title\n\n| part | cases | failures | compared | command |\n|---|---|---|---|---|\n\nThe end.\n")
    results = [Result("runs", 5, case, "", None if case else "broken", 1.0) for case in range(3)]
    rows = [reliability_page.row(torture.PARTS[name], 5, results) for name in ("runs", "stacks")]
    reliability_page.write(rows, page)
    reliability_page.write([reliability_page.row(torture.PARTS["runs"], 6, results[1:])], page)
    lines = page.read_text().splitlines()
    assert [line.split("|")[1:4] for line in lines if line.startswith(("| runs", "| stacks"))] == [
        [" runs ", " 2 ", " 0 "],
        [" stacks ", " 3 ", " 1 "],
    ]
    assert "`python scripts/torture.py stacks --seed 5 --cases 3`" in page.read_text()
    assert lines[-1] == "The end."
