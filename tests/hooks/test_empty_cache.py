import logging
from typing import Any

import pytest
import torch

from trainyard.errors import ConfigError
from trainyard.hooks import EmptyCache, Hook
from trainyard.runner.dispatch import Dispatch

SPLITS = ("train", "val", "test")


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        ({}, {f"after_{split}_epoch" for split in SPLITS}),
        ({"after_epoch": False}, set()),
        (
            {"before_epoch": True, "after_epoch": False, "after_iter": True},
            {f"before_{split}_epoch" for split in SPLITS} | {f"after_{split}_iter" for split in SPLITS},
        ),
    ],
)
def test_it_is_called_where_it_was_asked_for_and_nowhere_else(settings: Any, stages: Any) -> None:
    dispatch = Dispatch({"empty": EmptyCache(**settings)})
    called = {stage for stage in Dispatch({}).__dict__["_calls"] if dispatch.stage(stage)}
    assert called == stages | {"before_run"}


def test_on_the_cpu_it_does_nothing_and_says_so_once(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "trainyard"):
        runner = make({"empty": EmptyCache(before_epoch=True, after_iter=True)})
        runner.train()
    assert runner.epoch == 3
    assert [message for message in caplog.messages if "EmptyCache" in message] == [
        "EmptyCache has no effect, because the run is on cpu."
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_memory_is_handed_back(make: Any) -> None:
    class Waste(Hook):
        """Has torch hold 256 MB that nobody needs any more."""

        priority = "HIGH"

        def __init__(self) -> None:
            self.held: list[Any] = []

        def before_train_epoch(self, runner: Any) -> None:
            torch.empty(1 << 28, dtype=torch.uint8, device=runner.device)

        def before_val(self, runner: Any) -> None:
            self.held.append(torch.cuda.memory_reserved(runner.device))

    held = {}
    for name, hooks in (("with", {"empty": EmptyCache()}), ("without", {})):
        torch.cuda.empty_cache()
        waste = Waste()
        make({"waste": waste} | hooks, device="cuda").train()
        held[name] = max(waste.held)
    assert held["with"] < 1 << 28 <= held["without"]


@pytest.mark.parametrize("key", ["before_epoch", "after_epoch", "after_iter"])
def test_settings_that_cannot_be(key: str) -> None:
    with pytest.raises(ConfigError) as error:
        EmptyCache(**{key: "often"})
    assert error.value.key == key
