"""Settings of the launcher `ray`: what agents ask a cluster for, what slots they bring, what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from trainyard.errors import ConfigError
from trainyard.sweep.executor import ray_pool
from trainyard.sweep.executor.ray_pool import RayPool, Request
from trainyard.sweep.executor.ray_process import failure, reason
from trainyard.sweep.ray_settings import RaySettings


@pytest.mark.parametrize(
    ("settings", "slots"),
    [
        ({}, [("cpu", 1)] * 8),
        ({"max_slots": 2, "num_cpus": 8, "threads_per_job": 4}, [("cpu", 4)] * 2),
        ({"max_slots": 4, "num_gpus": 2, "num_cpus": 8}, [("cuda:0", 4), ("cuda:1", 4)] * 2),
        ({"max_jobs": 3}, [("cpu", 1)] * 3),
    ],
)
def test_slots(settings: Any, slots: Any) -> None:
    found = RaySettings.from_config(settings).slots(continued=False)
    assert [(slot.device, slot.threads) for slot in found] == slots


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"num_gpu": 1}, "Did you mean 'num_gpus'?"),
        ({"num_cpus": 0}, "hydra.launcher.num_cpus: 0 is invalid. Expected "),
        ({"num_gpus": -1}, "hydra.launcher.num_gpus: -1 is invalid. Expected "),
        ({"resources": {"disk": 0}}, "hydra.launcher.resources.disk: 0 is invalid. Expected "),
        ({"resources": {"GPU": 1}}, "Use hydra.launcher.num_gpus for this resource."),
        ({"resources": "disk"}, "hydra.launcher.resources: 'disk' is invalid. Expected "),
        ({"address": "atuo"}, "Did you mean 'auto'?"),
        ({"address": "http://node:6379"}, "hydra.launcher.address: 'http://node:6379' is invalid. Expected "),
        ({"address": None}, "hydra.launcher.address: None is invalid. Expected a string."),
        ({"patience": 1.0}, "hydra.launcher.patience: 1.0 is invalid. Expected "),
    ],
)
def test_what_cannot_be(settings: Any, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        RaySettings.from_config(settings)
    assert told in str(error.value)


@pytest.mark.parametrize("address", ["auto", "local", "node:6379", "10.0.0.1:6379", "[::1]:6379", "ray://node:10001"])
def test_addresses(address: str) -> None:
    assert RaySettings.from_config({"address": address}).address == address


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"This option needs Ray: pip install 'trainyard\[ray\]'"):
        RaySettings().check(OmegaConf.create({}))


def test_what_a_node_can_have() -> None:
    request = Request(2, 1, {"disk": 1.5})
    assert request.amounts == {"CPU": 2, "GPU": 1, "disk": 1.5}
    assert request.fits({"CPU": 2.0, "GPU": 1.0, "disk": 2.0, "memory": 1e9})
    assert not request.fits({"CPU": 64.0, "GPU": 1.0, "disk": 1.0})
    assert not request.fits({"CPU": 2.0, "disk": 2.0})


def test_what_ray_tells_of_an_end_in_one_line() -> None:
    long = "The actor died unexpectedly.\n\tactor_id: 1\nThe actor is dead because its node has died. Node Id: 0xff"
    assert reason(long) == "its node has died"
    assert reason("The worker died.\nmore") == "The worker died"


class AuthenticationError(Exception):
    """Has the name of Ray's own."""


@pytest.mark.parametrize(
    ("error", "answers", "told"),
    [
        (
            AuthenticationError("no token\nwas found"),
            True,
            ("The token of the cluster is missing or invalid: set RAY_AUTH_MODE=token, and store"),
        ),
        (
            ConnectionError("Failed to connect to Ray cluster at h:1."),
            True,
            "at h:1, although a server answers",
        ),
        (ConnectionError("Failed to connect to Ray cluster at h:1."), False, "Failed to connect to Ray cluster at h:1"),
        (
            ConnectionError("Could not find any running Ray instance. Please specify the one to connect to."),
            False,
            "No Ray cluster is running on this machine, and RAY_ADDRESS is not set",
        ),
        (ConnectionRefusedError(111, "Connection refused"), False, "Connection refused"),
    ],
)
def test_a_token_that_is_missing_or_wrong_is_told_from_a_cluster_that_is_not_there(
    error: Exception, answers: bool, told: str
) -> None:
    words = failure(error, answers)
    assert told in words
    assert "\n" not in words
    assert ("RAY_AUTH_TOKEN" in words) == answers


def test_agents_that_wait_for_a_node_are_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    pool = RayPool(tmp_path, "auto", Request(num_cpus=1, resources={"grown": 1}), 2, autoscaling=True, tell=told.append)
    pool._places = {"0", "1"}
    pool._tell_of_waiting()
    assert told == []
    monkeypatch.setattr(ray_pool, "_SLOW", -1.0)
    pool._tell_of_waiting()
    pool._tell_of_waiting()
    assert told == ["2 of 2 agents wait for a free or additional node with CPU: 1, grown: 1."]
