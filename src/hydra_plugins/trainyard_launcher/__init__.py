"""The launcher `local` and the sweeper `grid`: thin, since Hydra imports this at every start. The work is in
`trainyard.sweep`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from trainyard.sweep.launch import Sweep


class LocalLauncher(Launcher):
    """Runs the jobs of a sweep side by side on this machine.

    Args:
        **settings: those of `trainyard.sweep.launch.Settings`, where each is explained.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.sweep: Sweep | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config
        self.sweep = None

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from trainyard.sweep.launch import Settings, Sweep

        if self.sweep is None:  # a sweeper may launch batch after batch
            settings = Settings.from_config(self.settings)
            self.sweep = Sweep(self.hydra_context, self.task_function, self.config, settings)
        return self.sweep.launch(job_overrides, initial_job_idx)


class GridSweeper(BasicSweeper):
    """Hydra's basic sweeper: every combination of what the command line lists.

    It leaves it to the launcher to check the points: Hydra composes each of them only for that, one after another.
    """

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """The launcher composes and checks all points before it starts the first."""
