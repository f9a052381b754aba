"""The test suites that Hydra ships for launchers."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forked
import pytest
from hydra import version
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.test_utils import test_utils
from hydra.test_utils.launcher_common_tests import IntegrationTestSuite, LauncherTestSuite

from hydra_plugins.trainyard_launcher import LocalLauncher
from trainyard.config.hydra_versions import IS_14


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suites start applications of their own, which look for the plugin."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src"), prepend=os.pathsep)
    monkeypatch.delenv("HYDRA_DEPRECATION_WARNINGS_AS_ERRORS", raising=False)  # they do what they warn of


@pytest.fixture(autouse=True)
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The applications run in processes forked from one that has their imports done."""

    def check_call(command: Any, env: Any) -> None:
        done = forked.run(command, env=env, cwd=Path.cwd())
        assert done.returncode == 0, done.stderr

    monkeypatch.setattr(test_utils, "subprocess", SimpleNamespace(check_call=check_call))


@pytest.fixture(autouse=True)
def _fresh_version_base(hydra_restore_singletons: Any) -> None:
    """The suites expect a process in which no application has said which Hydra it was written for."""
    if not IS_14:
        version.setbase("1.1")  # what Hydra takes for such a process


def test_discovery() -> None:
    assert LocalLauncher.__name__ in [plugin.__name__ for plugin in Plugins.instance().discover(Launcher)]


@pytest.mark.parametrize(("launcher_name", "overrides"), [("local", [])])
class TestLocalLauncher(LauncherTestSuite):
    """Sweeps in this process's Hydra."""

    @pytest.mark.skip(
        reason="the worker prints a failed job's traceback; the sweep raises SweepFailedError, naming the jobs"
    )
    def test_failure_preserves_task_traceback(self, launcher_name: Any, overrides: Any) -> None:
        """Hydra 1.4 asks for the exception of the task itself."""


@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"),
    [({}, ["-m", "hydra/job_logging=disabled", "hydra/launcher=local"])],
)
class TestLocalLauncherIntegration(IntegrationTestSuite):
    """Whole applications."""
