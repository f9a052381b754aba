"""`train.py strategy=ddp strategy.devices=2`, with real processes."""

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked
from waiting import LIMIT, until, until_gone

from trainyard.distributed.launch import cores
from trainyard.errors import ConfigError
from trainyard.run import ranks

ROOT = Path(__file__).parents[2]
QUICK = ["data=rings", "data.num_samples=300", "loop.max_epochs=20", "model.hidden=[8]"]
TWO = ["strategy=ddp", "strategy.devices=2"]
SLOW = "+hook.slow._target_=ranked_hooks.Slow"
WRONG = "+hook.wrong._target_=ranked_hooks.Wrong"
TORCHRUN = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1"]

pytestmark = pytest.mark.skipif(cores() < 2, reason="two ranks take two cores")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """Start `python train.py …`, or a launcher of it, in an empty folder; what is left of it at the end is killed."""
    started = []

    def begin(*arguments: Any, program: Any = (), tracker: str = "none") -> Any:
        flags = [argument for argument in arguments if argument == "-m"]
        wait = [] if tracker == "none" else [f"tracker.wait={LIMIT}"]
        rest = [f"tracker={tracker}", *wait, *(argument for argument in arguments if argument != "-m")]
        process: Any = (partial(subprocess.Popen, text=True) if program else partial(Forked, spares=5))(
            [sys.executable, *program, str(ROOT / "train.py"), *flags, *QUICK, *rest],
            cwd=tmp_path,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")},
                "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(Path(__file__).parent)]),
                "OMP_NUM_THREADS": "1",
                "COLUMNS": "500",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def train(start: Any) -> Any:
    """Run it to its end: status, what it said on standard output and error."""

    def run(*arguments: Any, **options: Any) -> Any:
        process = start(*arguments, **options)
        out, err = process.communicate(timeout=LIMIT)
        return process.returncode, out, err

    return run


def records(folder: Any, kind: Any) -> Any:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def epochs(folder: Any) -> Any:
    """The epochs that were validated, in the order of the journal."""
    return [record["epoch"] for record in records(folder, "metrics") if "val/accuracy" in record["values"]]


def children(pid: Any) -> Any:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(each) for each in found.stdout.split()]


def test_a_rank_killed_leaves_a_whole_run_to_those_that_are_left(train: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    wrong = [WRONG, "+hook.wrong.what=die", f"+hook.wrong.once={tmp_path / 'once'}", SLOW]
    keep = ["hook.checkpoint.min_seconds=0"]
    status, out, err = train(*TWO, "strategy.min_devices=1", *wrong, *keep, "hydra.run.dir=run", tracker="mlflow")
    assert (status, err) == (0, "")
    assert out.count("Rank 1 was killed by SIGKILL. Continuing with 1 of 2 devices from the last checkpoint.") == 1
    assert epochs(folder) == list(range(1, 21))
    assert [record["status"] for record in records(folder, "status")][-1] == "FINISHED"
    assert "val  epoch 20" in (folder / "train.log").read_text()
    other = (folder / "train.rank1.log").read_text()
    assert "val  epoch 6" in other
    assert "val  epoch 8" not in other
    info = json.loads((folder / "run.json").read_text())
    assert info["facts"]["world_size"] == "1"
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("select status from runs").fetchall() == [("FINISHED",)]
        ((steps,),) = database.execute("select count(*) from metrics where key = 'val/accuracy'").fetchall()
    assert steps == 20


def test_a_run_that_lost_a_rank_or_was_interrupted_goes_on(train: Any, start: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    status, out, err = train(*TWO, WRONG, "+hook.wrong.what=die", SLOW, "hydra.run.dir=run")
    assert status == 1
    assert out.count("Rank") + err.count("Rank") == 1
    assert err == ("Rank 1 was killed by SIGKILL; to resume, use the same command with hydra.run.dir=run resume=true\n")
    assert records(folder, "status")[-1]["status"] == "FAILED"
    assert records(folder, "status")[-1]["message"] == "Rank 1 was killed by SIGKILL."
    done = len(epochs(folder))

    process = start(*TWO, SLOW, "hydra.run.dir=run", "resume=true")
    until(lambda: len(epochs(folder)) > done)
    pids = children(process.pid)
    process.terminate()
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 143
    assert err.count("ending the ranks of this run") == 1
    assert err.count("to resume, use the same command with hydra.run.dir=run resume=true") == 1
    assert records(folder, "status")[-1]["status"] == "KILLED"
    assert len(pids) >= 2
    until_gone(*pids)

    status, out, err = train(*TWO, "hydra.run.dir=run", "resume=true")
    assert (status, err) == (0, "")
    assert "Resumed" in out
    assert epochs(folder) == list(range(1, 21))


def test_ranks_that_are_interrupted_before_they_have_started(start: Any, tmp_path: Path) -> None:
    """The processes of the ranks exist, and import torch."""
    process = start(*TWO, SLOW, "hydra.run.dir=run", program=["-u"])
    until(lambda: sum(_runs(pid, b"spawn_main") for pid in children(process.pid)) == 2, process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, err
    assert err.splitlines()[-1].startswith("Interrupted")
    assert "Traceback" not in err


@pytest.mark.parametrize("started", [1, 2])
@pytest.mark.parametrize(
    ("signals", "ended"), [(["SIGINT"], "interrupted 130"), (["SIGINT", "SIGTERM"], "KeyboardInterrupt")]
)
def test_a_signal_while_the_ranks_are_started(started: int, signals: list[str], ended: str) -> None:
    """Another thread receives it, before torch knows the processes; a second signal kills the ranks."""
    code = f"""
import os, signal, time
from multiprocessing.process import BaseProcess
from trainyard.distributed.launch import launch
begin, begun = BaseProcess.start, []
def start(process):
    begin(process)
    begun.append(process)
    if len(begun) == {started}:
        for name in {signals}:
            os.kill(os.getpid(), getattr(signal, name))
        time.sleep(0.5)
BaseProcess.start = start
try:
    outcome = launch(print, "ran", 2)
    print(outcome.state, outcome.status)
except KeyboardInterrupt:
    print("KeyboardInterrupt")
"""
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT, env=environ)
    assert done.stderr.splitlines() == [
        "",
        "Interrupted: ending the ranks of this run. Interrupt again to stop immediately.",
    ]
    assert done.stdout.splitlines() == [ended]


def _runs(pid: int, what: bytes) -> bool:
    """Whether the command of a process contains a word."""
    try:
        return what in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_a_rank_raises_is_told_once(train: Any, tmp_path: Path) -> None:
    status, out, err = train(*TWO, WRONG, "+hook.wrong.what=raise", "hydra.run.dir=run")
    assert status == 1
    assert err == "Rank 1 failed in the hook wrong (Wrong) at after_train_iter: ValueError: boom.\n"
    assert out.count("Traceback") == 1
    assert out.count("\nValueError: boom") == 1
    assert (
        "The rank was in the hook wrong (Wrong) at after_train_iter." in (tmp_path / "run/train.rank1.log").read_text()
    )
    assert records(tmp_path / "run", "status")[-1]["message"] == err.strip()

    before = sorted(tmp_path.rglob("*"))
    status, _, err = train(*TWO, "hydra.run.dir=run")  # all ranks find that, or the first alone: it makes no difference
    assert status == 2
    assert err.startswith("work_dir:")
    assert "Rank" not in err
    assert err.count("\n") == 1
    assert {path.name for path in set(tmp_path.rglob("*")) - set(before)} <= {"train.rank1.log"}


@pytest.mark.parametrize(
    ("what", "rank", "said", "cause"),
    [
        (
            "sleep",
            1,
            "Rank 1 kept the others waiting: it was in the hook wrong (Wrong) at after_train_iter. Rank 0: ",
            "Timed out waiting 2000ms",
        ),
        # Both ranks wait, for different communication: the connection is closed by the one that times out first.
        (
            "barrier",
            0,
            "Rank 0 failed in the hook wrong (Wrong) at after_train_iter: ",
            "Timed out waiting 2000ms|Connection closed by peer",
        ),
    ],
)
def test_a_hook_that_makes_others_wait_is_named(train: Any, what: str, rank: int, said: str, cause: str) -> None:
    wrong = [WRONG, f"+hook.wrong.what={what}", f"+hook.wrong.rank={rank}", "+hook.wrong.at=5"]
    status, _, err = train(*TWO, "strategy.timeout=200", *wrong, "+hook.wrong.impatient=true")
    assert status == 1
    assert err.startswith(said)
    assert re.search(cause, err)
    assert err.count("\n") == 1


def test_a_wrong_config_starts_nothing(train: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, out, err = train(*TWO, f"strategy.port={port}")
    assert status == 2
    assert out.count("\n") == 1, "the line that names what is to be trained"
    assert err.startswith(f"strategy.port: {port} is invalid. Expected a free port")
    assert list(tmp_path.iterdir()) == []


def ddp(**settings: Any) -> Any:
    return {"device": "cpu", "strategy": {"_target_": "trainyard.distributed.ddp.DDP", "launcher": "auto", **settings}}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"devices": cores() + 1},
            f"strategy.devices: {cores() + 1} is invalid. Expected auto, or at most {cores()}, the number of cores",
        ),
        ({"devices": 0}, "strategy.devices: 0 is invalid"),
        ({"devices": 2, "min_devices": 3}, "strategy.min_devices: 3 is invalid. Expected at most 2"),
        ({"devices": 2, "port": 70000}, "strategy.port: 70000 is invalid"),
        ({"launcher": "slurm"}, "strategy.launcher: 'slurm' is invalid"),
        ({"launcher": "ssh"}, "strategy.launcher: 'ssh' is invalid"),
    ],
)
def test_wrong_settings(settings: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError) as caught:
        ranks.spread(ddp(**settings))
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("device", "gpus", "accepted"),
    [
        ("cuda", 0, "auto or cpu, because torch finds no CUDA device"),
        ("mps", 0, "auto or cpu, because strategy.devices=2"),
        ("cuda:0", 2, "auto, cuda or cpu, because strategy.devices=2"),
    ],
)
def test_devices_that_cannot_be_shared(device: str, gpus: int, accepted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ConfigError, match=rf"^device: '{device}' is invalid. Expected {accepted}\.$"):
        ranks.spread(ddp(devices=2) | {"device": device})


def test_what_a_run_is_spread_over(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks.spread({}).devices == 1
    assert ranks.spread(ddp()).devices == 1  # on the CPU somebody has to say how many
    assert ranks.spread(ddp(devices=2)).devices == 2
    torchrun = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    over = ranks.spread(ddp(devices=2))
    assert (over.devices, over.world.world_size) == (1, 2)
    assert ranks.spread(ddp(devices=2, launcher="none")).devices == 2
    with pytest.raises(ConfigError, match=r"strategy\.devices: 3 is invalid. Expected auto, or 2"):
        ranks.spread(ddp(devices=3))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with pytest.raises(
        ConfigError, match=r"number of started processes \(2\), or the number of those on this machine \(1\)"
    ):
        ranks.spread(ddp(devices=3))
    with pytest.raises(ConfigError, match="This run was started in 2 processes"):
        ranks.spread({"strategy": {"_target_": "trainyard.distributed.Strategy"}})


def test_torchrun_starts_the_ranks_of_two_nodes(start: Any, tmp_path: Path) -> None:
    # The time differs between the ranks: the first one's is the directory of both.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    programs = [[*TORCHRUN, "--master-port", port, "--node-rank", node] for node in "01"]
    nodes = [start("strategy=ddp", "hydra.run.dir=outputs/${now:%f}", program=program) for program in programs]
    (out, err), (other, _) = (node.communicate(timeout=LIMIT) for node in nodes)
    assert [node.returncode for node in nodes] == [0, 0], err
    assert other == "", "the first one says it all"
    (folder,) = (tmp_path / "outputs").iterdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs"]
    assert {"train.log", "train.rank1.log", "checkpoints"} <= {path.name for path in folder.iterdir()}
    assert out.count("val  epoch 20") == 1
    assert epochs(folder) == list(range(1, 21))


def test_jobs_of_a_sweep_take_a_slot_for_each_device(train: Any, start: Any, tmp_path: Path) -> None:
    jobs = ["-m", *TWO, "seed=0,1", SLOW, "hydra.sweep.dir=sweep"]
    status, _, err = train(*jobs, "hydra.launcher.max_jobs=1")
    assert status == 2
    assert "A job needs 2 slots, one for each device, but at most 1 can be used. hydra.launcher.max_jobs=1" in err
    assert list(tmp_path.iterdir()) == []

    process = start(*jobs)
    journal = tmp_path / "sweep/0/metrics.jsonl"
    until(lambda: journal.exists() and epochs(journal.parent))
    (server,) = [pid for pid in children(process.pid) if children(pid)]
    (worker,) = children(server)  # the other job waits for both slots
    pids = children(worker)
    assert len(pids) >= 2
    os.kill(worker, signal.SIGKILL)
    until_gone(*pids)
    until(lambda: (tmp_path / "sweep/1/metrics.jsonl").exists())
    out, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    assert "one by one: strategy=ddp trains on several devices" in out
    assert "#0    seed=0  (2 slots)" in out
    assert "done     #1 seed=1" in out

    status, _, err = train(*jobs)
    assert (status, err) == (0, "")
    manifest = [json.loads(line) for line in (tmp_path / "sweep/manifest.jsonl").read_text().splitlines()]
    assert [entry["num"] for entry in manifest if entry.get("state") == "done"] == [1, 0]
    assert epochs(tmp_path / "sweep/0") == epochs(tmp_path / "sweep/1") == list(range(1, 21))
