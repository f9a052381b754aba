"""World of a run: its ranks, according to the environment of the launcher, and the store through which they connect."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from trainyard.errors import ConfigError, FindingError, TrainyardError, VariableError, counted

T = TypeVar("T")

LAUNCHERS = ("auto", "none", "pytorch", "slurm", "mpi")
OURS = "TRAINYARD_RANK"
"""Set in the processes that `distributed.launch` starts, which are ranks regardless of the launcher in the config."""

_PYTORCH = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PORT = 29500  # torch's default


@dataclass(frozen=True)
class World:
    """A rank among all ranks of a run.

    Args:
        rank: its number, from 0.
        world_size: the number of ranks.
        local_rank: its number on its machine, from 0.
        address, port: the address at which the ranks connect; None for a single process.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    address: str | None = None
    port: int = _PORT

    @property
    def is_main(self) -> bool:
        """True if this rank writes the journal and the files that exist once per run."""
        return self.rank == 0


# The world that this process has joined, and the meeting place of its ranks.
_joined: World | None = None
_stores: dict[World, Store] = {}


def find(launcher: str = "auto", environ: Mapping[str, str] | None = None) -> World | None:
    """Return the rank and world size of this process, as set by a launcher.

    - `pytorch`: torchrun's `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR`, `MASTER_PORT`.
    - `slurm`: `SLURM_PROCID`, `SLURM_NTASKS` and `SLURM_LOCALID` of `srun`. The ranks connect to the first node of the
      step, at a port derived from the numbers of the job and the step; `MASTER_ADDR` and `MASTER_PORT` override these.
    - `mpi`: `OMPI_COMM_WORLD_RANK`, … of Open MPI, or `PMI_RANK`, … of MPICH and Intel MPI. On several machines,
      `MASTER_ADDR` must be set.
    - `auto`: `pytorch` if its variables are set, otherwise None; `none`: None.

    Args:
        launcher: one of these.
        environ: the environment; None is this process's.

    Returns:
        None if no launcher has started this process.

    Raises:
        ConfigError: there is no launcher with this name, or its variables are not set.
    """
    environ = os.environ if environ is None else environ
    if launcher not in LAUNCHERS:
        raise ConfigError("launcher", launcher, f"one of {', '.join(LAUNCHERS)}", options=LAUNCHERS)
    if environ.get(OURS):
        return _pytorch(environ)
    if launcher == "none" or (launcher == "auto" and not all(name in environ for name in _PYTORCH)):
        return None
    return {"auto": _pytorch, "pytorch": _pytorch, "slurm": _slurm, "mpi": _mpi}[launcher](environ)


def _pytorch(environ: Mapping[str, str]) -> World:
    rank, size, address, port = _required("pytorch", environ, _PYTORCH, "torchrun … train.py …")
    return World(int(rank), int(size), int(environ.get("LOCAL_RANK", rank)), address, int(port))


def _slurm(environ: Mapping[str, str]) -> World:
    names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_JOB_ID")
    rank, size, local, job = _required("slurm", environ, names, "srun python train.py …")
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    # Below the ports that Linux assigns; jobs that share a node differ.
    own = 20000 + (int(job) * 7 + int(environ.get("SLURM_STEP_ID", "0"))) % 10000
    address, port = environ.get("MASTER_ADDR") or first_node(nodes), environ.get("MASTER_PORT") or own
    return World(int(rank), int(size), int(local), address, int(port))


def _mpi(environ: Mapping[str, str]) -> World:
    if "OMPI_COMM_WORLD_RANK" in environ:
        names = ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"]
        local, local_size = environ.get("OMPI_COMM_WORLD_LOCAL_RANK"), environ.get("OMPI_COMM_WORLD_LOCAL_SIZE")
    else:
        names = ["PMI_RANK", "PMI_SIZE"]
        local, local_size = environ.get("MPI_LOCALRANKID"), environ.get("MPI_LOCALNRANKS")
    rank, size = _required("mpi", environ, names, "mpirun -n 2 python train.py …")
    address = environ.get("MASTER_ADDR") or ("127.0.0.1" if local_size == size else None)
    if address is None:
        started = "started" if local_size else "may have started"
        flag = "-x MASTER_ADDR=HOST" if "OMPI_COMM_WORLD_RANK" in environ else "-genv MASTER_ADDR HOST"
        hint = (
            f"mpirun {started} ranks on several machines. Set MASTER_ADDR to the host of rank 0 on all of them: "
            f"`mpirun {flag} …`."
        )
        raise ConfigError("launcher", "mpi", "mpi with MASTER_ADDR set", hint=hint)
    return World(int(rank), int(size), int(local or rank), address, int(environ.get("MASTER_PORT") or _PORT))


def _required(launcher: str, environ: Mapping[str, str], names: tuple[str, ...] | list[str], how: str) -> list[str]:
    missing = [name for name in names if name not in environ]
    if missing:
        hint = f"{missing[0]} is not set. This command sets it: `{how}`."
        if missing[0] == "PMI_RANK":
            hint = f"Neither OMPI_COMM_WORLD_RANK nor PMI_RANK is set. This command sets one of them: `{how}`."
        accepted = "the launcher that started this process; without one, auto or none"
        raise ConfigError("launcher", launcher, accepted, hint=hint)
    return [environ[name] for name in names]


def first_node(nodes: str) -> str:
    """Return the first node in Slurm's list of nodes: `gpu07` for `gpu[07-09,12],cpu1`."""
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^,\[]*))?", nodes)
    return "".join(part or "" for part in match.groups()) if match else nodes


# -- meeting -----------------------------------------------------------------------------------------------------------


def meeting(world: World, timeout: float = 600.0) -> Store:
    """Return the store through which these ranks connect; it is created once.

    Raises:
        ConfigError: the host name of the store cannot be resolved here, or its port is in use.
        TrainyardError: no rank connects within `timeout` seconds.
    """
    if world not in _stores:
        if world.address is None:
            _stores[world] = HashStore()
        else:
            _check_address(world.address)
            served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by the launcher of the ranks
            try:
                _stores[world] = TCPStore(
                    world.address,
                    world.port,
                    world.world_size,
                    is_master=world.is_main and not served,
                    timeout=timedelta(seconds=timeout),
                    wait_for_workers=False,
                    multi_tenant=True,
                )
            except dist.DistNetworkError as error:
                if "failed to listen" in str(error):  # only rank 0 listens
                    accepted = "a port that is free on the machine of rank 0, the same for all ranks"
                    raise VariableError("MASTER_PORT", world.port, accepted) from error
                raise _missing(world, timeout, "rank 0") from error
    return _stores[world]


def _wait_for_all(store: Store, world: World, timeout: float) -> None:
    """Wait until all ranks are connected.

    Raises:
        TrainyardError: some ranks do not connect within `timeout` seconds, for example because a node is missing.
    """
    keys = [f"here/{rank}" for rank in range(world.world_size)]
    store.set(keys[world.rank], "")
    try:
        store.wait(keys, timedelta(seconds=timeout))
    except dist.DistStoreError as error:
        missing = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
        raise _missing(world, timeout, f"rank{'s' * (len(missing) > 1)} {', '.join(missing)}") from error


def _missing(world: World, timeout: float, which: str) -> TrainyardError:
    return TrainyardError(
        f"Timed out after {timeout:g} s (strategy.timeout) while waiting for {counted(world.world_size, 'rank')} "
        f"at {world.address}:{world.port}. Missing: {which}. Check that all ranks were started and can reach that "
        "address."
    )


def _check_address(name: str) -> None:
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        step = "Set MASTER_ADDR to another name, or to the address, of the host of rank 0."
        if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun sets MASTER_ADDR itself
            step = "Set another one with torchrun's --master-addr, or with --local-addr on the host of rank 0."
        hint = f"The ranks connect to {name}, which cannot be resolved here: {error.strerror}. {step}"
        raise VariableError("MASTER_ADDR", name, "a host name or address that all nodes can reach", hint=hint) from None


def join(world: World, backend: str = "auto", device: torch.device | None = None, timeout: float = 600.0) -> None:
    """Make this process a rank of the default process group; do nothing if it is one already.

    Tensors on an accelerator are communicated by `backend`, and tensors on the CPU by gloo.

    Args:
        world: which rank.
        backend: `nccl`, `gloo`, …; `auto` is nccl on CUDA and gloo on the CPU.
        device: the device of this rank; None for the CPU.
        timeout: seconds after which a collective operation fails if a rank does not join it.

    Raises:
        ConfigError: there is no backend with this name, or this process is already another rank.
        TrainyardError: some ranks do not connect within `timeout` seconds.
    """
    global _joined
    if dist.is_initialized():
        if _joined is not None and _joined != world:
            accepted = f"rank {_joined.rank} of {_joined.world_size}, as which this process has already joined"
            raise FindingError(
                "launcher", f"the settings are those of rank {world.rank} of {world.world_size}", accepted
            )
        return
    kind = "cpu" if device is None else device.type
    chosen = dist.Backend.default_device_backend_map.get(kind, "gloo") if backend == "auto" else backend
    names = _backends(kind)
    if backend != "auto" and backend not in names:
        accepted = f"auto, or a backend of this torch for device={kind}: {', '.join(names)}"
        raise ConfigError("backend", backend, accepted, options=names)
    store = meeting(world, timeout)
    _wait_for_all(store, world, timeout)
    dist.init_process_group(
        chosen if kind == "cpu" else f"cpu:gloo,{kind}:{chosen}",
        store=PrefixStore("group", store),
        rank=world.rank,
        world_size=world.world_size,
        timeout=timedelta(seconds=timeout),
    )
    _joined = world


def _backends(kind: str) -> list[str]:
    """Return the backends that this torch was built with, or that were registered, for a kind of device."""
    unusable = ("undefined", "fake")  # the latter is for torch's tests, and needs a store of its own
    return [
        name
        for name in dist.Backend.backend_list
        if name not in unusable
        and dist.is_backend_available(name)
        and kind in dist.Backend.backend_capability.get(name, [kind])
    ]


def leave() -> None:
    """Leave the process group; do nothing if there is none."""
    global _joined
    if dist.is_initialized():
        dist.destroy_process_group()
    _joined = None
    _stores.clear()


def gather_objects(value: T) -> list[T]:
    """Return the values of all ranks in order, on every rank; all ranks must call this function. Without a group,
    return one value."""
    if not dist.is_initialized():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found
