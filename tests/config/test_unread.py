"""Keys at the top level of a config that nothing reads."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import open_dict

from trainyard.config import unread
from trainyard.config.current_job import current_job
from trainyard.config.hydra_versions import VERSION_BASE
from trainyard.config.schema import check

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(autouse=True)
def _untold() -> Iterator[None]:
    unread._warn_once.cache_clear()
    yield
    unread._warn_once.cache_clear()


def _warnings(caplog: pytest.LogCaptureFixture, *overrides: str, of_a_file: Any = None) -> list[str]:
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        cfg = compose("train", overrides=["work_dir=null", *overrides], return_hydra_config=True)
    with open_dict(cfg):
        cfg.merge_with(of_a_file or {})
    caplog.clear()
    with current_job(cfg), caplog.at_level(logging.WARNING):
        check(cfg)
    return [record.getMessage() for record in caplog.records]


def test_a_config_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    assert _warnings(caplog) == []
    assert _warnings(caplog, "experiment=rings_gan", "optim.generator.lr=0.1", "+model.data_preprocessor=null") == []


def test_a_new_key(caplog: pytest.LogCaptureFixture) -> None:
    assert _warnings(caplog, "+optimm.lr=5", "++zzz=1") == [
        "optimm: this key is not used. Did you mean 'optim'?",
        "zzz: this key is not used.",
    ]
    assert _warnings(caplog, "+optimm.lr=6") == [], "told once, not for each job of a sweep"


def test_a_key_that_an_interpolation_names(caplog: pytest.LogCaptureFixture) -> None:
    assert _warnings(caplog, "+mine.rate=0.5", "optim.lr=${mine.rate}") == []


def test_keys_of_files(caplog: pytest.LogCaptureFixture) -> None:
    assert _warnings(caplog, of_a_file={"project": "x", "optin": {"lr": 1}}) == [
        "optin: this key is not used. Did you mean 'optim'?"
    ]
