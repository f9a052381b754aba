"""The current job: the config from which `${hydra:…}` and `HydraConfig.get()` read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig


@contextmanager
def current_job(config: DictConfig) -> Iterator[None]:
    """Make a config the current job's.

    `HydraConfig.set_config` does that too, for good, and on a copy that takes its time.

    Args:
        config: with its `hydra` node. It is not copied.
    """
    hydra = HydraConfig.instance()
    before = hydra.cfg
    hydra.cfg = config  # type: ignore[assignment]
    try:
        yield
    finally:
        hydra.cfg = before
