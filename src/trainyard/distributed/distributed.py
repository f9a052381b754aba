"""Base of the strategies for several devices: one process per device, the same loops, a part of every batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainyard.batch import ITEMS
from trainyard.checks import integer, number
from trainyard.data import Batch, Loader
from trainyard.data.lengths import exact_length
from trainyard.distributed import world
from trainyard.distributed.rank_loader import share_of, turns_of
from trainyard.distributed.rank_metric import RankMetric
from trainyard.distributed.strategy import Strategy
from trainyard.errors import TrainyardError, counted, listed
from trainyard.metrics import Metric

log = logging.getLogger(__name__)

T = TypeVar("T")

LONGEST = 10**9
"""Maximum timeout in seconds, more than 30 years; torch computes wrong ones from much larger numbers."""


@dataclass(kw_only=True, eq=False)
class Distributed(Strategy):
    """One process per device, in one `torch.distributed` process group.

    Args:
        devices: the number of devices. `auto`: all GPUs that the process may use, or one process on the CPU.
        launcher: what starts the processes. With `none`, `train.py` starts them. With `pytorch` (torchrun), `slurm` or
            `mpi`, the process joins the processes that this launcher has started. `auto` is `pytorch` inside torchrun,
            otherwise `none`.
        min_devices: if a process is killed and at least this number of devices remains, the run continues on the
            remaining devices from its last checkpoint; None: the run ends.
        backend: `nccl`, `gloo` or another backend of torch; `auto` is nccl on CUDA and gloo on the CPU.
        port: the port at which processes started by `train.py` connect; None finds a free port.
        timeout: seconds after which a collective operation fails if a rank does not join it.

    Raises:
        ConfigError: a value is invalid.
    """

    devices: int | str = "auto"
    launcher: str = "auto"
    min_devices: int | None = None
    backend: str = "auto"
    port: int | None = None
    timeout: float = 600.0

    def __post_init__(self) -> None:
        if self.devices != "auto":
            every = "auto (every GPU; on the CPU, one process)"
            self.devices = integer("devices", self.devices, at_least=1, other=every)
        if self.min_devices is not None:
            end = "null to end the run when a rank is killed"
            self.min_devices = integer("min_devices", self.min_devices, at_least=1, other=end)
        if self.port is not None:
            self.port = integer("port", self.port, at_least=1, at_most=2**16 - 1, other="null to find a free port")
        self.timeout = number("timeout", self.timeout, above=0, at_most=LONGEST, unit="seconds")
        self._weight: Callable[[], float] = lambda: 1.0
        self._size: Callable[[], int] = lambda: 1
        self._told = False

    def begin(self, device: torch.device) -> torch.device:
        """Join the process group; on CUDA, each rank uses the device with its local rank.

        Raises:
            TrainyardError: the environment is not that of the launcher, or there are more ranks than GPUs.
        """
        found = world.find(self.launcher) or world.World()
        if device.type == "cuda":
            index = _own_gpu(found.local_rank) if device.index is None else device.index
            device = torch.device("cuda", index)
            torch.cuda.set_device(device)
        world.join(found, self.backend, device, self.timeout)
        self.rank, self.world_size, self.device = found.rank, found.world_size, device
        return device

    def end(self) -> None:
        world.leave()

    def loader(self, loader: Loader, split: str) -> Loader:
        of_rank = share_of if split == "train" else turns_of
        return of_rank(loader, self.rank, self.world_size)

    def train_on(self, loader: Loader) -> None:
        share: Any = loader
        self._weight, self._size = lambda: share.weight, lambda: share.size

    def samples(self, batch: Any) -> int:
        return self._size()

    def together(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield batches as long as every rank has one; the ranks agree before each batch."""
        for batch in batches:
            if self._ended(False):
                return
            yield batch
        self._ended(True)

    def _ended(self, own: bool) -> bool:
        """Return whether the epoch has ended for any rank; it then ends for all."""
        ended = torch.tensor([int(own)])
        dist.all_reduce(ended)
        count = int(ended.item())
        if 0 < count < self.world_size and not self._told:
            self._told = True
            log.warning(
                "The training data ends earlier on %d of %d devices. The epoch ends on all devices at that point, and "
                "the remaining data of the other devices is not used.",
                count,
                self.world_size,
            )
        return count > 0

    def check_served(self, loader: Loader, name: str) -> None:
        turns: Any = loader
        if exact_length(loader) is None and len(set(found := self.gather(turns.served))) > 1:
            raise TrainyardError(
                f"The devices read {listed(found)} batches of {name!r}. Each device evaluates its share of the "
                "batches, so the data must be the same on all devices."
            )

    def idle(self, loader: Loader) -> Iterator[Any]:
        turns: Any = loader
        found: Iterator[Any] = turns.idle()
        return found

    def metric(self, metric: Metric) -> Metric:
        return RankMetric(metric, self.rank, self.world_size)

    def before_evaluation(self, model: nn.Module) -> None:
        """Broadcast the buffers of rank 0 (BatchNorm's statistics), with which every rank evaluates."""
        with torch.no_grad():
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not values:
            return {}
        numbers = torch.cat([value.detach().to(torch.float64).flatten() for value in values.values()])
        dist.all_reduce(numbers)
        parts = torch.split(numbers / self.world_size, [value.numel() for value in values.values()])
        return {name: part.view(value.shape) for part, (name, value) in zip(parts, values.items(), strict=True)}

    def agree(self, flag: bool) -> bool:
        said = torch.tensor([int(flag)])
        dist.all_reduce(said, dist.ReduceOp.MAX)
        return bool(said.item())

    def decide(self, flag: bool) -> bool:
        said = torch.tensor([int(flag)])
        dist.broadcast(said, 0)
        return bool(said.item())

    def gather(self, value: T) -> list[T]:
        return world.gather_objects(value)

    def weighted(self, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return `step` with its losses scaled so that their mean over the ranks is the mean over the complete batch.

        Gradients are averaged over the ranks, whose parts of a batch may differ in size. If the model returns
        `num_items`, a rank is weighted by its number of items, and `num_items` becomes the number of items of the
        complete batch.
        """

        def losses(batch: Any) -> Any:
            found, weight = step(batch), self._weight()
            if ITEMS in found:
                return self._weighted_by_items(found, weight)
            if weight == 1.0:
                return found
            return {key: value * weight if isinstance(value, Tensor) else value for key, value in found.items()}

        return losses

    def _weighted_by_items(self, losses: Mapping[str, Any], weight: float) -> dict[str, Any]:
        """Weight the losses by the items of this rank; a rank with weight 0 has a row of another rank and no items of
        its own."""
        own = torch.as_tensor(losses[ITEMS], device=self.device).detach().double() * (weight > 0)
        whole = own.clone()
        dist.all_reduce(whole)
        share = own * self.world_size / torch.where(whole > 0, whole, 1)
        weighted = {
            # A mean over no item may be no number: it must not reach the others.
            key: torch.where(own > 0, value, 0) * share.to(value.dtype) if isinstance(value, Tensor) else value
            for key, value in losses.items()
        }
        return weighted | {ITEMS: whole}


def _own_gpu(local_rank: int) -> int:
    """Return the index of a rank's GPU among its visible GPUs; Slurm may show each rank only its own GPU."""
    count = torch.cuda.device_count()
    if count == 1:
        return 0  # if it is shared with another rank, NCCL reports that
    if local_rank >= count:
        raise TrainyardError(
            f"The process with local rank {local_rank} has no GPU, because it may use only {counted(count, 'GPU')}. "
            f"Start at most {counted(count, 'process', 'processes')} on each machine, make more GPUs visible "
            "(CUDA_VISIBLE_DEVICES, or the request of the job), or use device=cpu."
        )
    return local_rank
