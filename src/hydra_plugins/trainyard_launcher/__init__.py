"""Hydra plugins: the launchers `local`, `slurm` and `ray`, and the sweeper `grid`.

This module is thin, because Hydra imports it at every start. The work is done in `trainyard.sweep`.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf, open_dict

if TYPE_CHECKING:
    from trainyard.sweep.proposers import Proposer
    from trainyard.sweep.settings import SweepSettings
    from trainyard.sweep.slurm_settings import SlurmSettings
    from trainyard.sweep.sweep import Sweep


class LocalLauncher(Launcher):
    """Runs the jobs of a sweep in parallel on this machine.

    A sweeper can launch several batches. All batches form one sweep, which is ranked and reported when it is closed. A
    sweeper that does not call `close` closes the sweep when the launcher is deleted.

    Args:
        **settings: the settings that `trainyard.sweep.settings.SweepSettings` documents.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.sweep: Sweep | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config
        self.sweep = None
        from trainyard.redaction import check_overrides  # not at the top: Hydra imports this module at every start

        given: Any = OmegaConf.to_container(config.hydra.overrides, resolve=False)
        check_overrides([*given["task"], *given["hydra"]])
        if type(hydra_context.config_loader) is ConfigLoaderImpl:  # another loader may do other things
            from trainyard.sweep.compose.composer import SweepLoader

            hydra_context.config_loader = SweepLoader(hydra_context.config_loader, config)

    def expect(self, jobs: Sequence[Sequence[str]]) -> None:
        """Announce all jobs of a grid, which are then launched in one or several batches.

        Args:
            jobs: the overrides of each job, in order.
        """
        if not self.settings.get("debug"):
            self._begun().grid = jobs

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        uses_results = not issubclass(get_class(self.config.hydra.sweeper._target_), BasicSweeper)
        if self.settings.get("debug"):
            is_first = uses_results or initial_job_idx == 0
            results = [self._in_this_process(job_overrides, initial_job_idx)] if is_first else []
            if uses_results:
                sys.exit()  # it cannot continue without those of the other jobs
            return results
        sweep = self._begun()
        returns = sweep.launch(job_overrides, initial_job_idx)
        if uses_results:
            from trainyard.sweep.objective import tell_worst_for_nan

            if sweep.settings.dry_run:
                sys.exit()  # it cannot continue without them
            tell_worst_for_nan(returns, self.config)
        return returns

    def _in_this_process(self, job_overrides: Sequence[Sequence[str]], number: int) -> JobReturn:
        """Run the first of these jobs in this process, as Hydra's basic launcher does, so that `breakpoint()` works."""
        from hydra.core.utils import configure_log, run_job, setup_globals

        self._checked_settings()
        setup_globals()
        own = list(job_overrides[0])
        what = f": {' '.join(own)}" if own else ""
        print(f"hydra.launcher.debug: running only job {number}, in this process{what}", flush=True)
        config = self.hydra_context.config_loader.load_sweep_config(self.config, own)
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(number), number
        result = run_job(
            hydra_context=self.hydra_context,
            task_function=self.task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        _ = result.return_value  # raises the job's error
        return result

    def run(self, proposer: Proposer) -> None:
        """Run the jobs that a `trainyard.sweep.proposers.Proposer` proposes, then `finish`; for the sweepers of
        Trainyard.

        Raises:
            ConfigError: `debug` is true. It runs one of a list of jobs, but a proposer has no such list.
        """
        try:
            if self.settings.get("debug"):
                from trainyard.errors import ConfigError

                hint = "To debug one job, run it without -m."
                raise ConfigError("hydra.launcher.debug", True, "false for a search, pbt or a pruner", hint=hint)
            self._begun().run(proposer)
        except BaseException:
            self.close()
            raise
        self.finish()

    def finish(self) -> None:
        """Close the sweep, and give the command its status.

        Raises:
            SweepFailedError: a job has failed.
        """
        self.close()
        if self.sweep is not None:
            self.sweep.raise_if_failed()

    def _begun(self) -> Sweep:
        from trainyard.sweep.sweep import Sweep

        if self.sweep is None:
            settings = self._checked_settings()
            self.sweep = Sweep(self.hydra_context, self.task_function, self.config, settings)
            # After an error of the sweeper this runs at exit. Modules that are imported then may need this one, which
            # cannot be imported then.
            import concurrent.futures.thread  # noqa: F401

            weakref.finalize(self, self.sweep.close)
        return self.sweep

    def _checked_settings(self) -> SweepSettings:
        from trainyard.sweep.settings import SweepSettings

        return SweepSettings.from_config(self.settings)

    def close(self) -> None:
        """End the sweep: rank its jobs, report, wait for the shipper."""
        if self.sweep is not None:
            self.sweep.close()


class SlurmLauncher(LocalLauncher):
    """Runs the jobs of a sweep on the nodes of a Slurm cluster.

    Args:
        **settings: the settings that `trainyard.sweep.slurm_settings.SlurmSettings` documents.
    """

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        if self._given_settings().detach and not self.settings.get("debug"):
            self._begun().launch(job_overrides, initial_job_idx)  # checks the jobs, and shows the plan
            self._submit_head()
        return super().launch(job_overrides, initial_job_idx)

    def run(self, proposer: Proposer) -> None:
        super().run(proposer)
        if self._given_settings().detach:
            self._submit_head()

    def _submit_head(self) -> NoReturn:
        """Submit the process that runs the sweep, unless only the plan was requested, and end this process."""
        from trainyard.sweep.detached import submit_head

        settings = self._given_settings()
        assert self.sweep is not None
        self.sweep.close()
        if not settings.dry_run:
            print(submit_head(settings, self.sweep.directory))
        sys.exit()

    def _given_settings(self) -> SlurmSettings:
        from trainyard.sweep.slurm_settings import SlurmSettings

        return SlurmSettings.from_config(self.settings)

    def _checked_settings(self) -> SweepSettings:
        settings = self._given_settings()
        return replace(settings, dry_run=True, fuse="off") if settings.detach else settings


class RayLauncher(LocalLauncher):
    """Runs the jobs of a sweep on the nodes of a Ray cluster.

    Args:
        **settings: the settings that `trainyard.sweep.ray_settings.RaySettings` documents.
    """

    def _checked_settings(self) -> SweepSettings:
        from trainyard.sweep.ray_settings import RaySettings

        return RaySettings.from_config(self.settings)


class GridSweeper(BasicSweeper):
    """Hydra's basic sweeper: all combinations of the values on the command line.

    Several overrides of one key have the same effect as in a single run; Hydra's sweeper keeps only one of them.

    The launcher checks the jobs, because Hydra would compose all of them one by one only for the check. If a job fails,
    later batches still run.

    Args:
        max_batch_size: maximum number of jobs per batch passed to the launcher; None for all.
        params: overrides in the config.
        zip, blocks, file, when: the settings that `trainyard.sweep.grid_settings.GridSettings` documents.
        pruner: the config of the pruner that decides which jobs continue; None: no pruner. A pruner needs Trainyard's
            launcher.
        direction, order: see `trainyard.sweep.proposers.search_settings.grid_proposer`.
        **unknown: unknown settings, which `sweep` rejects.
    """

    def __init__(
        self,
        max_batch_size: int | None,
        params: dict[str, str] | None = None,
        zip: Any = None,  # noqa: A002 - the setting's name
        blocks: Any = None,
        file: Any = None,
        when: Any = None,
        pruner: Any = None,
        direction: str | None = None,
        order: str = "any",
        **unknown: Any,
    ) -> None:
        super().__init__(max_batch_size, params)
        self.unknown = unknown
        self.further = {"zip": zip, "blocks": blocks, "file": file, "when": when}
        self.pruner = pruner
        self.direction = direction
        self.order = order

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Launch all batches.

        Raises:
            ConfigError: a setting is unknown or invalid.
            SweepFailedError: a job has failed. With a third-party launcher, the error of the first failed job is raised
                instead.
        """
        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        if self.unknown:
            from trainyard.sweep.proposers.given_settings import given_settings

            given_settings(self.unknown, "grid")
        size = self.max_batch_size
        if size is not None:
            from trainyard.checks import integer  # not at the top: Hydra imports this module at every start

            integer("hydra.sweeper.max_batch_size", size, at_least=1, other="null for a single batch")
        if self.params is not None:
            from trainyard.sweep.proposers.given_settings import mapping_of

            given = OmegaConf.to_container(self.params) if OmegaConf.is_config(self.params) else self.params
            mapping_of("params", given, "a mapping from keys to values: {optim.lr: '1e-3,1e-2'}")
        batches = self._batches([*self._parse_config(), *arguments])
        ours = self.launcher if isinstance(self.launcher, LocalLauncher) else None
        if not (self.pruner is None or self._pruner_target().endswith("NoPruner")):
            self._prune([job for batch in batches for job in batch], ours)
            return []
        if ours is None:  # our launcher writes the command itself, once the sweep is certain to run
            directory = Path(self.config.hydra.sweep.dir)
            directory.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(self.config, directory / "multirun.yaml")
        returns: list[Sequence[JobReturn]] = []
        first = 0
        try:
            if ours is not None:
                ours.expect([job for batch in batches for job in batch])
            for batch in batches:
                returns.append(self.launcher.launch(batch, initial_job_idx=first))
                first += len(batch)
        except BaseException:
            if ours is not None:
                ours.close()
            raise
        if ours is not None:
            ours.finish()
            return returns
        for result in (each for results in returns for each in results):
            if result.status is JobStatus.FAILED:
                raise result._return_value  # its getter would name a job that may have failed for another reason
        return returns

    def _pruner_target(self) -> str:
        """Return the pruner's `_target_`; of a value that is not a config, the value, which `_prune` rejects."""
        return str(self.pruner.get("_target_") if OmegaConf.is_dict(self.pruner) else self.pruner)

    def _prune(self, jobs: list[list[str]], launcher: LocalLauncher | None) -> None:
        from trainyard.sweep.proposers.pruner_settings import check_application, no_pruner, pruner_node
        from trainyard.sweep.proposers.search_settings import grid_proposer
        from trainyard.sweep.proposers.shared_values import of_jobs, varying_in_jobs

        assert self.config is not None
        assert self.hydra_context is not None
        if launcher is None or self.max_batch_size is not None:
            needed = "hydra/launcher=local, slurm or ray, and hydra.sweeper.max_batch_size=null"
            raise no_pruner(self._pruner_target(), f"pruners need {needed}")
        config = of_jobs(jobs, self.hydra_context.config_loader, self.config)
        node = pruner_node(self.pruner, config, varying_in_jobs(jobs))
        assert node is not None
        check_application(launcher.task_function, node)
        launcher.run(grid_proposer(jobs, node, self.direction, self.order, config))

    def _batches(self, lines: list[str]) -> list[list[list[str]]]:
        from trainyard.sweep.grid import grid_jobs
        from trainyard.sweep.grid_settings import GridSettings

        assert self.hydra_context is not None
        assert self.config is not None
        settings = GridSettings.from_config(**self.further)
        jobs = grid_jobs(lines, settings, self.hydra_context.config_loader, self.config)
        return (
            [jobs] if self.max_batch_size is None else list(self.split_overrides_to_chunks(jobs, self.max_batch_size))
        )

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Do nothing: the launcher composes and checks all jobs before it starts the first."""
