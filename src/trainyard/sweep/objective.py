"""Objectives for sweepers that learn: a diverged run counts as the worst."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf


def tell_worst_for_nan(returns: Sequence[JobReturn], config: DictConfig) -> None:
    """Replace NaN in the results of jobs with infinity of the worse sign.

    Optuna, for example, does not accept NaN, and its sweeper would end. The manifest and the ranking keep the NaN.

    Args:
        returns: the results of the jobs; changed in place.
        config: the config of the sweep: `hydra.sweeper.direction`, otherwise `direction`, defines what is worse; a list
            of directions corresponds to lists of objectives. Without either, lower is better.
    """
    given = OmegaConf.select(config, "hydra.sweeper.direction")
    if given is None:
        given = OmegaConf.select(config, "direction")
    several = given if OmegaConf.is_list(given) else [given]
    directions = [str(entry).rpartition(".")[2].lower() for entry in several]  # an enum of Hydra's plugin, or a text
    for result in returns:
        if result.status is JobStatus.COMPLETED:
            value = result.return_value
            told = _without_nan(value, directions)
            if told is not value:
                result.return_value = told


def _without_nan(value: Any, directions: Sequence[str]) -> Any:
    if isinstance(value, list | tuple):
        each = [_without_nan(entry, directions[index : index + 1]) for index, entry in enumerate(value)]
        return value if all(new is old for new, old in zip(each, value, strict=True)) else each
    if isinstance(value, float) and math.isnan(value):
        return -math.inf if directions[:1] == ["maximize"] else math.inf
    return value
