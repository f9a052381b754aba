"""Settings of a sweep whose jobs run on a Ray cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from trainyard.checks import integer, number
from trainyard.errors import ConfigError
from trainyard.sweep.agent_settings import AgentSettings, tell
from trainyard.sweep.executor.pool import Pool
from trainyard.sweep.executor.ray_pool import ADDRESSES, RayPool, Request
from trainyard.sweep.executor.shipping.files import HeadFiles
from trainyard.sweep.executor.shipping.home import HomeFiles
from trainyard.sweep.executor.shipping.storage import ACCEPTED, Storage


@dataclass(frozen=True)
class RaySettings(AgentSettings):
    """Settings of a sweep whose jobs run on a Ray cluster: those of a sweep on agents, and those of Ray's actors.

    Args:
        address: the address of the cluster: `auto` for that of this machine or of `RAY_ADDRESS`, `local` for a cluster
            on this machine that is started for the sweep, `HOST:PORT`, or `ray://HOST:PORT`.
        num_gpus, num_cpus, resources: the request of each agent, as for Ray actors; `resources` are given by name.
        autoscaling: whether the cluster adds nodes, so that resources may become available later.
        head_address: the address on which the head listens; None for the address of its host name.
        storage: URL of a folder through which files are copied to the head from nodes without a shared disk; None if
            all nodes share a disk.
    """

    address: str = "auto"
    num_gpus: int | None = None
    num_cpus: int = 1
    resources: dict[str, Any] | None = None
    autoscaling: bool = False
    head_address: str | None = None
    storage: str | None = None

    ADDRESS = "head_address"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.address not in ("auto", "local") and not re.fullmatch(r"(ray://)?[^/]+:\d+", self.address):
            raise ConfigError("address", self.address, ADDRESSES, options=("auto", "local"))
        if self.storage is not None and self.transport == "files":
            accepted = "tcp, because hydra.launcher.storage is set and transport=files needs a shared disk"
            raise ConfigError("transport", self.transport, accepted)
        integer("num_cpus", self.num_cpus, at_least=1)
        if self.num_gpus is not None:
            integer("num_gpus", self.num_gpus, at_least=0, other="null")
        for name, amount in (self.resources or {}).items():
            if name in ("CPU", "GPU"):
                raise ConfigError(
                    "resources",
                    name,
                    "custom resources of the cluster",
                    hint=f"Use hydra.launcher.num_{name.lower()}s for this resource.",
                )
            number(f"resources.{name}", amount, above=0)

    @property
    def agent_gpus(self) -> int:
        return self.num_gpus or 0

    @property
    def agent_cpus(self) -> int:
        return self.num_cpus

    @property
    def listens_at(self) -> str | None:
        return self.head_address or ("127.0.0.1" if self.address == "local" else None)

    def check(self, config: DictConfig) -> None:
        if find_spec("ray") is None:
            hint = "This option needs Ray: pip install 'trainyard[ray]'."
            given = OmegaConf.select(config, "hydra.runtime.choices.hydra/launcher", default="ray")
            raise ConfigError("hydra/launcher", given, "an option whose packages are installed", hint=hint)
        super().check(config)

    def files(self, directory: Path) -> HeadFiles:
        if self.storage is None:
            return HeadFiles(directory)
        if self.storage.startswith("memory:"):
            raise ConfigError("storage", self.storage, ACCEPTED, hint="memory:// is visible only in this process.")
        files = HomeFiles(Storage(self.storage), directory, tell)
        files.check()
        return files

    def pool(self, directory: Path, most: int, files: HeadFiles) -> Pool:
        request = Request(self.num_cpus, self.num_gpus or 0, self.resources or {})
        patience = self.patience + self.grace
        home = files if isinstance(files, HomeFiles) else None
        return RayPool(directory, self.address, request, most, self.autoscaling, patience, home, tell)
