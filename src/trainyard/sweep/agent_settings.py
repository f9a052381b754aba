"""Settings of a sweep whose jobs run on agents of a cluster."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig, OmegaConf

from trainyard.checks import integer, number
from trainyard.errors import ConfigError
from trainyard.sweep.executor import Executor, LocalExecutor, find_slots
from trainyard.sweep.executor.cluster import ClusterExecutor
from trainyard.sweep.executor.pool import Pool
from trainyard.sweep.executor.remotes import ClusterSettings
from trainyard.sweep.executor.shipping.files import HeadFiles
from trainyard.sweep.executor.slots import Slot
from trainyard.sweep.settings import SweepSettings
from trainyard.track.network_disk import network_disk
from trainyard.track.uri import launch_folder, resolve


@dataclass(frozen=True)
class AgentSettings(SweepSettings):
    """Settings of a sweep whose jobs run on agents: those of every sweep, and those of agents.

    Args:
        max_slots: maximum number of slots.
        transport, patience, idle: see `trainyard.sweep.executor.remotes.ClusterSettings`.
    """

    max_slots: int = 8
    transport: Literal["tcp", "files"] = "tcp"
    patience: float = 60.0
    idle: float = 30.0

    ADDRESS = "address"
    """Name of the setting of `listens_at`."""

    def __post_init__(self) -> None:
        integer("max_slots", self.max_slots, at_least=1)
        number("patience", self.patience, at_least=10, unit="seconds")
        number("idle", self.idle, at_least=0, unit="seconds")

    @property
    @abstractmethod
    def agent_gpus(self) -> int:
        """GPUs of each agent."""

    @property
    @abstractmethod
    def agent_cpus(self) -> int:
        """CPUs of each agent."""

    @property
    @abstractmethod
    def listens_at(self) -> str | None:
        """The address on which the head listens; None for the address of its host name."""

    @abstractmethod
    def pool(self, directory: Path, most: int, files: HeadFiles) -> Pool:
        """Return the pool that places agents.

        Args:
            directory: the sweep's directory.
            most: the maximum number of agents at a time.
            files: the handling of the files of jobs.
        """

    def files(self, directory: Path) -> HeadFiles:
        """Return the handling of the files of jobs; nothing is copied if all nodes see the directory of the sweep."""
        return HeadFiles(directory)

    @property
    def slots_per_agent(self) -> int:
        """Number of slots of each agent."""
        if self.agent_gpus:
            return self.agent_gpus * (1 if self.jobs_per_gpu == "auto" else self.jobs_per_gpu)
        return max(1, self.agent_cpus // (1 if self.threads_per_job == "auto" else self.threads_per_job))

    @property
    def disk_patience(self) -> float:
        return self.patience

    def check(self, config: DictConfig) -> None:
        tracker = OmegaConf.select(config, "tracker", throw_on_resolution_failure=False)
        if not isinstance(tracker, DictConfig) or "uri" not in tracker:
            return
        try:
            uri = resolve(tracker.uri, launch_folder())
        except ConfigError as error:
            raise error.under("tracker") from None
        dialect, _, path = uri.partition(":///")
        if dialect.partition("+")[0] == "sqlite" and (disk := network_disk(Path(path.partition("?")[0]))) is not None:
            hint = (
                f"This database is on a network disk ({disk}), where SQLite databases are damaged when two "
                "machines write to them. Runs tracked in a local file can be uploaded to a server later with "
                "`trainyard sync`."
            )
            accepted = "a server (http://HOST:PORT), or a file on a disk of this machine: sqlite:////var/tmp/mlflow.db"
            of_environment = not tracker.uri and os.environ.get("MLFLOW_TRACKING_URI")
            key = "MLFLOW_TRACKING_URI" if of_environment else "tracker.uri"
            raise ConfigError(key, uri, accepted, hint=hint)

    def slots(self, continued: bool) -> list[Slot]:
        if self.threads_per_job != "auto":
            integer("threads_per_job", self.threads_per_job, at_least=1, at_most=self.agent_cpus, other="auto")
        if self.jobs_per_gpu != "auto":
            integer("jobs_per_gpu", self.jobs_per_gpu, at_least=1, other="auto")
        if self.max_jobs is not None:
            integer("max_jobs", self.max_jobs, at_least=1, other="null")
        gpus = self.agent_gpus
        threads: int = 1 if self.threads_per_job == "auto" else self.threads_per_job
        if gpus and self.threads_per_job == "auto":
            threads = max(1, self.agent_cpus // self.slots_per_agent)
        count = min(self.max_slots, self.max_jobs or self.max_slots)
        return [Slot(index, f"cuda:{index % gpus}" if gpus else "cpu", None, threads) for index in range(count)]

    def limits_a_job(self, slots: Sequence[Slot], continued: bool) -> bool:
        return self.max_jobs is not None and self.max_jobs < self.max_slots

    def executor(self, slots: Sequence[Slot], directory: Path, preload: Sequence[str]) -> Executor:
        per_agent = self.slots_per_agent
        if per_agent > len(slots):
            key = "max_slots" if len(slots) == self.max_slots else "max_jobs"
            accepted = f"at least {per_agent}, the number of slots of an agent"
            fewer = "fewer GPUs or a smaller" if self.agent_gpus else "a larger"
            setting = "jobs_per_gpu" if self.agent_gpus else "threads_per_job"
            hint = f"With {fewer} hydra.launcher.{setting}, an agent has fewer slots."
            raise ConfigError(key, len(slots), accepted, hint=hint)
        files = self.files(directory)
        return ClusterExecutor(
            slots,
            self.pool(directory, len(slots) // per_agent, files),
            directory,
            files=files,
            per_agent=per_agent,
            preload=preload,
            grace=self.grace,
            settings=ClusterSettings(
                self.transport,
                self.listens_at,
                self.patience,
                self.idle,
                {
                    "jobs_per_gpu": self.jobs_per_gpu,
                    "threads_per_job": slots[0].threads,
                    "max_jobs": per_agent,
                    "cores": self.agent_cpus,
                },
                f"hydra.launcher.{self.ADDRESS}",
            ),
            tell=tell,
        )

    def trial_executor(self, executor: Executor, preload: Sequence[str]) -> Executor:
        return LocalExecutor(find_slots(max_jobs=1), preload=preload)


def tell(line: str) -> None:
    """Show a message about agents."""
    print(f"agents   {line}", flush=True)
