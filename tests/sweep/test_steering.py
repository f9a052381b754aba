"""Commands to a running sweep: on disk, in order, each once; the command line that gives them."""

import json
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import LIMIT, until

from trainyard.cli import main
from trainyard.errors import TrainyardError
from trainyard.sweep import detached
from trainyard.sweep.continuing import go_on
from trainyard.sweep.detached import _counts, _is_over, attach, cancel
from trainyard.sweep.executor import slurm_commands
from trainyard.sweep.executor.slurm_commands import QueuedJob, SlurmError
from trainyard.sweep.manifest import FILE, Manifest
from trainyard.sweep.steering import FOLDER, CommandFolder, acknowledged, acknowledgement
from trainyard.sweep.steering_cli import SweepState, steer
from trainyard.sweep.submitted_head import note_number, number_of, take_over

CONFIG = "optim: {lr: 0.1, betas: [0.9, 0.99]}\nmodel: {hidden: [8], parts: []}\nseed: 0\n"


def _append(directory: Path, **record: Any) -> None:
    with (directory / FILE).open("a") as file:
        file.write(json.dumps(record) + "\n")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep without a head: #0 is done, #1 runs, #2 waits, #3 is paused by a user, #4 has failed."""
    directory = tmp_path / "a sweep"
    directory.mkdir()
    _append(directory, kind="application", file="train.py", module=None)
    for num in range(5):
        _append(directory, kind="job", num=num, overrides=[f"seed={num}"], subdir=f"{num}")
    for num, state in {0: "done", 1: "running", 3: "paused", 4: "failed"}.items():
        _append(directory, kind="state", num=num, state=state, **({"by_hand": True} if state == "paused" else {}))
    for num in (0, 1):
        folder = directory / f"{num}/.hydra"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(CONFIG)
        (folder / "hydra.yaml").write_text("hydra: {runtime: {choices: {model: mlp, hydra/launcher: local}}}\n")
    return directory


def test_a_command_waits_for_a_head_and_is_taken_once(sweep: Path) -> None:
    told = steer(sweep, "pause", "#1")
    assert told == (
        "No process is running this sweep. The command will be executed when the sweep continues. To continue the "
        f"sweep, run `trainyard sweep resume '{sweep}'`."
    )
    assert steer(sweep, "pause", "1") == told, "the same command twice is one"
    head = CommandFolder(sweep)
    (command,) = head.pending(())
    assert (command.action, command.job, str(command)) == ("pause", 1, "pause #1")
    record = acknowledgement(command, told="#1 saves a checkpoint and pauses")
    assert acknowledged(record) == (command.id, acknowledged(json.loads(json.dumps(record)))[1])
    _append(sweep, **record)
    answers = SweepState.read(sweep).answers
    assert head.pending(answers) == CommandFolder(sweep).pending(answers) == []


def test_a_sweep_of_an_application_without_a_file_continues_with_its_own_command(sweep: Path) -> None:
    lines = (sweep / FILE).read_text().splitlines(keepends=True)
    (sweep / FILE).write_text("".join(line for line in lines if '"application"' not in line))
    told = steer(sweep, "stop", "1")
    assert f"To continue the sweep, use the same command with 'hydra.sweep.dir=\"{sweep}\"'." in told


def test_commands_that_wait_count(sweep: Path) -> None:
    for action in ("pause", "resume", "pause", "stop"):
        steer(sweep, action, "2")
    assert [str(each) for each in CommandFolder(sweep).pending(())] == ["pause #2", "resume #2", "pause #2", "stop #2"]
    with pytest.raises(TrainyardError, match="#2 will be stopped by an earlier command"):
        steer(sweep, "resume", "2")
    with pytest.raises(TrainyardError, match=r"#2 will be stopped by an earlier command\. Not finished: #1, #3, #4\."):
        steer(sweep, "pause", "2")
    steer(sweep, "resume", "3")
    steer(sweep, "clone", "3", ["seed=1"])
    with pytest.raises(
        TrainyardError, match=r"#3 will be resumed by an earlier command\. None of the other jobs is paused\."
    ):
        steer(sweep, "resume", "3")


@given(st.lists(st.tuples(st.sampled_from(["stop", "pause", "resume", "clone", "answer", "again"]), st.integers(0, 2))))
def test_every_command_is_taken_in_order_whatever_happens_to_the_head(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[Any, int]]
) -> None:
    directory = tmp_path_factory.mktemp("sweep")
    head = CommandFolder(directory)
    expected: list[tuple[str, int]] = []
    answered: list[tuple[str, int]] = []
    answers: set[str] = set()
    for action, job in events:
        if action == "answer":  # the head takes one
            for command in head.pending(answers)[:1]:
                answers.add(command.id)
                answered.append((command.action, command.job))
        elif action == "again":  # the head is killed, and another starts
            head = CommandFolder(directory)
        else:
            waiting = [each for each in expected[len(answered) :] if each[1] == job]
            _, new = CommandFolder(directory).give(action, job, (), answers)
            assert new == (waiting[-1:] != [(action, job)])
            expected += [(action, job)] if new else []
    assert answered + [(each.action, each.job) for each in head.pending(answers)] == expected


def test_commands_of_several_terminals_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(lambda job: CommandFolder(tmp_path).give("stop", job % 10, (), ())[0].id, range(40)))
    pending = CommandFolder(tmp_path).pending(())
    assert sorted({*given}) == [each.id for each in pending]
    assert sorted(each.job for each in pending) == list(range(10))
    assert [int(each.id.partition("-")[0]) for each in pending] == list(range(1, 11))


def test_what_is_no_command_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = CommandFolder(tmp_path)
    assert folder.pending(()) == [], "there is no folder yet"
    folder.give("stop", 1, (), ())
    texts = {"000002-a": "", "000003-b": '{"action": "erase", "job": 1, "overrides": []}', "x": "{}", "000004-c": "[]"}
    for name, text in texts.items():
        (tmp_path / FOLDER / f"{name}.json").write_text(text)
    (tmp_path / FOLDER / ".000009-d.tmp").write_text('{"action": "st')
    for _ in range(2):
        assert [str(each) for each in folder.pending(())] == ["stop #1"]
    assert len(caplog.records) == 3, "each is told once"
    assert folder.give("stop", 2, (), ())[0].id.startswith("000005-")
    folder.clear()
    assert folder.pending(()) == []


@pytest.mark.parametrize("refusal", ["", "it trains in a stack", "Expected one of adam, sgd. Did you mean 'sgd'?"])
def test_the_answer_of_a_head_is_waited_for(sweep: Path, refusal: str) -> None:
    manifest = Manifest.open(sweep)
    ready, taken = threading.Event(), []

    def head() -> None:
        with manifest.held():
            ready.set()
            folder = CommandFolder(sweep)
            (command,) = until(lambda: folder.pending(()))
            taken.append(command)
            _append(sweep, **acknowledgement(command, refusal, "#5 starts from epoch_0001.pt of #1"))

    thread = threading.Thread(target=head)
    thread.start()
    ready.wait()
    if refusal:
        with pytest.raises(TrainyardError) as error:
            steer(sweep, "clone", "1", ["optim.lr=0.2"], wait=LIMIT)
        end = "" if refusal.endswith("?") else "."
        assert str(error.value) == f"clone #1 optim.lr=0.2 was refused: {refusal}{end}"
    else:
        told = steer(sweep, "clone", "1", ["optim.lr=0.2"], wait=LIMIT)
        assert told == "Accepted: clone #1 optim.lr=0.2: #5 starts from epoch_0001.pt of #1."
    thread.join()
    assert taken[0].overrides == ("optim.lr=0.2",)


def test_a_pruned_job_is_finished(sweep: Path) -> None:
    def left() -> str:
        found = SweepState.read(sweep)
        return "" if _is_over(found) else _counts(found)

    _append(sweep, kind="state", num=4, state="pruned")
    with pytest.raises(TrainyardError, match=r"a job that is not finished; #4 is pruned\. Not finished: #1-#3\."):
        steer(sweep, "stop", "4")
    assert left() == "1 job done, 1 job interrupted, 1 job waiting, 1 job paused, 1 job pruned"
    for num in (1, 2):
        _append(sweep, kind="state", num=num, state="stopped")
    assert left() == "", "a job that a user has paused is left to the user"
    _append(sweep, kind="queued", units=[[3]])
    assert left() == "1 job done, 2 jobs stopped, 1 job waiting, 1 job pruned", "a user has resumed it"
    _append(sweep, kind="state", num=3, state="paused")
    assert left() == "1 job done, 2 jobs stopped, 1 job paused, 1 job pruned"
    _append(sweep, kind="state", num=3, state="timeout")
    assert left() == "1 job done, 2 jobs stopped, 1 job timed out, 1 job pruned"


def test_a_job_that_is_paused_at_a_rung_can_be_paused_by_hand(sweep: Path) -> None:
    _append(sweep, kind="state", num=2, state="paused")
    assert steer(sweep, "pause", "2").startswith("No process is running this sweep.")
    _append(sweep, kind="state", num=1, state="paused")
    _append(sweep, kind="state", num=1, state="paused", by_hand=True)
    with pytest.raises(TrainyardError, match="#1 is paused"):
        steer(sweep, "pause", "1")
    _append(sweep, kind="queued", units=[[1]])
    _append(sweep, kind="state", num=1, state="running")
    _append(sweep, kind="state", num=1, state="paused")
    steer(sweep, "pause", "1")


def test_the_end_of_a_detached_sweep(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (sweep / "slurm").mkdir()
    (sweep / "slurm/head").write_text("12")
    (sweep / "slurm/head.out").touch()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(TrainyardError, match=r"^squeue is not on the PATH\. Run this command"):
        attach(sweep)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(slurm_commands, "queued", lambda number: None)
    told = "Slurm job 12, which ran this sweep, has ended: 1 job done, 1 job interrupted, 1 job waiting, 1 job paused, "
    told += "1 job failed. To continue the sweep, "
    with pytest.raises(TrainyardError) as raised:
        attach(sweep)
    assert str(raised.value).startswith(f"{told}use the same command with 'hydra.sweep.dir="), "no record of it"
    (sweep / "multirun.yaml").touch()
    with pytest.raises(TrainyardError) as raised:
        attach(sweep)
    resume = f"trainyard sweep resume '{sweep}'"
    paused = f"To also resume a job that a user has paused, first run `{resume} JOB`."
    assert str(raised.value) == f"{told}run `{resume}`. {paused}"
    cancelled: list[Any] = []
    monkeypatch.setattr(slurm_commands, "cancel", lambda places, *options: cancelled.append(places))
    monkeypatch.setattr(slurm_commands, "queue", lambda name: [])
    for num in (1, 2, 4):
        _append(sweep, kind="state", num=num, state="done")
    attach(sweep)
    cancel(sweep)
    assert capsys.readouterr().out == "Slurm job 12 has ended; 4 jobs done, 1 job paused.\n"

    def fails(number: str) -> Any:
        raise SlurmError("squeue cannot be started: Permission denied")

    monkeypatch.setattr(slurm_commands, "queued", fails)
    with pytest.raises(SlurmError, match=r"^Slurm: squeue cannot be started: Permission denied\.$"):
        attach(sweep)


def test_attach_waits_for_slurm_and_for_a_head_that_is_queued_again(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def state(kind: str, reason: str = "None") -> QueuedJob:
        return QueuedJob("12", kind, "n1", reason)

    silent = SlurmError("squeue did not respond within 20 s", passes=True)
    answers: list[QueuedJob | SlurmError | None]
    answers = [state("PENDING", "Priority"), silent, silent, state("RUNNING"), state("PENDING", "BeginTime"), None]

    def looks(number: str) -> QueuedJob | None:
        answer = answers.pop(0)
        if isinstance(answer, SlurmError):
            raise answer
        if answer is not None and answer.state == "RUNNING":
            (sweep / "slurm/head.out").write_text("Interrupted.\n")
        return answer

    (sweep / "slurm").mkdir()
    note_number(sweep, "12")
    (sweep / "slurm/head.out").touch()
    for num in (1, 2):
        _append(sweep, kind="state", num=num, state="done")
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(detached, "_EVERY", 0.0)
    monkeypatch.setattr(slurm_commands, "queued", looks)
    with pytest.raises(TrainyardError, match="1 job failed"):
        attach(sweep)
    assert capsys.readouterr().out.splitlines() == [
        "Slurm job 12 is pending: Priority.",
        "Slurm: squeue did not respond within 20 s. Trying again.",
        "Interrupted.",
        "Slurm job 12 is queued again: BeginTime. The sweep continues when this job starts.",
    ]


def test_a_head_in_the_queue_of_slurm_is_the_only_one(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job: QueuedJob | None = QueuedJob("12", "PENDING", "", "BeginTime")
    (sweep / "slurm").mkdir()
    note_number(sweep, "12")
    (sweep / "multirun.yaml").touch()
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(slurm_commands, "queued", lambda number: job)
    told = steer(sweep, "stop", "1")
    assert told == (
        "Slurm job 12, which will run this sweep, is pending. The command will be executed when this Slurm job starts."
    )
    assert len(CommandFolder(sweep).pending(())) == 1
    for start in (take_over, go_on):
        with pytest.raises(
            TrainyardError, match=r"^Slurm job 12, which will run this sweep, is pending\. .* sweep cancel"
        ):
            start(sweep)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    take_over(sweep)  # it is this process
    assert number_of(sweep) == "12"
    monkeypatch.delenv("SLURM_JOB_ID")
    job = None
    take_over(sweep)
    assert number_of(sweep) is None, "`attach` shows this process"


def test_clones_have_numbers_of_their_own(sweep: Path) -> None:
    _append(sweep, kind="job", num=1_000_000, overrides=["seed=9"], subdir="1000000")
    with pytest.raises(TrainyardError, match=r"the number of a job of this sweep: #0-#4, #1000000\."):
        steer(sweep, "stop", "5")


def test_a_head_that_does_not_answer(sweep: Path) -> None:
    with Manifest.open(sweep).held():
        assert steer(sweep, "stop", "1", wait=0.0).startswith("Sent, but not answered yet: stop #1.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["stop", "nowhere", "1"], "DIR: 'nowhere' is invalid. Expected the directory of a sweep"),
        (["stop", ".", "9"], "JOB: '9' is invalid. Expected the number of a job of this sweep: #0-#4."),
        (["stop", ".", "first"], "JOB: 'first' is invalid"),
        (["stop", ".", "0"], "a job that is not finished; #0 is done. Not finished: #1-#4."),
        (["pause", ".", "3"], "a job that is not paused; #3 is paused. `trainyard sweep resume . 3` resumes this job."),
        (["resume", ".", "1"], "a job that is paused; #1 is waiting. Paused: #3."),  # no process runs it
        (["resume", ".", "4"], "a job that is paused; #4 has failed. Paused: #3."),
        (["pause", ".", "1", "seed=1"], "Got unexpected extra argument (seed=1)"),
        (["clone", ".", "1"], "a clone is a job with other values"),
        (["clone", ".", "2", "seed=1"], "a job that has started; #2 has no checkpoint to start from"),
        (["clone", ".", "0", "seed=1"], "Expected a job with a checkpoint; #0 has no checkpoint to start from."),
        (
            ["clone", ".", "1", "optim.lrr=1"],
            "a key of optim: optim.lr, optim.betas. Did you mean 'optim.lr'?",
        ),
        (["clone", ".", "1", "optim.lr.x=1"], "Expected a key of this job's config; optim.lr has no keys."),
        (
            ["clone", ".", "1", "optim.betas.2=1"],
            "'optim.betas.2' is invalid. Expected an index of optim.betas: 0 to 1.",
        ),
        (["clone", ".", "1", "optim.betas.0.x=1"], "optim.betas.0 has no keys."),
        (["clone", ".", "1", "model.parts.0=1"], "Expected an index of model.parts, which is empty."),
        (["clone", ".", "1", "~optim.lrr"], "The config has no optim.lrr to remove."),
        (["clone", ".", "1", "sed=1"], "Did you mean 'seed'?"),
        (["clone", ".", "1", "seed=1,2"], "seed: '1,2' is invalid. Expected one value, because a clone is one job."),
        (["clone", ".", "1", "seed=["], "'seed=[' is invalid. Expected an override, such as optim.lr=0.1."),
        (
            ["clone", ".", "1", "hydra.launcher.fuse=off"],
            "KEY=VALUE: 'hydra.launcher.fuse=off' is invalid. Expected an override of the job, because hydra keys "
            "apply to the entire sweep.",
        ),
        (["clone", ".", "1", "+tracker.uri=http://me:secret@host"], "without a password"),
    ],
)
def test_what_cannot_be_is_told_and_leaves_nothing(
    sweep: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sweep)
    with pytest.raises(SystemExit, match="2"):
        main(["sweep", *arguments])
    assert said in capsys.readouterr().err.replace("\n", " ")
    assert not (sweep / FOLDER).exists()


@pytest.mark.parametrize("work_dir", ["${hydra:runtime.output_dir}/work", "work"])
def test_a_checkpoint_in_another_directory_is_not_looked_for(sweep: Path, work_dir: str) -> None:
    (sweep / "0/.hydra/config.yaml").write_text(f"{CONFIG}work_dir: {work_dir}\n")
    steer(sweep, "clone", "0", ["seed=1"])
    assert len(CommandFolder(sweep).pending(())) == 1


@pytest.mark.parametrize("changes", [["seed=1"], ["loop.max_epochs=3"], ["seed=1", "loop.max_epochs=2"]])
def test_a_clone_of_a_finished_job_must_be_longer(sweep: Path, changes: list[str]) -> None:
    (sweep / "0/.hydra/config.yaml").write_text(f"{CONFIG}loop: {{max_epochs: 3, val_interval: 1}}\n")
    (sweep / "0/checkpoints").mkdir()
    (sweep / "0/checkpoints/last.json").touch()
    said = (
        f"KEY=VALUE: '{' '.join(changes)}' is invalid. Expected overrides that increase loop.max_epochs, because #0 "
        "has finished, and its clone would have nothing to train. Add loop.max_epochs=… with a value above 3."
    )
    with pytest.raises(TrainyardError, match=re.escape(said)):
        steer(sweep, "clone", "0", changes)
    assert not (sweep / FOLDER).exists()
    for longer in ("loop.max_epochs=4", "loop={max_epochs:4}", "model=cnn"):  # an option may select another loop
        steer(sweep, "clone", "0", [*changes, longer])
    assert len(CommandFolder(sweep).pending(())) == 3


def test_groups_and_new_keys_of_a_clone(sweep: Path) -> None:
    steer(
        sweep,
        "clone",
        "1",
        ["model=cnn", "+note=x", "++more=x", "model.hidden=[16]", "optim={lr:1}", "optim.betas.1=0.9"],
    )
    assert len(CommandFolder(sweep).pending(())) == 1


def test_it_starts_without_torch(sweep: Path) -> None:
    code = (
        "import sys; from trainyard.cli import group; group(sys.argv[1:], standalone_mode=False); "
        "sys.exit([name for name in ('torch', 'mlflow', 'numpy') if name in sys.modules] or None)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "sweep", "stop", str(sweep), "1"],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (result.returncode, result.stdout[:33]) == (0, "No process is running this sweep."[:33]), result.stderr
