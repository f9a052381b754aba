"""Settings of a sweep whose jobs run in Slurm."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainyard.checks import integer, is_integer, number
from trainyard.errors import ConfigError
from trainyard.sweep.agent_settings import AgentSettings, tell
from trainyard.sweep.executor.pool import Pool
from trainyard.sweep.executor.shipping.files import HeadFiles
from trainyard.sweep.executor.slurm import Resources, SlurmPool


@dataclass(frozen=True)
class SlurmSettings(AgentSettings):
    """Settings of a sweep whose jobs run in Slurm: those of a sweep on agents, and those of `sbatch`.

    Args:
        partition, account, qos, gpus_per_node, cpus_per_task, mem_gb, timeout_min, constraint, signal_delay_s, setup,
            additional_parameters: see `trainyard.sweep.executor.slurm.Resources`.
        address: the address on which the head listens; None for the address of its host name.
        detach: also submit the process that runs the sweep as a job, and return.
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
    setup: list[str] | None = None
    additional_parameters: dict[str, Any] | None = None
    address: str | None = None
    detach: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        integer("cpus_per_task", self.cpus_per_task, at_least=1)
        integer("timeout_min", self.timeout_min, at_least=2)
        if self.gpus_per_node is not None:
            integer("gpus_per_node", self.gpus_per_node, at_least=0, other="null")
        if self.mem_gb is not None:
            number("mem_gb", self.mem_gb, above=0, unit="GB", other="null")
        # Slurm may send the signal up to a minute earlier.
        most = 60 * (self.timeout_min - 1)
        if not is_integer(self.signal_delay_s, at_least=1, at_most=most):
            accepted = f"an integer from 1 to {most} (seconds; one minute less than timeout_min={self.timeout_min})"
            raise ConfigError("signal_delay_s", self.signal_delay_s, accepted)

    @property
    def resources(self) -> Resources:
        """The request of each agent."""
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
    def agent_gpus(self) -> int:
        return self.gpus_per_node or 0

    @property
    def agent_cpus(self) -> int:
        return self.cpus_per_task

    @property
    def listens_at(self) -> str | None:
        return self.address

    def pool(self, directory: Path, most: int, files: HeadFiles) -> Pool:
        return SlurmPool(directory, self.resources, most, tell)
