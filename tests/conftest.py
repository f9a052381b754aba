"""For all tests: one thread a process, so that tests in parallel do not wait for each other's spinning threads."""

import gc
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

# The key that marks runs as one's own: not the one in the home folder of whoever runs the tests.
os.environ["XDG_STATE_HOME"] = str(Path(tempfile.gettempdir(), f"trainyard-tests-{os.getuid()}"))

import pytest
import torch
from hypothesis import HealthCheck, settings

# Properties are tried on a number of examples, however long a busy machine takes for them. Those that write into a
# tmp_path make a folder of their own for each example, or do no harm to one another.
settings.register_profile(
    "trainyard",
    parent=settings.default,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("trainyard")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell; what tests start would ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Hide what is imported and collected from the garbage collector, which would look through it again and again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:  # not a keyword: those have the names of folders too
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _temporary_folder_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that a test calls in this process may put temporary files into a folder of its own."""
    monkeypatch.setattr(tempfile, "tempdir", tempfile.gettempdir())


@pytest.fixture(autouse=True)
def _logging_of_before() -> Iterator[None]:
    """What a Hydra application of a test configures for its process is taken back after the test."""
    root = logging.getLogger()
    loggers = [root, *map(logging.getLogger, ("trainyard", "hydra"))]
    before = [(each, each.level, each.disabled, each.propagate, each.handlers[:]) for each in loggers]
    filters = [(handler, handler.filters[:]) for handler in root.handlers]  # pytest's serve all tests
    threshold = root.manager.disable
    yield
    for name, logger in root.manager.loggerDict.items():  # Hydra's default logging disables existing ones
        if name.startswith("trainyard.") and isinstance(logger, logging.Logger):
            logger.disabled = False
    logging.disable(threshold)
    for each, level, disabled, propagate, handlers in before:
        each.setLevel(level)
        each.disabled, each.propagate, each.handlers[:] = disabled, propagate, handlers
    for handler, own in filters:
        handler.filters[:] = own


@pytest.fixture
def parts() -> Any:
    """The arguments of a small Runner that learns; a test replaces what it is about."""
    return {
        "model": {"_target_": "trainyard.models.MLP", "in_features": "auto", "num_classes": "auto", "hidden": [16]},
        "data": {"_target_": "trainyard.data.Rings", "num_samples": 320, "batch_size": 32},
        "optim": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01},
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 3},
        "metrics": {
            "accuracy": {"_target_": "trainyard.metrics.Accuracy"},
            "loss": {"_target_": "trainyard.metrics.CrossEntropy"},
        },
        "objective": "val/accuracy",
        "direction": "maximize",
        "device": "cpu",
    }


@pytest.fixture
def capturable_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's optimizers keep their steps on the device for CUDA alone; the arithmetic knows no device."""
    for name in ("Adam", "NAdam", "RAdam", "Adamax", "RMSprop"):
        module = sys.modules[getattr(torch.optim, name).__module__]
        monkeypatch.setattr(module, "_get_capturable_supported_devices", lambda *_, **__: ["cpu"])


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Any:
    """What was said about the capture of the step."""
    caplog.set_level(logging.INFO, logger="trainyard")
    return lambda: [record.getMessage() for record in caplog.records if "captured" in record.getMessage()]
