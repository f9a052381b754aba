"""Settings of the sweepers, and what replaces the settings of Hydra's Optuna plugin."""

from __future__ import annotations

from typing import Any

SETTINGS: dict[str, tuple[str, ...]] = {
    "grid": ("max_batch_size", "params", "zip", "blocks", "file", "when", "pruner", "direction", "order"),
    "search": (
        *("sampler", "pruner", "direction", "n_trials", "n_jobs", "timeout", "target", "order", "params", "when"),
        *("together", "enqueue", "warm_start", "repeats", "objective", "constraints", "learn_from"),
    ),
    "pbt": ("population", "interval", "quantile", "explore", "factors", "direction", "seed", "params"),
}
"""Settings in `hydra.sweeper`, by the option of `hydra/sweeper`."""

NOT_IN_SEARCH = {
    "study_name": "A search is identified by the directory of its sweep, hydra.sweep.dir.",
    "storage": (
        "A search is stored in the directory of its sweep. To continue the search, use the same hydra.sweep.dir."
    ),
    "max_failure_rate": "A failed trial does not end a search, unless hydra.launcher.fail_fast=true.",
    "search_space": "Pass the ranges of a search as overrides, on the command line or in hydra.sweeper.params.",
    "custom_search_space": "Use hydra.sweeper.when for the conditional keys of a search.",
    "max_batch_size": "Trials start as slots become free.",
    "seed": "The seed of a search is hydra.sweeper.sampler.seed.",
}
"""Settings of Hydra's Optuna plugin, or of other sweepers, for which a search has alternatives."""

SAMPLERS = {
    "grid": "hydra/sweeper=grid runs every combination of the values.",
    "motpe": "hydra/sweeper/sampler=tpe also supports several objectives.",
}
"""Samplers of Hydra's Optuna plugin, and their alternatives."""

SAMPLER_ARGUMENTS = {"constraints_func": "Use hydra.sweeper.constraints."}
"""Arguments in `hydra.sweeper.sampler`, and their alternatives."""

OPTIONS = {
    "optuna.samplers.CmaEsSampler": "cmaes",
    "optuna.samplers.GPSampler": "gp",
    "optuna.samplers.NSGAIISampler": "nsgaii",
    "optuna.samplers.QMCSampler": "qmc",
    "optuna.samplers.RandomSampler": "random",
    "optuna.samplers.TPESampler": "tpe",
    "trainyard.sweep.proposers.pruners.Asha": "asha",
    "trainyard.sweep.proposers.pruners.Hyperband": "hyperband",
    "trainyard.sweep.proposers.pruners.NoPruner": "none",
    "optuna.pruners.MedianPruner": "median",
    "optuna.pruners.PatientPruner": "patient",
    "optuna.pruners.PercentilePruner": "percentile",
    "optuna.pruners.ThresholdPruner": "threshold",
    "optuna.pruners.WilcoxonPruner": "wilcoxon",
}
"""Options of `hydra/sweeper/sampler` and `hydra/sweeper/pruner`, by their `_target_`."""


def option_of(target: Any) -> str:
    """Return the option of a sampler or pruner for messages; of a class that is in no option, its `_target_`."""
    return OPTIONS.get(str(target), str(target))


def hint_for(name: str, option: str) -> str:
    """Return what to use instead of a setting that a sweeper does not have; empty if there is nothing.

    Args:
        name: the name of the setting in `hydra.sweeper`.
        option: the selected option of `hydra/sweeper`.
    """
    if option == "search" and name in NOT_IN_SEARCH:
        return NOT_IN_SEARCH[name]
    others = [f"hydra/sweeper={each}" for each, names in SETTINGS.items() if name in names and each != option]
    if others:
        return f"{name} is a setting of {' and '.join(others)}."
    if name in NOT_IN_SEARCH:
        return f"To search, use hydra/sweeper=search. {NOT_IN_SEARCH[name]}"
    return ""
