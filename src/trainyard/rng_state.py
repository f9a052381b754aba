"""Seeding, saving and restoring of the process's random generators.

There are four: Python's, NumPy's, torch's on the CPU, and torch's on each CUDA device. `trainyard.rng` derives seeds.
The lanes of a stack have separate torch generators (`trainyard.fused.lanes`), which follow these.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol
from weakref import WeakSet

import numpy as np
import torch

CpuStates = tuple[Any, Any, torch.Tensor]
"""The states of Python's, NumPy's and torch's generators, in the form of the libraries."""


class Follower(Protocol):
    """Owner of additional generators that follow those of the process inside a block of `seeded`."""

    def following(self) -> AbstractContextManager[None]:
        """Return a context in which they follow, and which restores them afterwards."""

    def drawing(self, device: torch.device) -> list[torch.Generator]:
        """Return its generators on a device that were drawn from."""


_FOLLOWERS: WeakSet[Follower] = WeakSet()


def follow(follower: Follower) -> None:
    """Let generators follow those of the process inside blocks of `seeded`, as long as their owner exists."""
    _FOLLOWERS.add(follower)


def further(device: torch.device) -> list[torch.Generator]:
    """Return all generators on a device that follow those of the process and were drawn from, each once."""
    return list({id(each): each for follower in _FOLLOWERS for each in follower.drawing(device)}.values())


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators (every CUDA device too)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if torch.accelerator.current_accelerator() is None:  # a build of torch for the CPU alone
        torch.default_generator.manual_seed(seed)  # see `seed_cpu`
    else:
        torch.manual_seed(seed)


def seed_cpu(seed: int) -> None:
    """Seed the generators that draw on the CPU: Python's, NumPy's and torch's, without a CUDA call."""
    random.seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would take 100 us to queue the same for every device


def cpu_states() -> CpuStates:
    """Return the states of the generators that draw on the CPU, for `set_cpu_states` in this process."""
    return random.getstate(), np.random.get_state(legacy=True), torch.get_rng_state()


def drawn() -> tuple[Any, ...]:
    """Return the positions of Python's and NumPy's generators, which are equal if nothing was drawn in between."""
    python, numpy, _ = cpu_states()
    return python, numpy[1].tobytes(), *numpy[2:]


def set_cpu_states(states: CpuStates) -> None:
    """Set the generators that draw on the CPU to `states`."""
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def same(first: CpuStates, second: CpuStates) -> bool:
    """Return whether two states from `cpu_states` are equal."""
    return (
        first[0] == second[0]
        and np.array_equal(first[1][1], second[1][1])
        and first[1][2:] == second[1][2:]
        and torch.equal(first[2], second[2])
    )


@contextmanager
def cpu_states_kept() -> Iterator[None]:
    """Restore the generators that draw on the CPU at the end of the block."""
    states = cpu_states()
    try:
        yield
    finally:
        set_cpu_states(states)


def state() -> dict[str, Any]:
    """Return the state of every generator, as tensors and plain values: the form of a checkpoint."""
    found = as_plain(cpu_states())
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found["cuda"] = torch.cuda.get_rng_state_all()
    return found


def as_plain(states: CpuStates) -> dict[str, Any]:
    """Return `cpu_states` as tensors and plain values."""
    (version, words, gauss), (name, keys, position, has_gauss, cached), of_torch = states
    return {
        "python": [version, torch.tensor(words, dtype=torch.int64, device="cpu"), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": of_torch,
    }


def from_plain(saved: Mapping[str, Any]) -> CpuStates:
    """Return the argument of `as_plain`."""
    version, words, gauss = saved["python"]
    name, keys, position, has_gauss, cached = saved["numpy"]
    python = (version, tuple(words.tolist()), gauss)
    return python, (name, keys.numpy().astype(np.uint32), position, has_gauss, cached), saved["torch"]


def restore(saved: Mapping[str, Any]) -> None:
    """Restore every generator from a result of `state`."""
    set_cpu_states(from_plain(saved))
    if "cuda" in saved and len(saved["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["cuda"])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed every generator inside the block; restore their states afterwards."""
    before = state()
    seed_all(seed)
    try:
        with ExitStack() as following:
            for follower in list(_FOLLOWERS):
                following.enter_context(follower.following())
            yield
    finally:
        restore(before)
