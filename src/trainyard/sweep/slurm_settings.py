"""Settings of a sweep whose jobs run in Slurm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from trainyard.checks import integer, number
from trainyard.errors import ConfigError
from trainyard.sweep.executor import Executor, LocalExecutor, find_slots
from trainyard.sweep.executor.cluster import ClusterExecutor
from trainyard.sweep.executor.remotes import ClusterSettings
from trainyard.sweep.executor.slots import Slot
from trainyard.sweep.executor.slurm import Resources, SlurmPool
from trainyard.sweep.settings import SweepSettings
from trainyard.track.network_disk import network_disk
from trainyard.track.uri import launch_folder, resolve


@dataclass(frozen=True)
class SlurmSettings(SweepSettings):
    """Settings of a sweep whose jobs run in Slurm: those of every sweep, those of `sbatch`, and those of agents.

    Args:
        max_slots: maximum number of slots.
        partition, account, qos, gpus_per_node, cpus_per_task, mem_gb, timeout_min, constraint, signal_delay_s, setup,
            additional_parameters: see `trainyard.sweep.executor.slurm.Resources`.
        transport, address, patience, idle: see `trainyard.sweep.executor.cluster.ClusterSettings`.
        detach: submit the process that runs the sweep as a job, too, and return.
    """

    max_slots: int = 8
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    gpus_per_node: int | None = None
    cpus_per_task: int = 1
    mem_gb: float | None = None
    timeout_min: int = 60
    constraint: str | None = None
    signal_delay_s: int = 120
    setup: list[str] | None = None
    additional_parameters: dict[str, Any] | None = None
    transport: Literal["tcp", "files"] = "tcp"
    address: str | None = None
    patience: float = 60.0
    idle: float = 30.0
    detach: bool = False

    def __post_init__(self) -> None:
        for name in ("max_slots", "cpus_per_task"):
            integer(name, getattr(self, name), at_least=1)
        integer("timeout_min", self.timeout_min, at_least=2)
        if self.gpus_per_node is not None:
            integer("gpus_per_node", self.gpus_per_node, at_least=0, other="null")
        if self.mem_gb is not None:
            number("mem_gb", self.mem_gb, above=0, unit="GB", other="null")
        # Slurm may send the signal up to a minute earlier.
        integer("signal_delay_s", self.signal_delay_s, at_least=1, at_most=60 * (self.timeout_min - 1))
        number("patience", self.patience, at_least=10, unit="seconds")
        number("idle", self.idle, at_least=0, unit="seconds")

    @property
    def resources(self) -> Resources:
        """What each agent asks for."""
        return Resources(
            self.partition,
            self.account,
            self.qos,
            self.gpus_per_node,
            self.cpus_per_task,
            self.mem_gb,
            self.timeout_min,
            self.constraint,
            self.signal_delay_s,
            self.setup or (),
            self.additional_parameters or {},
        )

    @property
    def slots_per_agent(self) -> int:
        """Slots that each agent brings."""
        if self.gpus_per_node:
            return self.gpus_per_node * (1 if self.jobs_per_gpu == "auto" else self.jobs_per_gpu)
        return max(1, self.cpus_per_task // (1 if self.threads_per_job == "auto" else self.threads_per_job))

    def check(self, config: DictConfig) -> None:
        tracker = OmegaConf.select(config, "tracker", throw_on_resolution_failure=False)
        if not isinstance(tracker, DictConfig) or "uri" not in tracker:
            return
        uri = resolve(tracker.uri, launch_folder())
        dialect, _, path = uri.partition(":///")
        if dialect.partition("+")[0] == "sqlite" and (disk := network_disk(Path(path.partition("?")[0]))) is not None:
            hint = (
                f"It is on a network disk ({disk}), where a SQLite database is damaged once two machines write to it. "
                "Runs tracked in a file of this machine can be shipped to a server later: scripts/sync.py."
            )
            accepted = "a server (http://HOST:PORT), or a file on a disk of this machine: sqlite:////var/tmp/mlflow.db"
            raise ConfigError("tracker.uri", uri, accepted, hint=hint)

    def slots(self, continued: bool) -> list[Slot]:
        if self.threads_per_job != "auto":
            integer("threads_per_job", self.threads_per_job, at_least=1, at_most=self.cpus_per_task, other="auto")
        if self.jobs_per_gpu != "auto":
            integer("jobs_per_gpu", self.jobs_per_gpu, at_least=1, other="auto")
        if self.max_jobs is not None:
            integer("max_jobs", self.max_jobs, at_least=1, other="null")
        gpus = self.gpus_per_node or 0
        threads: int = 1 if self.threads_per_job == "auto" else self.threads_per_job
        if gpus and self.threads_per_job == "auto":
            threads = max(1, self.cpus_per_task // self.slots_per_agent)
        count = min(self.max_slots, self.max_jobs or self.max_slots)
        return [Slot(index, f"cuda:{index % gpus}" if gpus else "cpu", None, threads) for index in range(count)]

    def executor(self, slots: Sequence[Slot], directory: Path, preload: Sequence[str]) -> Executor:
        per_agent = self.slots_per_agent
        if per_agent > len(slots):
            accepted = f"at least the {per_agent} slots that an agent brings"
            raise ConfigError("max_slots", len(slots), accepted)
        return ClusterExecutor(
            slots,
            SlurmPool(directory, self.resources, len(slots) // per_agent, tell),
            directory,
            per_agent=per_agent,
            preload=preload,
            grace=self.grace,
            settings=ClusterSettings(
                self.transport,
                self.address,
                self.patience,
                self.idle,
                {
                    "jobs_per_gpu": self.jobs_per_gpu,
                    "threads_per_job": slots[0].threads,
                    "max_jobs": per_agent,
                    "cores": self.cpus_per_task,
                },
            ),
            tell=tell,
        )

    def trial_executor(self, executor: Executor, preload: Sequence[str]) -> Executor:
        return LocalExecutor(find_slots(max_jobs=1), preload=preload)


def tell(line: str) -> None:
    """Show what happens to agents."""
    print(f"agents   {line}", flush=True)
