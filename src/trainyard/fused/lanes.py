"""Random generators of lanes: each member of a stack draws the same numbers as in a single run."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from trainyard import rng_state


class Lane:
    """Random generators of one member, on the CPU and on CUDA devices.

    On the CPU, lanes in the same state share a generator, and each draw from it applies to all of them. If all lanes of
    a stack share one, it is the generator of the process, so that a draw by the data or by a hook advances it as in a
    single run.

    Attributes:
        cpu: the generator on the CPU.
        hosted: whether the states of Python's and NumPy's generators, from which no model draws, are those of this
            process. This applies to members with the same seed, and to the first member otherwise; the others keep
            their initial states.
    """

    def __init__(self) -> None:
        self.cpu: torch.Generator = torch.default_generator
        self.hosted = True
        self._cuda: dict[int, torch.Generator] = {}
        self._origin: int | Mapping[str, Any] | None = None  # a seed, a saved state, or the process's generators

    def begin(self, origin: int | Mapping[str, Any] | None) -> None:
        """Start with the state of a new process.

        Args:
            origin: a seed, for `trainyard.rng_state.seed_all`; or a result of `trainyard.rng_state.state`. None
                continues with the numbers of the process's generators.
        """
        self._origin = origin
        if origin is None:
            self.cpu = torch.default_generator
        else:
            self.cpu = torch.Generator()
            self.cpu.manual_seed(origin) if isinstance(origin, int) else self.cpu.set_state(origin["torch"])
        for index, generator in self._cuda.items():
            self._begin_cuda(generator, index)

    def begin_anew(self, origin: int | Mapping[str, Any]) -> None:
        """Start like `begin`, but with the existing generators, because a captured step draws from them."""
        own = self.cpu
        self.begin(origin)
        if own is not torch.default_generator:
            own.set_state(self.cpu.get_state())
            self.cpu = own

    def copy(self) -> Lane:
        """Return a lane with separate generators in the same states."""
        twin = Lane()
        twin.hosted, twin._origin, twin.cpu = self.hosted, self._origin, torch.Generator()
        twin.cpu.set_state(self.cpu.get_state())
        for index, generator in self._cuda.items():
            twin._cuda[index] = torch.Generator(generator.device)
            twin._cuda[index].set_state(generator.get_state())
        return twin

    def follow(self, other: Lane) -> None:
        """Continue with the numbers of another lane, with the existing generators."""
        self._origin = other._origin
        self.cpu.set_state(other.cpu.get_state())
        for generator in other._cuda.values():
            self.on(generator.device).set_state(generator.get_state())

    def on(self, device: torch.device) -> torch.Generator:
        """Return the generator on a device."""
        if device.type == "cpu":
            return self.cpu
        index = torch.cuda.current_device() if device.index is None else device.index
        if index not in self._cuda:
            self._cuda[index] = torch.Generator(torch.device("cuda", index))
            self._begin_cuda(self._cuda[index], index)
        return self._cuda[index]

    def has(self, device: torch.device) -> bool:
        """Return whether there is a generator on a device."""
        return device.type == "cpu" or device.index in self._cuda

    def part(self) -> None:
        """Stop sharing a generator with other lanes; the numbers do not change."""
        shared, self.cpu = self.cpu, torch.Generator()
        self.cpu.set_state(shared.get_state())

    def state(self, process: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state of all generators of the member's single run, in the form of `trainyard.rng_state.state`.

        Args:
            process: the state of the generators of the process.
        """
        host = process if self.hosted else self._beginning()
        found = {**process, "python": host["python"], "numpy": host["numpy"], "torch": self.cpu.get_state()}
        if "cuda" in process:
            devices = [torch.device("cuda", index) for index in range(len(process["cuda"]))]
            found["cuda"] = [self.on(device).get_state() for device in devices]
        return found

    def cuda_states(self) -> dict[int, torch.Tensor]:
        """Return the state of each generator on a CUDA device that was used, by the index of the device."""
        return {index: generator.get_state() for index, generator in self._cuda.items()}

    def _begin_cuda(self, generator: torch.Generator, index: int) -> None:
        origin = self._origin
        if isinstance(origin, int):
            generator.manual_seed(origin)
        elif origin is not None and index < len(origin.get("cuda", ())):
            generator.set_state(origin["cuda"][index])
        else:
            generator.set_state(torch.cuda.default_generators[index].get_state())

    def _beginning(self) -> Mapping[str, Any]:
        """Return the initial states of Python's and NumPy's generators of the member."""
        if isinstance(self._origin, Mapping):
            return self._origin
        seed = self._origin or 0
        python, numpy = random.Random(seed).getstate(), np.random.RandomState(seed % 2**32).get_state(legacy=True)
        return rng_state.as_plain((python, numpy, self.cpu.get_state()))


class Lanes:
    """Lanes of a stack, in the order of its rows.

    Inside a block of `trainyard.rng_state.seeded`, they draw from the generators of the process, which the block has
    seeded.
    """

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._lanes = list(lanes)
        rng_state.follow(self)

    def __len__(self) -> int:
        return len(self._lanes)

    def on(self, device: torch.device) -> list[torch.Generator]:
        """Return the generator of each lane on a device; several lanes may have the same one."""
        return [lane.on(device) for lane in self._lanes]

    def drawing(self, device: torch.device) -> list[torch.Generator]:
        """Return the generators on a device; on CUDA those from which lanes have drawn."""
        return [lane.on(device) for lane in self._lanes if lane.has(device)]

    def part(self, k: int) -> torch.Generator:
        """Give a lane a separate generator on the CPU, in the state of the shared one."""
        self._lanes[k].part()
        return self._lanes[k].cpu

    def keep(self, index: Sequence[int]) -> None:
        """Keep only the lanes at `index`; the others no longer share a generator with them."""
        for k in set(range(len(self))) - set(index):
            self._lanes[k].part()
        self._lanes = [self._lanes[k] for k in index]
        self._lanes[0].hosted = True

    def separate(self) -> None:
        """Give each lane a separate generator, regardless of its state, because other members may start in a lane."""
        for lane in self._lanes:
            lane.part()

    def share(self) -> None:
        """Let lanes in the same state share a generator; if all are in the same state, the generator of the process."""
        by_state: dict[bytes, torch.Generator] = {}
        for lane in self._lanes:
            lane.cpu = by_state.setdefault(lane.cpu.get_state().numpy().tobytes(), lane.cpu)
        one = len(by_state) == 1
        if one:
            torch.default_generator.set_state(self._lanes[0].cpu.get_state())
        for k, lane in enumerate(self._lanes):
            lane.hosted = one or k == 0
            if one:
                lane.cpu = torch.default_generator

    @contextmanager
    def seeded(self, seeds: Sequence[int]) -> Iterator[None]:
        """Seed every lane inside the block; restore their states afterwards."""
        with self._restored():
            for lane, seed in zip(self._lanes, seeds, strict=True):
                lane.begin(seed)
            yield

    @contextmanager
    def following(self) -> Iterator[None]:
        """Draw from the process's generators inside the block; restore the lanes' own afterwards."""
        with self._restored():
            for lane in self._lanes:
                lane.begin(None)
            yield

    @contextmanager
    def _restored(self) -> Iterator[None]:
        kept = [(lane, lane.cpu, lane._origin, lane.cuda_states()) for lane in self._lanes]
        try:
            yield
        finally:
            for lane, cpu, origin, states in kept:
                lane.begin(origin)  # on CUDA: those that were made inside the block
                lane.cpu = cpu
                for index, state in states.items():
                    lane._cuda[index].set_state(state)
