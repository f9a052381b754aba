"""Settings of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from trainyard.config.annotations import fits
from trainyard.errors import ConfigError


@dataclass(frozen=True)
class SweepSettings:
    """Settings of a sweep: the node `hydra.launcher`.

    Args:
        jobs_per_gpu: jobs that share a GPU; `auto` is 1.
        threads_per_job: threads of a job on the CPU; `auto` is 1.
        max_jobs: maximum number of jobs at a time; None for as many as there are slots.
        retries: further attempts at a job that fails.
        timeout: seconds after which a job is ended; None for never.
        fail_fast: stop the other jobs when one has failed.
        grace: seconds that a job has to end when `timeout` or `fail_fast` ends it; then it is killed.
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
    def from_config(cls, values: Mapping[str, Any]) -> SweepSettings:
        """Return the settings in `hydra.launcher`.

        Raises:
            ConfigError: a setting is unknown, or has the wrong type.
        """
        kinds = get_type_hints(cls)
        if values.get("fuse") is False:  # YAML reads `off` as False
            values = {**values, "fuse": "off"}
        for name, value in values.items():
            if name not in kinds:
                raise ConfigError("hydra.launcher", name, f"a setting of it: {', '.join(kinds)}", options=kinds)
            if not fits(value, kinds[name]):
                raise ConfigError(f"hydra.launcher.{name}", value, _ACCEPTED[kinds[name]])
        return cls(**values)


_ACCEPTED = {
    bool: "true or false",
    int: "an integer",
    int | None: "an integer, or null",
    float: "a number of seconds",
    float | None: "a number of seconds, or null",
    int | Literal["auto"]: "an integer, or auto",
    int | Literal["auto", "off"]: "an integer, or auto or off",
}
