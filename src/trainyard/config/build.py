"""Building of objects from the nodes of a config."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf

from trainyard.checks import boolean
from trainyard.config.annotations import check_arguments
from trainyard.config.hydra_versions import full_key, instantiate, is_tuple
from trainyard.errors import ConfigError, TrainyardError

_CONTROLS = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")
_REFUSALS = (TrainyardError, TypeError, ValueError, OSError)  # errors of a target for values that it does not accept
_TOO_LARGE = (MemoryError, RuntimeError, OverflowError)  # among them those for a size that memory cannot hold
AUTO = "auto"
AUTO_OR_NULL = "auto_or_null"
_AUTO_GROUPS = ("model", "metric", "schedule")  # `auto` in them stands for a fact about the data, or about the run

_INSTEAD = {"num_classes": "out_features"}  # facts that stand for one that the data do not have: those of regression
_EXTRAS = {
    "torchvision": "vision",
    "datasets": "hf",
    "gymnasium": "rl",
    "lightning": "lightning",
    "pytorch_lightning": "lightning",
    "timm": "timm",
    "tokenizers": "hf",
    "transformers": "hf",
    "optuna": "search",
}  # packages that an extra of this one installs
_PASSED = ("params", "optimizer", "y_true", "y_pred", "input", "preds", "target")
"""Arguments that the run passes to an optimizer, a scheduler, a function as a metric, and a function as a loss."""
_OWN_DEFAULT = ("loss",)  # arguments whose `auto` is null where the data have no such fact


def is_node(value: object) -> bool:
    """Return whether `build` can make an object from this value."""
    return isinstance(value, Mapping | DictConfig) and "_target_" in value


def build(value: Any, key: str, /, *args: Any) -> Any:
    """Build the object that a config describes; any other value is returned unchanged.

    Args:
        value: an object, or a mapping with `_target_`.
        key: the node's place in the config; errors name it.
        *args: passed to the target before the config's own arguments.

    Raises:
        ConfigError: the target cannot be imported, does not accept these arguments, or refuses their values.
    """
    if not is_node(value):
        return value
    check_node(value, key, positional=len(args))
    if _is_plain(value):
        return _called(value, key, args)
    try:
        return instantiate(value, *args)
    except (InstantiationException, *_REFUSALS, *_TOO_LARGE) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if _is_too_large(cause):
            raise _too_large(key, value, cause) from cause
        if not isinstance(cause, _REFUSALS):
            raise (cause or error) from None  # an error in the code of the target, not in the config
        raise _explain(error, cause, key, value) from cause


def _is_plain(node: Mapping[str, Any] | DictConfig) -> bool:
    """Return whether the node does not need Hydra: no interpolation, no special key but `_target_` and `_partial_`."""
    return type(node) is dict and not {"_args_", "_recursive_", "_convert_"} & node.keys() and "${" not in repr(node)


def _called(node: dict[str, Any], key: str, args: tuple[Any, ...]) -> Any:
    """Build such a node as Hydra's `instantiate` does, without its 1.5 ms per call: sweeps build thousands."""
    target = locate(node["_target_"], f"{key}._target_")
    named = {name: _argument(entry, f"{key}.{name}") for name, entry in node.items() if name not in _CONTROLS}
    if node.get("_partial_"):
        return functools.partial(target, *args, **named)
    try:
        return target(*args, **named)
    except ConfigError as error:
        raise error.under(key) from error
    except _REFUSALS as error:
        raise _refused(key, node, error) from error
    except _TOO_LARGE as error:
        if not _is_too_large(error):
            raise
        raise _too_large(key, node, error) from error


def _refused(key: str, node: Any, error: BaseException) -> TrainyardError:
    """Return the error for values that a target refuses; it names the argument, if the message of the target does."""
    if isinstance(error, TrainyardError):
        return TrainyardError(f"{key}: {error}")
    given = node if isinstance(error, ValueError) and isinstance(node, Mapping) else {}
    named = [name for name in given if re.search(rf"\b{re.escape(str(name))}\b", str(error))]
    if len(named) != 1:
        return TrainyardError(f"{key}: {error!r}")
    kind = str(node["_target_"]).rpartition(".")[2]
    hint = f"{kind} says: {str(error).rstrip('.')}."
    return ConfigError(f"{key}.{named[0]}", given[named[0]], f"a value that {kind} accepts", hint=hint)


def _is_too_large(error: BaseException | None) -> bool:
    """Return whether a size was too large for the memory of this machine."""
    said = ("can't allocate memory", "Storage size calculation overflowed", "int too big to convert")
    return isinstance(error, MemoryError) or (
        isinstance(error, _TOO_LARGE) and any(each in str(error) for each in said)
    )


def _too_large(key: str, node: Any, error: BaseException | None) -> ConfigError:
    """Return the error for a size that does not fit into memory; it names the largest number of the node."""
    found = re.search(r"allocate (\d+) bytes", str(error))
    said = f"{int(found[1]) / 2**30:,.1f} GiB would be needed" if found else str(error).partition("\n")[0].rstrip(".")
    plain = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    key, largest = max(_integers(plain, key), key=lambda each: each[1], default=(key, 0))
    return ConfigError(key, largest, "a size that fits into the memory of this machine", hint=f"{said}.")


def _integers(value: Any, key: str) -> Iterator[tuple[str, int]]:
    if isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _integers(entry, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            yield from _integers(entry, f"{key}.{index}")
    elif isinstance(value, int):
        yield key, value


def _argument(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        if "_target_" in value:
            return build(value, key)
        return {name: _argument(entry, f"{key}.{name}") for name, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_argument(entry, f"{key}.{index}") for index, entry in enumerate(value))
    return value


def taken_out(value: Any, name: str) -> tuple[Any, Any]:
    """Return a node without an entry, and the entry; None if there is no such entry, or if the target accepts it.

    Any value that is not a node is returned unchanged.
    """
    if not is_node(value) or name not in value or _takes(value["_target_"], name):
        return value, None
    return {key: entry for key, entry in value.items() if key != name}, value[name]


def names_argument(node: Mapping[str, Any], name: str) -> bool:
    """Return whether the target of a node has a parameter of this name."""
    try:
        return name in _parameters(locate(node["_target_"], "_target_"))
    except (ConfigError, TypeError, ValueError):  # the check of the node reports the error
        return False


def _takes(target: Any, name: str) -> bool:
    try:
        parameters = _parameters(locate(target, "_target_"))
    except (ConfigError, TypeError, ValueError):  # the check of the node reports the error
        return False
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def build_all(values: Any, key: str) -> dict[str, Any]:
    """Build every entry of a mapping; entries that are None (for example, after `hook.ema=null`) are omitted.

    Raises:
        ConfigError: the value is not a mapping, or an entry cannot be built.
    """
    if values is not None and not isinstance(values, Mapping):
        raise ConfigError(key, type(values).__name__, "a mapping from names to objects or their configs")
    return {name: build(value, f"{key}.{name}") for name, value in (values or {}).items() if value is not None}


def fill_auto(value: Any, key: str, facts: Mapping[str, Any] | None) -> Any:
    """Return a copy of a config in which each value `auto`, at any depth, is replaced by the fact of the same name.

    For regression data, `num_classes` is `out_features`; `loss` is None if the data names no loss. `auto_or_null` is
    None if there is no such fact.

    Args:
        value: a config; an object is returned unchanged.
        key: its place in the config.
        facts: facts about the data (`num_classes`, `vocab_size`, …); None if there is no data.

    Raises:
        ConfigError: the data has no such fact.
    """
    if not isinstance(value, Mapping | DictConfig):
        return value
    plain: Any = OmegaConf.to_container(value, resolve=True) if isinstance(value, DictConfig) else value
    return {str(name): _fill(entry, f"{key}.{name}", str(name), facts) for name, entry in plain.items()}


def _fill(entry: Any, key: str, name: str, facts: Mapping[str, Any] | None) -> Any:
    if isinstance(entry, Mapping):
        return fill_auto(entry, key, facts)
    if type(entry) in (list, tuple):
        return type(entry)(fill_auto(item, f"{key}.{index}", facts) for index, item in enumerate(entry))
    if isinstance(entry, str) and entry == AUTO_OR_NULL:
        found = facts or {}
        return found.get(name, found.get(_INSTEAD.get(name, name)))
    if not (isinstance(entry, str) and entry == AUTO):
        return entry
    if name in _OWN_DEFAULT:
        return (facts or {}).get(name)
    if facts is None:
        raise ConfigError(key, AUTO, "an explicit value, because there is no data from which the value can be inferred")
    if name not in facts and _INSTEAD.get(name) in facts:
        name = _INSTEAD[name]
    if name not in facts:
        known = f"only {', '.join(sorted(facts))}" if facts else "no values"
        hint = "For a model of sequences of tokens, use model=transformer." if "vocab_size" in facts else ""
        raise ConfigError(key, AUTO, f"an explicit value, because this data defines {known}", hint=hint)
    return facts[name]


def check_tree(value: Any, key: str = "") -> None:
    """Check that the target of every node in this value can be imported and accepts the arguments.

    Raises:
        ConfigError: the first node that fails.
    """
    if isinstance(value, Mapping | DictConfig):
        if is_node(value):
            check_node(value, key)
        for name, entry in value.items():
            check_tree(entry, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple | ListConfig) or is_tuple(value):
        for index, entry in enumerate(value):
            check_tree(entry, f"{key}.{index}")


def check_node(node: Mapping[str, Any] | DictConfig, key: str, *, positional: int = 0) -> None:
    """Check that the target of a node can be imported and accepts the arguments, and that these fit its annotations.

    Raises:
        ConfigError: the check fails; the message names the nearest module, attribute or argument.
    """
    target = locate(node["_target_"], f"{key}._target_")
    if "_partial_" in node:
        boolean(f"{key}._partial_", node["_partial_"])
    try:
        parameters = _parameters(target)
    except (TypeError, ValueError):  # some builtins have no signature
        return
    taken = [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in node:
            if name not in taken and name not in _CONTROLS:
                name_of = node["_target_"]
                none = f"no arguments, because {name_of} accepts none"
                accepted = f"an argument of {name_of}: {', '.join(taken)}" if taken else none
                raise ConfigError(key, name, accepted, options=taken)
    check_arguments(target, parameters, _known(node, key), key, shares=key.startswith("schedule"))
    if node.get("_partial_") or node.get("_args_"):
        return
    required = [name for name in taken[positional:] if parameters[name].default is inspect.Parameter.empty]
    for name in required:
        if name not in node:
            passed = "_partial_" in node or name in _PASSED
            hint = "With `_partial_: true`, the run passes this argument." if passed else ""
            raise ConfigError(
                f"{key}.{name}", None, f"a value, because {node['_target_']} requires this argument", hint=hint
            )


def _known(node: Mapping[str, Any] | DictConfig, key: str) -> dict[str, Any]:
    """Return the arguments in a node whose values are known already: no interpolation, nothing missing, no `auto`."""
    plain: Any = OmegaConf.to_container(node) if isinstance(node, DictConfig) else node
    auto = key.partition(".")[0] in _AUTO_GROUPS
    return {
        str(name): value
        for name, value in plain.items()
        if name not in _CONTROLS
        and not (
            isinstance(value, str) and ("${" in value or value == "???" or (auto and value in (AUTO, AUTO_OR_NULL)))
        )
    }


@functools.lru_cache(maxsize=1024)
def _parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(target).parameters


def locate(path: Any, key: str) -> Callable[..., Any]:
    """Import the object that a dotted path names; a class or function is returned unchanged.

    Raises:
        ConfigError: nothing with this name can be imported, or it is not callable.
    """
    if callable(path):  # a config made in Python may hold the class itself
        return path  # type: ignore[no-any-return]
    parts = tuple(str(path).split("."))
    if not isinstance(path, str) or not all(parts):  # importlib does not accept empty parts
        raise ConfigError(key, path, "an importable dotted path")
    module, depth = _import_longest(parts, key)
    if module is None:
        extra = f"Install it with: pip install 'trainyard[{_EXTRAS[parts[0]]}]'" if parts[0] in _EXTRAS else ""
        raise ConfigError(key, path, f"an importable dotted path: there is no module {parts[0]!r}", hint=extra)
    found: Any = module
    for name in parts[depth:]:
        if not hasattr(found, name):
            where = ".".join(parts[:depth])
            raise ConfigError(
                key, path, f"an importable dotted path: {where} has no {name!r}", options=_paths(where, found)
            )
        found = getattr(found, name)
        depth += 1
    if not callable(found):
        raise ConfigError(key, path, "a class or function")
    return found  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=1024)
def _import_longest(parts: tuple[str, ...], key: str) -> tuple[ModuleType | None, int]:
    module, depth = None, 0
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        try:
            module, depth = importlib.import_module(name), count
        except ModuleNotFoundError as error:
            if error.name is not None and not f"{name}.".startswith(f"{error.name}."):
                raise ConfigError(
                    key, ".".join(parts), "an importable dotted path", hint=f"Importing {name} failed: {error}."
                ) from error
            break
    return module, depth


def _paths(where: str, found: Any) -> list[str]:
    return [f"{where}.{name}" for name in dir(found) if not name.startswith("_")]


def _explain(error: Exception, cause: Exception, key: str, node: Any) -> TrainyardError:
    full = full_key(error)  # from the root, or from the node if it has no parent
    where = full if f"{full}.".startswith(f"{key}.") else f"{key}.{full}" if full else key
    if isinstance(cause, ConfigError):
        return cause.under(where)
    plain = OmegaConf.to_container(node) if isinstance(node, DictConfig) else node
    return _refused(where, plain if where == key else {}, cause)
