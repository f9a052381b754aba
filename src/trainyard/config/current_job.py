"""Current job: the config that `${hydra:…}` and `HydraConfig.get()` read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig


@contextmanager
def current_job(config: DictConfig) -> Iterator[None]:
    """Make this config the config of the current job inside the block.

    `HydraConfig.set_config` does so permanently, on a copy, which is slow.

    Args:
        config: the config with its `hydra` node. It is not copied.
    """
    hydra = HydraConfig.instance()
    before = hydra.cfg
    hydra.cfg = config  # type: ignore[assignment]
    try:
        yield
    finally:
        hydra.cfg = before
