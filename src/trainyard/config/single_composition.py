"""Single composition of a run's config: Hydra 1.3 composes it once to read `hydra.mode`, and a second time to run
it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from trainyard.config.hydra_versions import IS_14, configure_log

SWITCH = "env.fast_paths"


class _Kept:
    """The config composed for the mode, kept for the run that follows."""

    def __init__(self, name: str | None, overrides: Sequence[str], config: DictConfig) -> None:
        self.arguments = (name, [*overrides, "hydra.mode=RUN"], RunMode.RUN)
        self.config = config

    def for_run(self) -> DictConfig:
        self.config.hydra.mode = RunMode.RUN
        self.config.hydra.overrides.hydra.append("hydra.mode=RUN")
        return self.config


@contextmanager
def composed_once() -> Iterator[None]:
    """Within the block, let `hydra.main` run a single run with the config that it composed to read the mode.

    The configs are equal, except that the config of the run has the additional override `hydra.mode=RUN`. As in Hydra,
    the config is composed a second time for a sweep, a given `hydra.mode`, `hydra.verbose` (which prints the
    composition), an error, and `env.fast_paths=false`. Hydra 1.4 reads the mode without a composition and is not
    changed.
    """
    if IS_14:
        yield
        return
    get_mode, compose = Hydra.get_mode, Hydra.compose_config
    kept: list[_Kept] = []

    def mode_of(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        try:
            config = compose(self, config_name=config_name, overrides=overrides, run_mode=RunMode.RUN)
        except Exception:
            return get_mode(self, config_name, overrides)
        settings = config.hydra
        if settings.mode is None and not settings.verbose and OmegaConf.select(config, SWITCH) is not False:
            kept.append(_Kept(config_name, overrides, config))
        return config.hydra.mode

    def compose_once(
        self: Hydra, config_name: str | None, overrides: list[str], run_mode: RunMode, **options: Any
    ) -> Any:
        before = kept.pop() if kept else None
        if before is None or before.arguments != (config_name, overrides, run_mode):
            return compose(self, config_name=config_name, overrides=overrides, run_mode=run_mode, **options)
        config = before.for_run()
        if options.get("with_log_configuration"):
            configure_log(config.hydra.hydra_logging, config.hydra.verbose)
        return config

    Hydra.get_mode, Hydra.compose_config = mode_of, compose_once  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        Hydra.get_mode, Hydra.compose_config = get_mode, compose  # type: ignore[method-assign]
