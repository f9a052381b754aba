"""Fully sharded strategy: every device has a shard of each parameter, its gradient and its optimizer state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from trainyard.checks import boolean, choice, integer
from trainyard.distributed import sharded
from trainyard.distributed.distributed import Distributed
from trainyard.distributed.shares import load_state
from trainyard.errors import ConfigError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(kw_only=True, eq=False)
class FSDP(Distributed):
    """torch's `fully_shard` (FSDP2).

    The modules selected by `wrap` are gathered one after the other as the forward pass reaches them; without `wrap`,
    the entire model is gathered. To load a checkpoint, every rank reads the complete file and keeps its own shards.

    Args:
        devices, launcher, min_devices, backend, port, timeout: see `Distributed`.
        wrap: names of module classes (`[Block]`), or the minimum number of parameters of a module that is gathered
            separately; None: the entire model is gathered together.
        reshard_after_forward: release gathered parameters after the forward pass; false keeps them for the backward
            pass, which takes more memory and less time.
        mixed_precision: the dtype in which parameters are gathered and used, `bf16` or `fp16`, while the shards and the
            optimizer state stay in full precision; or a mapping of `param_dtype`, `reduce_dtype` and `output_dtype`.
            None: the dtypes are not changed.
        cpu_offload: keep the shards on the CPU while they are not used.

    Raises:
        ConfigError: a value is invalid; (in `place`) no module matches `wrap`.
    """

    gathers = True

    wrap: Sequence[str] | int | None = None
    reshard_after_forward: bool = True
    mixed_precision: str | Mapping[str, str] | None = None
    cpu_offload: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        names = isinstance(self.wrap, list | tuple) and all(isinstance(name, str) for name in self.wrap)
        if self.wrap is not None and not names:
            self.wrap = integer("wrap", self.wrap, at_least=1, other="a list of names of module classes, or null")
        for name in ("reshard_after_forward", "cpu_offload"):
            boolean(name, getattr(self, name))
        self._policy = _policy(self.mixed_precision)
        self._mesh: DeviceMesh | None = None
        self._writers: Any = None

    def begin(self, device: torch.device) -> torch.device:
        if device.type == "cpu" and self.cpu_offload:
            raise ConfigError("cpu_offload", True, "false, because the model is already on the CPU")
        return super().begin(device)

    def place(self, model: nn.Module) -> nn.Module:
        """Return the same model, sharded in place."""
        if self._writers is None:  # checkpoints are written from a thread, whose messages must not mix with others
            self._writers = dist.new_group(backend="gloo")
        whole = copy.deepcopy(model).to("meta")
        for module in self._wrapped(model):
            self._shard(module)
        self._shard(model)

        def copied(sharded: nn.Module, memo: Any) -> nn.Module:
            # torch refuses to copy a sharded module, and an average of the weights needs a copy.
            fresh = self.place(copy.deepcopy(whole).to_empty(device=self.device))
            load_state(fresh, sharded.state_dict())
            for own, other in zip(fresh.buffers(), sharded.buffers(), strict=True):  # those in no state, too
                own.copy_(other)
            return fresh.train(sharded.training)

        type(model).__deepcopy__ = copied  # type: ignore[attr-defined] # fully_shard made this class for this model
        return model

    def train_step(self, model: nn.Module, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return self.weighted(step)

    def save(self, path: Path, state: dict[str, Any]) -> bool:
        sharded.save(path, state, self._writers)
        return True

    def _shard(self, module: nn.Module) -> None:
        if self._mesh is None:
            self._mesh = init_device_mesh(self.device.type, (self.world_size,))
        fully_shard(
            module,
            mesh=self._mesh,
            reshard_after_forward=self.reshard_after_forward,
            mp_policy=self._policy,
            offload_policy=CPUOffloadPolicy() if self.cpu_offload else OffloadPolicy(),
        )

    def _wrapped(self, model: nn.Module) -> list[nn.Module]:
        """Return the modules that are gathered separately, inner modules first."""
        if self.wrap is None:
            return []
        inner = list(model.modules())[:0:-1]
        if isinstance(self.wrap, int):
            chosen = _by_size(inner, self.wrap)
            largest = max((_size(module) for module in inner), default=0)
            accepted = f"at most {largest}, the number of parameters of the largest submodule"
        else:
            names = sorted({type(module).__name__ for module in inner})
            chosen = [module for module in inner if type(module).__name__ in self.wrap]
            unknown = [name for name in self.wrap if name not in names]
            accepted = f"classes of this model's modules: {', '.join(names)}"
            if unknown:
                raise ConfigError("strategy.wrap", unknown[0], accepted, options=names)
        if not chosen:
            raise ConfigError("strategy.wrap", self.wrap, accepted)
        return chosen


def _by_size(modules: Sequence[nn.Module], least: int) -> list[nn.Module]:
    """Return modules with at least `least` parameters that are not in modules selected before; inner modules come
    first."""
    taken: set[int] = set()
    chosen = []
    for module in modules:
        own = [parameter for parameter in module.parameters() if id(parameter) not in taken]
        if sum(parameter.numel() for parameter in own) >= least:
            chosen.append(module)
            taken.update(id(parameter) for parameter in own)
    return chosen


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _policy(given: object) -> MixedPrecisionPolicy:
    keys = ("param_dtype", "reduce_dtype", "output_dtype")
    if given is None:
        return MixedPrecisionPolicy()
    if isinstance(given, Mapping):
        for key in given:
            choice("mixed_precision", key, keys)
        found = {key: _DTYPES[choice(f"mixed_precision.{key}", name, _DTYPES)] for key, name in given.items()}
        return MixedPrecisionPolicy(**found)  # type: ignore[arg-type]
    if not isinstance(given, str) or given not in _DTYPES:
        accepted = f"one of {', '.join(_DTYPES)}, null, or a mapping with the keys {', '.join(keys)}"
        raise ConfigError("mixed_precision", given, accepted, options=_DTYPES)
    return MixedPrecisionPolicy(_DTYPES[given])
