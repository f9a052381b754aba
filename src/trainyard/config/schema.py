"""Schema of the framework's own settings, at the top level of a config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainyard.checks import boolean, choice, integer, seed_number
from trainyard.config.build import check_tree, is_node, locate, names_argument, taken_out
from trainyard.config.compiling import check_capture, compile_arguments
from trainyard.config.headers import check_headers
from trainyard.config.namesakes import check_hook_names
from trainyard.config.resolving import resolve
from trainyard.config.unread import warn_of_unread
from trainyard.errors import ConfigError
from trainyard.redaction import credentials, refusal

PATHS = ("output", "target")
"""Keys in the config of a metric that select its inputs and are not arguments of its target."""
MODES = ("train", "val", "test")


@dataclass
class Settings:
    """Settings at the top level of a config; conf/train.yaml explains each."""

    mode: str = "train"
    seed: int = 0
    device: str = "auto"
    precision: str = "fp32"
    accumulate: int = 1
    accumulate_by: str = "items"
    clip_grad_norm: float | None = None
    clip_grad_value: float | None = None
    init: Any = None
    freeze: Any = None
    activation_checkpointing: Any = None
    compile: Any = False
    capture: Any = "auto"
    objective: str = "val/loss"
    direction: str = "minimize"
    sanity_check: bool = True
    quick: bool = False
    limit: Any = None
    overfit: Any = None
    load_from: Any = None
    resume: Any = False
    resume_override: Any = None
    name: str | None = None
    work_dir: str | None = None


PARTS = (
    *("model", "data", "optim", "schedule", "hook", "metric"),
    *("loop", "val_loop", "test_loop", "tracker", "env", "strategy"),
)
"""Keys of the parts of a training."""

READ = frozenset({*PARTS, *(field.name for field in fields(Settings))})
"""Keys at the top level of a config that a training reads."""

# By setting, the function that parses it, given by name: its module imports torch.
_READERS = {
    "init": "trainyard.models.initialize.parse",
    "freeze": "trainyard.models.freeze.parse",
    "load_from": "trainyard.runner.weights.load_from",
    "limit": "trainyard.data.limits.parse",
    "overfit": "trainyard.data.limits.batches_to_overfit",
    "resume_override": "trainyard.runner.override.parse",
}
PRIORITY = "trainyard.runner.dispatch.priority"
CLIP = "trainyard.step.clip.make_clip"
_TEXTS = {"str": "a string", "str | None": "a string or null"}


# Parts of configs that were checked: the jobs of a sweep share most of theirs.
_FOUND_RIGHT: set[tuple[str, str]] = set()


def check(cfg: DictConfig) -> dict[str, Any]:
    """Check a composed config before anything is built from it: `check_settings` and `check_nodes`.

    Returns:
        The config in plain Python.

    Raises:
        ConfigError: a check fails. The message names the key, the given and the accepted values, and the nearest name.
    """
    values = check_settings(cfg)
    check_nodes(values)
    return values


def check_settings(cfg: DictConfig) -> dict[str, Any]:
    """Check a config as far as possible without its targets, whose modules import torch.

    Every value is present and resolves, and settings have their types. Hydra's own node is not checked. A key that
    nothing reads gives a warning.

    Returns:
        The config in plain Python.

    Raises:
        ConfigError: a check fails.
    """
    check_headers()
    check_hook_names(cfg)
    values = resolve(cfg)
    _check_dots(values)
    missing = sorted(_missing(values))
    if missing:
        raise ConfigError(missing[0], "???", f"a value: {missing[0]}=… on the command line, or in the config")
    _check_credentials(cfg, values)
    _check_settings(values)
    warn_of_unread(cfg, READ)
    return values


def _check_dots(values: Mapping[str, Any]) -> None:
    """Check that no config file has a key such as `optim.lr: 1`, which does not set the key `lr` of `optim`.

    Raises:
        ConfigError: the config has such a key.
    """
    for key, value in values.items():
        first, *rest = key.split(".")
        if rest and (first in READ or first == "hydra"):
            nested = "".join(f"{name}: {{" for name in key.split(".")[:-1]) + f"{rest[-1]}: …" + "}" * len(rest)
            raise ConfigError(key, value, f"nested keys in the config file: {nested}")


def _check_credentials(cfg: DictConfig, values: dict[str, Any]) -> None:
    """Check that no config file contains a credential; an interpolation, such as `${oc.env:NAME}`, is allowed.

    Raises:
        ConfigError: a file contains a credential.
    """
    found = dict(credentials(values))
    if not found:
        return
    written = OmegaConf.to_container(cfg, resolve=False)
    for key, shown in credentials(written):
        if key in found:
            raise refusal(key, shown)


def check_nodes(values: dict[str, Any]) -> None:
    """Check the nodes of a config: each `_target_` can be imported and accepts its arguments and their values.

    Args:
        values: the result of `check_settings`.

    Raises:
        ConfigError: a check fails.
    """
    limits = values.get("clip_grad_norm"), values.get("clip_grad_value")
    if limits != (None, None):
        locate(CLIP, "clip_grad_norm")(*limits)
    for name, reader in _READERS.items():
        if values.get(name) is not None:
            locate(reader, name)(values[name])
    for key, value in _nodes(values).items():
        if key in _READERS:
            continue  # read above
        mark = key, repr(value)
        if mark not in _FOUND_RIGHT:
            check_tree(value, key)
            _FOUND_RIGHT.add(mark)


def _nodes(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with `paramwise`, which is not an argument of an optimizer, as a node next to each optimizer.

    The `priority` of a hook, which is not an argument of the hook either, is checked here; `output` and `target` of a
    metric are checked when the metric is built.

    Raises:
        ConfigError: one of these is invalid.
    """
    if isinstance(values.get("hook"), Mapping):
        values = values | {"hook": {name: _without_priority(node, name) for name, node in values["hook"].items()}}
    if isinstance(values.get("metric"), Mapping):
        values = values | {"metric": {name: _without_paths(node) for name, node in values["metric"].items()}}
    optim = values.get("optim")
    if not isinstance(optim, Mapping):
        return values
    nodes = {"optim": optim} if "_target_" in optim else {f"optim.{name}": node for name, node in optim.items()}
    found = {key: value for key, value in values.items() if key != "optim"}
    for key, node in nodes.items():
        if not isinstance(node, Mapping):
            found[key] = node
            continue
        rules = node.get("paramwise")
        if not isinstance(rules, Mapping | None):
            raise ConfigError(f"{key}.paramwise", rules, "a mapping of rules, or null")
        found[key] = {name: value for name, value in node.items() if name != "paramwise"}
        if rules:
            found[f"{key}.paramwise"] = {"_target_": "trainyard.optim.Paramwise", **rules}
    return found


def _without_paths(node: Any) -> Any:
    """Return the config of a metric without the keys that select its inputs (`trainyard.metrics.given`)."""
    if not is_node(node):
        return node
    return {key: value for key, value in node.items() if key not in PATHS or names_argument(node, key)}


def _without_priority(node: Any, name: str) -> Any:
    rest, priority = taken_out(node, "priority")
    if priority is not None:
        try:
            locate(PRIORITY, name)(priority)
        except ConfigError as error:
            raise error.under(f"hook.{name}") from None
    return rest


def _missing(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from _missing(entry, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            yield from _missing(entry, f"{key}.{index}")
    elif isinstance(value, str) and value == "???":
        yield key


def _check_settings(values: dict[str, Any]) -> None:
    settings: dict[str, Any] = {field.name: field.default for field in fields(Settings)}
    for field in fields(Settings):
        if field.name in values:
            given, kind = values[field.name], str(field.type)
            if type(given) is type(field.default) and given == field.default:
                continue
            try:
                settings[field.name] = _converted(field.name, given) if kind in _TEXTS else given
            except OmegaConfBaseException:
                raise ConfigError(field.name, given, _TEXTS[kind]) from None
    mode, resume = settings["mode"], settings["resume"]
    choice("mode", mode, MODES)
    seed_number("seed", settings["seed"])
    integer("accumulate", settings["accumulate"], at_least=1)
    choice("accumulate_by", settings["accumulate_by"], ("items", "batches"))
    boolean("sanity_check", settings["sanity_check"])
    if boolean("quick", settings["quick"]) and mode != "train":
        raise ConfigError("quick", True, f"false, because mode={mode} does not train")
    compile_arguments(settings["compile"])
    check_capture(settings["capture"])
    if not isinstance(resume, bool | str):
        raise ConfigError("resume", resume, "true, false or the path of a checkpoint")
    if mode != "train" and not settings["load_from"]:
        accepted = f"the path of a checkpoint, because mode={mode} evaluates existing weights"
        raise ConfigError("load_from", settings["load_from"], accepted)


@cache
def _schema() -> DictConfig:
    schema: DictConfig = OmegaConf.structured(Settings)
    return schema


def _converted(name: str, given: Any) -> Any:
    schema = _schema()
    OmegaConf.update(schema, name, given, merge=False)
    return schema[name]
