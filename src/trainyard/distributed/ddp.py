"""Data-parallel strategy: every device has the complete model, and gradients are averaged."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from trainyard.checks import boolean
from trainyard.distributed.distributed import Distributed
from trainyard.errors import ConfigError


@dataclass(kw_only=True, eq=False)
class DDP(Distributed):
    """torch's `DistributedDataParallel`.

    Args:
        devices, launcher, min_devices, backend, port, timeout: see `Distributed`.
        find_unused_parameters: for a model in which some losses do not depend on all parameters; slower.
        static_graph: the same parameters are used in every iteration, so torch can plan communication once.
        gradient_as_bucket_view: gradients are views of the communication buffers, which saves a copy.
        sync_batchnorm: convert every BatchNorm to a `SyncBatchNorm`, whose statistics are those of the complete batch;
            only on CUDA.
        bf16_compress: send gradients as bfloat16, which halves the traffic and rounds the gradients; only on CUDA.

    Raises:
        ConfigError: a value is invalid; (in `begin`) an option that torch supports only on CUDA is used on the CPU.
    """

    own_gradients = True

    find_unused_parameters: bool = False
    static_graph: bool = False
    gradient_as_bucket_view: bool = True
    sync_batchnorm: bool = False
    bf16_compress: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in DDP.__annotations__:
            boolean(name, getattr(self, name))
        self._ddp: DistributedDataParallel | None = None

    def begin(self, device: torch.device) -> torch.device:
        device = super().begin(device)
        for name in ("sync_batchnorm", "bf16_compress"):
            if device.type == "cpu" and getattr(self, name):
                raise ConfigError(name, True, "false on the CPU: torch supports this option only on CUDA")
        return device

    def place(self, model: nn.Module) -> nn.Module:
        """Return the model, with its BatchNorms converted under `sync_batchnorm`."""
        if not self.sync_batchnorm:
            return model
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted

    def train_step(self, model: nn.Module, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        self._ddp = DistributedDataParallel(
            _TrainStep(model, step),
            find_unused_parameters=self.find_unused_parameters,
            static_graph=self.static_graph,
            gradient_as_bucket_view=self.gradient_as_bucket_view,
        )
        if self.bf16_compress:
            self._ddp.register_comm_hook(None, bf16_compress_hook)
        return self.weighted(self._ddp)

    def no_sync(self) -> AbstractContextManager[None]:
        return nullcontext() if self._ddp is None else self._ddp.no_sync()


class _TrainStep(nn.Module):
    """The model with its training step as the forward pass, which DDP wraps."""

    def __init__(self, model: nn.Module, step: Callable[[Any], Any]) -> None:
        super().__init__()
        self.model = model
        self._step = step

    def forward(self, batch: Any) -> Any:
        return self._step(batch)
