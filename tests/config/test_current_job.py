"""The config that `${hydra:…}` reads from."""

from __future__ import annotations

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from trainyard.config.current_job import current_job


def test_it_is_read_from_inside_and_put_back_afterwards() -> None:
    instance = HydraConfig.instance()
    before = instance.cfg
    outer, inner = (OmegaConf.create({"hydra": {"job": {"name": name}}}) for name in ("outer", "inner"))
    with current_job(outer):
        assert HydraConfig.get().job.name == "outer"
        with pytest.raises(ZeroDivisionError), current_job(inner):
            1 / len(HydraConfig.get().job.name.removeprefix("inner"))
        assert HydraConfig.get().job.name == "outer"
        assert instance.cfg is outer, "no copy"  # type: ignore[comparison-overlap]
    assert instance.cfg is before
