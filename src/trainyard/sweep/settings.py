"""Settings of a sweep."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, get_type_hints

from omegaconf import DictConfig, OmegaConf

from trainyard.config.annotations import fits
from trainyard.errors import ConfigError
from trainyard.sweep.executor import Executor, LocalExecutor, find_slots
from trainyard.sweep.executor.slots import Slot, capacity


@dataclass(frozen=True)
class SweepSettings:
    """Settings of a sweep: the node `hydra.launcher`.

    Args:
        jobs_per_gpu: jobs that share a GPU; `auto` is 1.
        threads_per_job: threads of a job; `auto` is 1, or with CUDA, an equal share of the cores.
        max_jobs: maximum number of jobs at a time; None for as many as there are slots.
        retries: additional attempts for a failing job.
        timeout: seconds after which a job is ended; None for never.
        fail_fast: stop the other jobs when one has failed.
        grace: seconds within which a job must end after `timeout` or `fail_fast`; then it is killed.
        fuse: train jobs that differ only in numbers as stacks: `auto` for the fastest width, `off`, or the width.
        dry_run: print the plan and stop.
        debug: run the first job alone, in this process, where a debugger can stop it.
    """

    jobs_per_gpu: int | Literal["auto"] = "auto"
    threads_per_job: int | Literal["auto"] = "auto"
    max_jobs: int | None = None
    retries: int = 0
    timeout: float | None = None
    fail_fast: bool = False
    grace: float = 30.0
    fuse: int | Literal["auto", "off"] = "auto"
    dry_run: bool = False
    debug: bool = False

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> Self:
        """Return the settings in `hydra.launcher`.

        Raises:
            ConfigError: a setting is unknown, or has the wrong type.
        """
        kinds = get_type_hints(cls)
        if values.get("fuse") is False:  # YAML reads `off` as False
            values = {**values, "fuse": "off"}
        values = {name: _to_plain(value) for name, value in values.items()}
        for name, value in values.items():
            if name not in kinds:
                raise ConfigError(
                    "hydra.launcher", name, f"a setting of this launcher: {', '.join(kinds)}", options=kinds
                )
            if not fits(value, kinds[name]):
                accepted = _ACCEPTED[kinds[name]]
                if name.endswith("_gb"):
                    accepted = accepted.replace("seconds", "GB")
                raise ConfigError(f"hydra.launcher.{name}", value, accepted)
        try:
            return cls(**values)
        except ConfigError as error:
            raise error.under("hydra.launcher") from None

    @property
    def disk_patience(self) -> float:
        """Seconds for which the sweep's directory may be missing while it runs."""
        return 0.0

    def check(self, config: DictConfig) -> None:
        """Check that a sweep is compatible with these settings.

        Args:
            config: the config of the entire sweep.

        Raises:
            ConfigError: it is not.
        """

    def slots(self, continued: bool) -> list[Slot]:
        """Return all slots that can exist at the same time.

        Args:
            continued: whether the sweep was started before, possibly with more cores.

        Raises:
            ConfigError: a setting is out of range here.
        """
        threads = self.threads_per_job
        if threads != "auto" and continued:
            threads = min(threads, len(os.sched_getaffinity(0)))
        return find_slots(self.jobs_per_gpu, threads, self.max_jobs)

    def limits_a_job(self, slots: Sequence[Slot], continued: bool) -> bool:
        """Return whether a job could take more slots without `max_jobs`.

        Args:
            slots: the result of `slots`.
            continued: as for `slots`.
        """
        every = slots if self.max_jobs is None else replace(self, max_jobs=None).slots(continued)
        return capacity(every) > capacity(slots)

    def executor(self, slots: Sequence[Slot], directory: Path, preload: Sequence[str]) -> Executor:
        """Return the executor of the jobs.

        Args:
            slots: the result of `slots`.
            directory: the sweep's directory.
            preload: modules that are imported before workers start.

        Raises:
            ConfigError: a setting is out of range here.
        """
        return LocalExecutor(slots, preload=preload)

    def trial_executor(self, executor: Executor, preload: Sequence[str]) -> Executor:
        """Return the executor on which jobs are tried before the first of them starts.

        Args:
            executor: the executor of the jobs.
            preload: modules that are imported before workers start.
        """
        return executor


def _to_plain(value: Any) -> Any:
    """Return a list or mapping of a config as plain Python objects."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


_ACCEPTED = {
    bool: "true or false",
    int: "an integer",
    int | None: "an integer, or null",
    float: "a number of seconds",
    float | None: "a number of seconds, or null",
    int | Literal["auto"]: "an integer, or auto",
    int | Literal["auto", "off"]: "an integer, auto or off",
    str: "a string",
    str | None: "a string, or null",
    list[str] | None: "a list of strings, or null",
    dict[str, Any] | None: "a mapping of names to values, or null",
    Literal["tcp", "files"]: "tcp or files",
}
