"""Derived seeds and generators: a function of `(seed, purpose, index)`, not of earlier draws (docs/resume.md)."""

from __future__ import annotations

import zlib

import numpy as np


def derive(seed: int, purpose: str, *index: int) -> int:
    """Return a 63-bit seed for one purpose, e.g. `derive(seed, "order", epoch)`.

    Equal arguments give equal seeds on every machine; different arguments give independent seeds
    (`numpy.random.SeedSequence`, after O'Neill's `seed_seq_fe`).
    """
    return int(_sequence(seed, purpose, *index).generate_state(1, np.uint64)[0] >> 1)


def generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """Return a numpy generator for one purpose; see `derive`."""
    return np.random.default_rng(_sequence(seed, purpose, *index))


def _sequence(seed: int, purpose: str, *index: int) -> np.random.SeedSequence:
    # SeedSequence pads with zeros: the number of indices keeps () and (0,) apart.
    return np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), len(index), *index])
