"""Learning rates, weight decays and other numbers of an optimizer by parameter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from trainyard._torch_internals import own_parameters
from trainyard.checks import boolean, number
from trainyard.errors import ConfigError, some
from trainyard.models.patterns import pattern_list
from trainyard.optim.layers import layer_numbers

MULTS = ("lr_mult", "decay_mult")
_NO_OPTIONS = ("params", "paramwise", "name")
REST = "default"
"""The name of the group of all parameters that no rule matches; it comes first."""

_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    *(nn.GroupNorm, nn.LayerNorm, nn.RMSNorm),
)
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORM_NAME = re.compile(r"Norm([123]d)?$")


class Paramwise:
    """Factors on the optimizer's `lr` and `weight_decay`, by the kind or the name of a parameter.

    The rules are the same as in MMEngine's `DefaultOptimWrapperConstructor`. If the name of a parameter matches a
    pattern of `custom_keys`, only that entry and `layer_decay` apply. For all other parameters, `bias_lr_mult` applies
    to the biases of layers that do not normalize. Of the factors for the weight decay, `norm_decay_mult`,
    `bias_decay_mult`, `dwconv_decay_mult` and `flat_decay_mult`, the first given factor that matches the parameter
    applies. None: no rule.

    Parameters with the same rules form one group, so that an optimizer updates them together. The groups depend on the
    set of given rules, not on their values.

    Args:
        custom_keys: by pattern, a mapping with `lr_mult`, `decay_mult` (default 1) and any argument of the optimizer
            (`lr`, `momentum`, …). An argument replaces the value of the optimizer and its product with a factor. A
            pattern is a part of a parameter's full name (`backbone.`). A pattern with one of `*?[` is a glob for the
            full name (`net.*.weight`). If several patterns match, the longest pattern applies; if the lengths are
            equal, the alphabetically first pattern applies.
        bias_lr_mult: the factor for the learning rate of biases (parameters named `bias` in their module).
        bias_decay_mult: the factor for the weight decay of biases, including biases of layers that normalize.
        norm_decay_mult: the factor for the weight decay of layers that normalize: torch's classes, and classes whose
            name ends in `Norm`, `Norm1d`, `Norm2d` or `Norm3d`.
        dwconv_decay_mult: the factor for the weight decay of depthwise convolutions (one group for each input channel).
        flat_decay_mult: the factor for the weight decay of one-dimensional parameters.
        layer_decay: the factor for the learning rate of each layer, raised to the power of the number of later layers
            (Clark et al., ELECTRA, 2020; Bao et al., BEiT, 2022). The head keeps the full learning rate, and embeddings
            have the smallest learning rate. The factor is multiplied with the results of the other rules, except an
            `lr` of `custom_keys`.
        layers: globs for the modules of the layers, in order; None: see `layer_numbers`.
        bypass_duplicate: True: the first name of a parameter with several names (tied weights) determines its rules.
            False: different rules for its names are an error.

    Raises:
        ConfigError: a factor is not a number of at least 0.
    """

    def __init__(
        self,
        custom_keys: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        bias_lr_mult: float | None = None,
        bias_decay_mult: float | None = None,
        norm_decay_mult: float | None = None,
        dwconv_decay_mult: float | None = None,
        flat_decay_mult: float | None = None,
        layer_decay: float | None = None,
        layers: Sequence[str] | None = None,
        bypass_duplicate: bool = False,
    ) -> None:
        self._keys = _checked_keys(custom_keys)
        self._lr = {"bias": _factor("bias_lr_mult", bias_lr_mult)}
        self._decay = {
            "norm": _factor("norm_decay_mult", norm_decay_mult),
            "bias": _factor("bias_decay_mult", bias_decay_mult),
            "dwconv": _factor("dwconv_decay_mult", dwconv_decay_mult),
            "flat": _factor("flat_decay_mult", flat_decay_mult),
        }
        self._layer_decay = (
            None if layer_decay is None else number("layer_decay", layer_decay, above=0, at_most=1, other="null")
        )
        self._layers = None if layers is None else pattern_list("layers", layers)
        if layers is not None and not layers:
            raise ConfigError("layers", layers, "globs that match the layers, or null for automatic layers")
        if layer_decay is None and layers is not None:
            raise ConfigError("layers", list(layers), "null, because layer_decay is null")
        self._bypass_duplicate = boolean("bypass_duplicate", bypass_duplicate)

    def groups(self, model: nn.Module, params: Iterable[Tensor], numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the parameter groups of an optimizer, each with a `name`.

        Args:
            model: the model, which defines the names and layers of the parameters.
            params: the optimized parameters, each in `model`.
            numbers: the optimizer's arguments: `lr` and, if it has one, `weight_decay`.

        Returns:
            Dicts with `name`, `params`, `lr`, `weight_decay`, …: the numbers that a rule changes.

        Raises:
            ConfigError: a pattern matches no name, the optimizer has no `weight_decay` for a factor, or the rules for
                two names of a parameter differ.
        """
        names = _names(model)
        params = list({id(param): param for param in params}.values())
        if any(id(param) not in names for param in params):
            raise ValueError("paramwise rules can only be used for parameters of the model")
        known = [name for places in names.values() for name, _ in places]
        self._check(known, numbers)
        found: dict[tuple[str | None, ...], list[Tensor]] = {}
        if self._layer_decay is None:
            found[None, None, None] = []
            for param in params:
                found.setdefault(self._rules_of(param, names[id(param)]), []).append(param)
            return [self._group(rules, members, numbers) for rules, members in found.items() if members]
        depths, last = layer_numbers(model, self._layers)
        for param in params:
            name = next(name for name, _ in names[id(param)] if name in depths)
            found.setdefault((*self._rules_of(param, names[id(param)]), str(depths[name])), []).append(param)
        made = []
        for (*rules, depth), members in found.items():
            group = self._group(tuple(rules), members, numbers)
            if "lr" not in self.options(rules[0] or ""):
                group["lr"] = group.get("lr", numbers["lr"]) * self._layer_decay ** (last - int(str(depth)))
            made.append(group | {"name": f"layer_{depth}" + ("" if group["name"] == REST else f"+{group['name']}")})
        return made

    def _check(self, known: Sequence[str], numbers: Mapping[str, Any]) -> None:
        for pattern, factors in self._keys.items():
            if not any(fits(pattern, name) for name in known):
                accepted = "a part of a parameter's name, or a glob that matches a parameter's name"
                raise ConfigError(
                    "custom_keys", pattern, accepted, options=_parts(known), hint=f"The names are {some(known, 4)}."
                )
            for mult, field in zip(MULTS, ("lr", "weight_decay"), strict=True):
                if mult in factors and field not in numbers:
                    raise _without(f"custom_keys.{pattern}.{mult}", factors[mult], field)
            options = (*MULTS, *(name for name in numbers if name not in _NO_OPTIONS))
            for name in factors:
                if name not in options:
                    accepted = "lr_mult, decay_mult or an argument of the optimizer"
                    raise ConfigError(f"custom_keys.{pattern}", name, accepted, options=options)
        if self._layer_decay is not None and "lr" not in numbers:
            raise _without("layer_decay", self._layer_decay, "lr")
        for kind, factor in self._lr.items():
            if factor is not None and "lr" not in numbers:
                raise _without(f"{kind}_lr_mult", factor, "lr")
        for kind, factor in self._decay.items():
            if factor is not None and "weight_decay" not in numbers:
                raise _without(f"{kind}_decay_mult", factor, "weight_decay")

    def _rules_of(self, param: Tensor, places: Sequence[tuple[str, nn.Module]]) -> tuple[str | None, ...]:
        """Return the pattern that a parameter follows, or the rules of its learning rate and its weight decay."""
        found = {name: self._rules_at(param, name, module) for name, module in places}
        if len(set(found.values())) > 1 and not self._bypass_duplicate:
            raise ConfigError(
                "bypass_duplicate",
                False,
                f"true, or the same rule for all names of this tied parameter: {' and '.join(found)}",
            )
        return next(iter(found.values()))

    def _rules_at(self, param: Tensor, name: str, module: nn.Module) -> tuple[str | None, ...]:
        pattern = next((pattern for pattern in self._keys if fits(pattern, name)), None)
        if pattern is not None:
            return pattern, None, None
        norm = isinstance(module, _NORMS) or _NORM_NAME.search(type(module).__name__) is not None
        bias = name.rpartition(".")[2] == "bias"
        kinds = {
            "norm": norm,
            "bias": bias,
            "dwconv": isinstance(module, _CONVS) and module.in_channels == module.groups,
            "flat": param.ndim == 1,
        }
        decay = next((kind for kind, factor in self._decay.items() if factor is not None and kinds[kind]), None)
        return None, "bias" if bias and not norm and self._lr["bias"] is not None else None, decay

    def _group(self, rules: tuple[str | None, ...], params: list[Tensor], numbers: Mapping[str, Any]) -> dict[str, Any]:
        pattern, lr, decay = rules
        factors: Mapping[str, Any]
        if pattern is not None:
            factors = {mult: self._keys[pattern].get(mult) for mult in MULTS}
        else:
            factors = {"lr_mult": self._lr[lr] if lr else None, "decay_mult": self._decay[decay] if decay else None}
        name = "+".join(dict.fromkeys(filter(None, rules))) or REST
        if decay == "bias" and lr is None and self._lr["bias"] is not None:
            name = "norm_bias"  # `bias_lr_mult` is not for it
        group: dict[str, Any] = {"params": params, "name": name}
        for mult, field in zip(MULTS, ("lr", "weight_decay"), strict=True):
            factor, base = factors[mult], numbers.get(field)
            if factor is not None and isinstance(base, int | float | Tensor):  # else its constructor will raise
                group[field] = base * factor
        return group | (self.options(pattern) if pattern is not None else {})

    @property
    def patterns(self) -> list[str]:
        """The patterns of `custom_keys`."""
        return list(self._keys)

    def options(self, pattern: str) -> dict[str, Any]:
        """Return the arguments of the optimizer that an entry of `custom_keys` replaces."""
        return {name: value for name, value in self._keys.get(pattern, {}).items() if name not in MULTS}


def fits(pattern: str, name: str) -> bool:
    """Return whether a name contains a pattern, or matches it if that has one of `*?[`.

    The name of a parameter of the model itself begins with a dot, as in MMEngine.
    """
    if any(sign in pattern for sign in "*?["):
        return fnmatchcase(name, pattern)
    return pattern in (name if "." in name else f".{name}")


def _names(model: nn.Module) -> dict[int, list[tuple[str, nn.Module]]]:
    """Return, for each parameter by its id, its names and the modules that hold it there."""
    found: dict[int, list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for leaf, param in own_parameters(module).items():
            if param is not None:
                found.setdefault(id(param), []).append((f"{path}.{leaf}" if path else leaf, module))
    return found


def _checked_keys(custom_keys: Any) -> dict[str, dict[str, Any]]:
    """Return the patterns in the order in which they are tried."""
    if not isinstance(custom_keys, Mapping | None):
        raise ConfigError(
            "custom_keys",
            custom_keys,
            "a mapping from patterns to mappings with lr_mult, decay_mult or arguments of the optimizer",
        )
    checked = {}
    for pattern, factors in sorted((custom_keys or {}).items(), key=lambda item: (-len(str(item[0])), str(item[0]))):
        if not isinstance(factors, Mapping):
            raise ConfigError(
                f"custom_keys.{pattern}", factors, "a mapping with lr_mult, decay_mult or arguments of the optimizer"
            )
        for mult in MULTS:
            _factor(f"custom_keys.{pattern}.{mult}", factors.get(mult))
        checked[str(pattern)] = {
            name: value for name, value in factors.items() if value is not None or name not in MULTS
        }
    return checked


def _factor(key: str, value: Any) -> float | None:
    return None if value is None else number(key, value, at_least=0, other="null")


def _without(key: str, factor: float | None, number: str) -> ConfigError:
    return ConfigError(key, factor, f"null, because this optimizer has no {number}")


def _parts(names: Iterable[str]) -> list[str]:
    """Return the names, those of the modules above them, and every word in them."""
    found: dict[str, None] = {}
    for name in names:
        words = name.split(".")
        found |= dict.fromkeys(".".join(words[:count]) for count in range(1, len(words) + 1))
        found |= dict.fromkeys(words)
    return list(found)
