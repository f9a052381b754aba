"""Optuna without its output."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

_ONE_AT_A_TIME = (
    RLock()
)  # what is told, and the filters of warnings, are of the process: trials are asked for in a thread


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress Optuna's line for each trial, and its warnings about experimental features."""
    import optuna

    with _ONE_AT_A_TIME:
        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                warnings.filterwarnings("ignore", module="cmaes")
                yield
        finally:
            optuna.logging.set_verbosity(before)
