"""Sweeps on a real Slurm of two nodes: they give the bits of the local launcher, whatever happens to nodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster_sweeps import JOBS, LONG, ROOT, assert_same, begun, bits, ends, output, slots, wait_for

from trainyard.errors import TrainyardError
from trainyard.sweep.executor.slurm import Resources, SlurmPool


def command(directory: Path, *arguments: str, launcher: str = "slurm", jobs: Sequence[str] = JOBS) -> list[str]:
    own = ["hydra.launcher.address=127.0.0.1", "hydra.launcher.max_slots=2"] if launcher == "slurm" else []
    sweep = [f"hydra/launcher={launcher}", f"hydra.sweep.dir={directory}", "tracker=none", "hydra.launcher.fuse=off"]
    return [sys.executable, str(ROOT / "train.py"), "-m", *sweep, *own, *jobs, *arguments]


def variables(directory: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(Path(__file__).parent), "GO": str(directory.parent / "go")}


def start(directory: Path, slurm: Any, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(directory, *arguments, **options),
        cwd=directory.parent,
        env={**slurm, **variables(directory)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(directory: Path, slurm: Any, *arguments: str, **options: Any) -> tuple[int, str]:
    process = start(directory, slurm, *arguments, **options)
    text = output(process)
    return process.returncode, text


def ask(slurm: Any, *words: str) -> str:
    return subprocess.run(words, env=slurm, capture_output=True, text=True, check=False, timeout=60).stdout


@pytest.fixture
def in_slurm(slurm: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """This process can use the cluster."""
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def local(slurm: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The bits of the sweep of long jobs on this machine."""
    directory = tmp_path_factory.mktemp("local") / "sweep"
    (directory.parent / "go").touch()
    status, text = run(directory, slurm, *LONG, launcher="local")
    assert status == 0, text
    return bits(directory)


@contextmanager
def a_sweep(
    directory: Path, slurm: Any, *arguments: str, jobs: Sequence[str] = JOBS, at_once: int = 2
) -> Iterator[subprocess.Popen[str]]:
    """A sweep of long jobs, the first of which have begun."""
    process = start(directory, slurm, *LONG, *arguments, jobs=jobs)
    try:
        wait_for(lambda: all(begun(directory, num) for num in range(at_once)), process)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def agents(directory: Path) -> dict[str, int]:
    """Process of the agent of each of Slurm's jobs that runs."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            environ = (path / "environ").read_bytes()
        except OSError:
            continue
        if os.fsencode(directory) in words and b"remote_agent" in b" ".join(words) and b"SLURM_PROCID=" in environ:
            variables = dict(line.split(b"=", 1) for line in environ.split(b"\0") if b"=" in line)
            place = variables[b"SLURM_ARRAY_JOB_ID"] + b"_" + variables[b"SLURM_ARRAY_TASK_ID"]
            if words[0].endswith(b"python") and words[1] == b"-c":
                found[place.decode()] = int(path.name)
    return found


def finish(directory: Path, slurm: Any, process: subprocess.Popen[str] | None = None) -> str:
    """Let a sweep end, and return what it printed."""
    (directory.parent / "go").touch()
    process = process or start(directory, slurm, *LONG)
    text = output(process)
    assert process.returncode == 0, text
    assert ends(directory) == dict.fromkeys(range(4), 1)
    wait_for(lambda: not ask(slurm, "squeue", "-h").strip())
    return text


def test_what_agents_and_heads_meet_with_changes_no_bit(slurm: Any, tmp_path: Path, local: Any) -> None:
    """An agent is killed, one nears its time limit, and then the head is killed and started again."""
    directory = tmp_path / "sweep"
    with a_sweep(directory, slurm) as process:
        (_, pid), (other, _) = agents(directory).items()
        # A minute; Slurm, which looks every half minute, sends the signal at once.
        ask(slurm, "scontrol", "update", f"JobId={other}", "TimeLimit=1")
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: slots(directory, "lost") == 2, process)
        wait_for(lambda: len(agents(directory)) == 2, process)
        os.killpg(process.pid, signal.SIGKILL)
        text = output(process)
        assert "leaves: the agent received SIGUSR2" in text
        assert "its fork server ended" not in text  # which Slurm sends the signal too
    text = finish(directory, slurm)
    assert "of the previous head to end." in text
    assert_same(bits(directory), local)


def test_what_disks_servers_and_nodes_meet_with_changes_no_bit(slurm: Any, tmp_path: Path, local: Any) -> None:
    """The directory is gone for a while, a job of more importance takes a node, and the other node is removed.

    The server of MLflow is down all the time.
    """
    directory = tmp_path / "sweep"
    down = ["tracker=mlflow", "tracker.uri=http://127.0.0.1:9", "tracker.wait=0"]
    with a_sweep(directory, slurm, *down) as process:
        directory.rename(tmp_path / "away")
        time.sleep(20)
        (tmp_path / "away").rename(directory)
        ask(slurm, "sbatch", "-p", "high", "-w", "n1", "-o", "/dev/null", "--wrap", "sleep 3")
        wait_for(lambda: slots(directory, "lost") == 1, process)
        ask(slurm, "scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
        try:
            wait_for(lambda: slots(directory, "lost") == 2, process)
        finally:
            ask(slurm, "scontrol", "update", "NodeName=n2", "State=RESUME")
        text = finish(directory, slurm, process)
    assert "leaves: the agent received SIGTERM" in text
    assert "its fork server ended" not in text
    assert "trainyard sync" in text
    assert_same(bits(directory), local)


def test_a_job_over_two_nodes_has_the_bits_of_srun(slurm: Any, tmp_path: Path) -> None:
    """An agent of the job is killed: the job goes on from its checkpoint when there is another one."""
    directory = tmp_path / "sweep"
    own = ["strategy=ddp", "strategy.devices=2", "loop.max_epochs=6"]
    with a_sweep(directory, slurm, *own, jobs=["seed=0"], at_once=1) as process:
        os.kill(next(iter(agents(directory).values())), signal.SIGKILL)
        wait_for(lambda: slots(directory, "lost") >= 1, process)
        (tmp_path / "go").touch()
        text = output(process)
    assert process.returncode == 0, text
    assert ends(directory) == {0: 1}
    assert (directory / "0" / "train.rank1.log").exists()
    by_hand = [*LONG, *own, "strategy.launcher=slurm", "strategy.devices=auto", "seed=0", "tracker=none"]
    words = ["srun", "-N2", "-n2", "--kill-on-bad-exit", sys.executable, str(ROOT / "train.py"), *by_hand]
    environ = {**slurm, **variables(directory), "MASTER_ADDR": "127.0.0.1"}  # the names of nodes are Slurm's alone
    told = subprocess.run(
        [*words, f"hydra.run.dir={tmp_path}/srun/0"], env=environ, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    assert_same(bits(tmp_path / "srun"), bits(directory))


def test_a_sweep_has_the_bits_of_the_local_launcher(slurm: Any, tmp_path: Path, local: Any) -> None:
    """It submits as many jobs as it has slots, and each run knows where it ran."""
    directory = tmp_path / "sweep"
    (tmp_path / "go").touch()
    status, text = run(directory, slurm, *LONG, "hydra.launcher.transport=files")
    assert status == 0, text
    assert_same(bits(directory), local)
    assert len(list((directory / "slurm").glob("*.out"))) == 2
    facts = json.loads((directory / "0" / "run.json").read_text())["facts"]
    assert facts["slurm.node"] in ("n1", "n2")
    assert facts["slurm.job"].endswith(("_0", "_1"))


def test_a_detached_sweep_is_attached_to_and_cancelled(slurm: Any, tmp_path: Path) -> None:
    directory = tmp_path / "sweep"
    where = ["hydra.launcher.constraint=tested", "hydra.launcher.additional_parameters={comment: mine}"]
    status, text = run(directory, slurm, "loop.max_epochs=100000", "hydra.launcher.max_slots=1", *where, DETACH)
    assert status == 0, text
    assert "4 jobs; 4 to run" in text
    assert "runs this sweep." in text
    steer = [sys.executable, "-m", "trainyard", "sweep"]
    wait_for(lambda: begun(directory, 0))
    head, agent = sorted(ask(slurm, "squeue", "-h", "-o", "%f %k %j").splitlines(), key=len, reverse=True)
    assert head.startswith("tested mine trainyard-")
    assert head.endswith("-head")
    assert head == f"{agent}-head", "both run on the same kind of node"
    attached = subprocess.Popen([*steer, "attach", directory], env=slurm, stdout=subprocess.PIPE, text=True)
    assert attached.stdout is not None
    while "started  #0" not in attached.stdout.readline():
        pass
    attached.send_signal(signal.SIGINT)
    assert "The sweep continues." in output(attached)
    number = (directory / "slurm" / "head").read_text()
    ask(slurm, "scontrol", "requeuehold", number)
    wait_for(lambda: ask(slurm, "squeue", "-h", "-j", number, "-o", "%T").strip() == "PENDING")
    again = subprocess.run([*steer, "resume", directory], env=slurm, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert f"Slurm job {number}, which will run this sweep, is pending." in again.stderr.replace("\n", " ")
    told = ask(slurm, *steer, "stop", str(directory), "3")
    assert f"Slurm job {number}, which will run this sweep, is pending." in told
    attached = subprocess.Popen([*steer, "attach", directory], env=slurm, stdout=subprocess.PIPE, text=True)
    assert attached.stdout is not None
    while f"Slurm job {number} is queued again" not in attached.stdout.readline():
        pass
    attached.kill()
    attached.communicate()
    assert "has ended; " in ask(slurm, *steer, "cancel", str(directory))
    wait_for(lambda: not ask(slurm, "squeue", "-h").strip())
    assert not ends(directory)
    gone = subprocess.run([*steer, "attach", directory], env=slurm, capture_output=True, text=True, check=False)
    assert gone.returncode == 2
    told = " ".join(gone.stderr.split())
    assert "which ran this sweep, has ended:" in told
    assert f"To continue the sweep, run `trainyard sweep resume {directory}`." in told


DETACH = "hydra.launcher.detach=true"


# Bad input


def test_what_slurm_refuses_is_said_once_before_anything_starts(slurm: Any, tmp_path: Path) -> None:
    directory = tmp_path / "sweep"
    status, text = run(directory, slurm, "hydra.launcher.partition=nowhere")
    assert status == 2, text
    told = " ".join(text.split())
    refusal = "Slurm rejects agents with these settings: Invalid partition name specified. Available: low: 2"
    assert told.count(refusal) == 1
    assert "Check hydra.launcher.partition." in told
    assert "Traceback" not in text
    assert not directory.exists()
    assert ask(slurm, "squeue", "-h").strip() == ""


def test_resources_that_no_node_has(in_slurm: None, tmp_path: Path) -> None:
    told = r"Slurm rejects agents .*: Requested node configuration is not available\. Available: low: 2 nodes"
    with pytest.raises(TrainyardError, match=told):
        SlurmPool(tmp_path, Resources(cpus_per_task=64), 1).check()


@pytest.mark.parametrize(
    ("setup", "told"),
    [
        ("echo no such module; exit 1", "printed: no such module"),
        ("kill -9 $$", r"ended as FAILED \(.*\), exit code 0:9, and printed nothing\."),
    ],
)
def test_agents_that_end_before_they_reach_the_head_end_the_sweep(
    in_slurm: None, tmp_path: Path, setup: str, told: str
) -> None:
    pool = SlurmPool(tmp_path, Resources(setup=[setup]), 2)
    pool.check()
    pool.start(["true"])

    def again() -> bool:
        pool.want(2)
        return bool(pool.gone()) and False

    try:
        with pytest.raises(TrainyardError, match=rf"^[34] agents ended .* Slurm job \d+_[01] {told}"):
            wait_for(again)
    finally:
        pool.close()
