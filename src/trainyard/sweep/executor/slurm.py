"""Pool of agents in Slurm: arrays of jobs, each of which is one agent."""

from __future__ import annotations

import hashlib
import shlex
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from trainyard.application import StartedAs, continuation
from trainyard.errors import TrainyardError, counted
from trainyard.quoting import shell_override
from trainyard.sweep.executor import slurm_commands
from trainyard.sweep.executor.pool import Pool
from trainyard.sweep.executor.slurm_commands import QueuedJob, SlurmError

T = TypeVar("T")
FOLDER = "slurm"
FAILURES = 3
"""Number of consecutive agents that may end before they reach the head."""
_SHORTEST, _LONGEST = 1.0, 15.0  # seconds between two looks at the queue: the longer nothing changes, the longer
_PATIENCE = 60.0  # seconds for which Slurm's controller may not respond when a sweep starts
_ENDING = 90.0  # seconds to wait for the agents of an earlier head to leave the queue
_CAUSES = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "feature": "constraint",
    "time limit": "timeout_min",
    "memory": "mem_gb",
    "cpu": "cpus_per_task",
    "gres": "gpus_per_node",
    "option": "additional_parameters",
}
"""The setting to which a word in Slurm's refusal of a job refers."""
_USUAL = ("None", "Priority", "Resources", "BeginTime", "JobArrayTaskLimit", "Dependency", "")


@dataclass(frozen=True)
class Resources:
    """Request of an agent to Slurm: the options of `sbatch`, under submitit's names.

    Args:
        partition, account, qos, constraint: options of `sbatch`.
        gpus_per_node: GPUs of an agent.
        cpus_per_task: CPUs of an agent.
        mem_gb: its memory in GB.
        timeout_min: minutes after which Slurm ends it. Its jobs continue in another agent from their checkpoints.
        signal_delay_s: seconds before this limit at which it receives a signal.
        setup: lines of the script that run before the agent.
        additional_parameters: additional options of `sbatch` by name, with `_` for `-`: `{exclude: node7}`.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    gpus_per_node: int | None = None
    cpus_per_task: int = 1
    mem_gb: float | None = None
    timeout_min: int = 60
    constraint: str | None = None
    signal_delay_s: int = 120
    setup: Sequence[str] = ()
    additional_parameters: Mapping[str, Any] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """Return the options of `sbatch`."""
        memory = None if self.mem_gb is None else f"{round(self.mem_gb * 1024)}M"
        own = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "gpus-per-node": self.gpus_per_node,
            "cpus-per-task": self.cpus_per_task,
            "mem": memory,
            "time": self.timeout_min,
        }
        further = {name.replace("_", "-"): value for name, value in self.additional_parameters.items()}
        return {name: value for name, value in (own | further).items() if value is not None}


def script(command: Sequence[str], options: Mapping[str, Any], setup: Sequence[str] = ()) -> str:
    """Return a script for `sbatch` that runs a command as a separate step, which receives the signals of the job."""
    run = f"exec srun --ntasks=1 --cpus-per-task={options.get('cpus-per-task', 1)} --unbuffered"
    return "\n".join([*header(options), *setup, f"{run} {shlex.join(command)}", ""])


def header(options: Mapping[str, Any]) -> list[str]:
    """Return the first lines of a script for `sbatch`, with the options of the job; `False` leaves an option out."""
    lines = ["#!/bin/bash"]
    for name, value in options.items():
        if value is not False:
            lines.append(f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={shlex.quote(str(value))}")
    return lines


def name_of(directory: Path) -> str:
    """Return the name of the jobs of a sweep, which is the same for each path of its directory."""
    return f"trainyard-{hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:10]}"


class SlurmPool(Pool):
    """Keeps the wanted number of agents in the queue. A separate thread communicates with Slurm.

    Args:
        directory: the sweep's directory; scripts and the output of agents are in its folder `slurm/`.
        resources: the request of each agent.
        most: the maximum number of agents at a time.
        tell: called with messages about agents.
    """

    def __init__(
        self, directory: Path, resources: Resources, most: int, tell: Callable[[str], object] = lambda line: None
    ) -> None:
        self._folder = directory / FOLDER
        self._name = name_of(directory)
        self._resources = resources
        self._most = most
        self._tell = tell
        self._script = self._folder / "agent.sh"
        self._wanted = 0
        self._guard = threading.Lock()
        self._places: dict[str, str] = {}  # the last state of each agent in the queue
        self._arrived: set[str] = set()
        self._taken_back: set[str] = set()
        self._gone: dict[str, str] = {}
        self._failures: list[str] = []
        self._error: TrainyardError | None = None
        self._told: set[str] = set()
        self._retry_at = 0.0
        self._news = threading.Event()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def check(self) -> None:
        slurm_commands.check_installed()
        with tempfile.TemporaryDirectory() as folder:
            trial = Path(folder) / "agent.sh"
            trial.write_text(script(["true"], self._options()))
            try:
                self._patiently(lambda: slurm_commands.check_script(trial))
            except SlurmError as error:
                raise self._refusal(error) from None

    def _refusal(self, error: SlurmError) -> TrainyardError:
        if error.passes:
            return TrainyardError(f"The request for agents could not be checked: {error}. Try again later.")
        told = f"Slurm rejects agents with these settings: {error}."
        if "configuration is not available" in str(error) or "invalid partition" in str(error).lower():
            with suppress(SlurmError):
                told += f" Available: {slurm_commands.resources()}."
        settings = [f"hydra.launcher.{name}" for word, name in _CAUSES.items() if word in str(error).lower()]
        return TrainyardError(f"{told} Check {', '.join(settings)}." if settings else told)

    def _not_accepted(self, error: SlurmError, count: int) -> TrainyardError:
        """Return the error for agents that cannot be submitted, although their settings passed the check at the
        start."""
        directory = self._folder.parent
        how = continuation(directory, recorded=StartedAs.now() is not None)
        return TrainyardError(
            f"{counted(count, 'agent')} could not be submitted to Slurm: {error}. Slurm accepted these settings when "
            "the sweep started, so you may have reached a limit of the cluster, such as the number of jobs of a user. "
            f"To continue the sweep when other jobs have ended, {how}. To continue it with fewer agents, repeat its "
            f"command with {shell_override('hydra.sweep.dir', directory)} and a lower hydra.launcher.max_slots."
        )

    def _options(self) -> dict[str, Any]:
        return {
            "job-name": self._name,
            "nodes": 1,
            "ntasks": 1,
            "output": str(self._folder / "%A_%a.out"),
            "open-mode": "append",
            "requeue": True,
            "signal": f"USR2@{self._resources.signal_delay_s}",
            "chdir": str(Path.cwd()),
            **self._resources.options(),
        }

    def start(self, command: Sequence[str]) -> bool:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._script.write_text(script(command, self._options(), self._resources.setup))
        ended = self._end_earlier()
        self._thread = threading.Thread(target=self._work, name="trainyard slurm", daemon=True)
        self._thread.start()
        return ended

    def _end_earlier(self) -> bool:
        """Cancel the agents of an earlier head, and wait until they have left the queue."""
        asked_at, killed = None, False
        while jobs := self._patiently(self._queue):
            self._cancel([job.place for job in jobs if job.state == "PENDING"])
            working = [job.place for job in jobs if job.state != "PENDING"]
            now = time.monotonic()
            if asked_at is None:
                self._tell(f"Waiting for {len(jobs)} agent{'s' * (len(jobs) > 1)} of the previous head to end.")
                self._cancel(working, "--signal=TERM")  # they end at a checkpoint
                asked_at = now
            elif now - asked_at > _ENDING and not killed:
                self._cancel(working)
                killed = True
            elif now - asked_at > 2 * _ENDING:
                return False
            time.sleep(0.5)
        return True

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Return the answer of a Slurm command; while the controller does not respond, ask again for a while.

        Nobody may watch the head that asks, because Slurm has queued it again.
        """
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                return ask()
            except SlurmError as error:
                if not error.passes or time.monotonic() > until:
                    raise
                self._tell_once(f"Slurm: {error}. Trying again.")
            time.sleep(_SHORTEST)

    def _cancel(self, places: Sequence[str], *options: str) -> None:
        self._patiently(lambda: slurm_commands.cancel(places, *options))

    def _queue(self) -> list[QueuedJob]:
        return slurm_commands.queue(self._name)

    def want(self, count: int) -> None:
        count = min(count, self._most)
        if count != self._wanted:
            self._wanted = count
            self._news.set()

    def arrived(self, place: str) -> None:
        with self._guard:
            self._arrived.add(place)
            self._failures.clear()

    def gone(self) -> dict[str, str]:
        with self._guard:
            if self._error is not None:
                raise self._error
            found, self._gone = self._gone, {}
        return found

    def look(self) -> None:
        self._news.set()

    def close(self) -> None:
        self._ended.set()
        self._news.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            try:
                # The head has asked the others to end.
                slurm_commands.cancel([job.place for job in self._queue() if job.place not in self._arrived])
            except SlurmError as error:
                self._tell(f"Slurm: {error}. Agents that wait in the queue will end when they start.")

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        pause = _SHORTEST
        while not self._ended.is_set():
            try:
                changed = self._look()
            except SlurmError as error:
                changed = False
                self._tell_once(f"Slurm: {error}.")
                if not (error.passes or self._places):
                    self._end_with(TrainyardError(f"Slurm: {error}."))
            pause = _SHORTEST if changed else min(_LONGEST, pause * 1.3)
            if self._news.wait(pause):
                pause = _SHORTEST
            self._news.clear()

    def _look(self) -> bool:
        """Compare the queue with its previous state, and place or withdraw agents; return whether something changed."""
        jobs = {job.place: job for job in self._queue()}
        changed = self._compare(jobs)
        wanted = self._wanted
        missing = wanted - len(self._places)
        if missing > 0 and time.monotonic() >= self._retry_at:
            changed = self._submit(missing) or changed
        elif missing < 0:
            waiting = [place for place, state in self._places.items() if state == "PENDING"]
            taken = waiting[missing:]
            slurm_commands.cancel(taken)
            self._taken_back.update(taken)
            changed = changed or bool(taken)
        return changed

    def _submit(self, count: int) -> bool:
        """Submit agents, and return whether Slurm accepts them. If it does not, and there are no other agents, the
        sweep ends."""
        try:
            number = slurm_commands.submit(self._script, f"--array=0-{count - 1}")
        except SlurmError as error:
            if error.passes:
                raise
            self._retry_at = time.monotonic() + 30.0
            self._tell_once(f"Slurm: {error}.")
            if not self._places:
                self._end_with(self._not_accepted(error, count))
            return False
        with self._guard:
            self._places.update((f"{number}_{index}", "PENDING") for index in range(count))
        return True

    def _end_with(self, error: TrainyardError) -> None:
        with self._guard:
            self._error = error

    def _compare(self, jobs: Mapping[str, QueuedJob]) -> bool:
        changed = False
        for place, before in list(self._places.items()):
            job = jobs.get(place)
            now = "GONE" if job is None else job.state
            if job is not None and now == "PENDING" and job.reason not in _USUAL:
                self._tell_once(f"Agents are pending in Slurm: {job.reason}.")
            if now == before:
                continue
            changed = True
            with self._guard:
                if now == "GONE":
                    self._left(place)
                elif now == "PENDING":  # its node was taken away, and it waits for another
                    self._arrived.discard(place)
                    self._gone[place] = f"Slurm has requeued its job {place}"
                if job is not None:
                    self._places[place] = now
        return changed

    def _left(self, place: str) -> None:
        """Record that a job has left the queue."""
        del self._places[place]
        self._gone[place] = f"its job {place} has left the queue"
        if place in self._arrived or place in self._taken_back:
            return
        self._failures.append(place)
        if len(self._failures) >= FAILURES:
            self._error = TrainyardError(
                f"{len(self._failures)} agents ended before they connected to the head. Slurm job {place} "
                + self._last_words(place)
            )

    def _last_words(self, place: str) -> str:
        """Return the available information about the end of a job: its output, otherwise the information of Slurm and
        the disk."""
        path = self._folder / f"{place}.out"
        lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
        of_agent = [line for line in lines if line and not line.startswith("srun:")]
        if said := (of_agent or lines)[-1:]:  # srun reports last that the agent failed, or why it could not start it
            return f"printed: {said[0].rstrip('.')}. Its output is in {path}."
        told = f"ended{slurm_commands.ending(place)}"
        if path.exists():
            return f"{told}, and printed nothing."
        return f"{told}, and {path} does not exist. The node may have no access to the sweep's directory."

    def _tell_once(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._tell(line)
