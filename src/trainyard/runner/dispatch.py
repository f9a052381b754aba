"""Dispatch of hooks: stages, priorities, and the order of calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any, Protocol

from trainyard.checks import is_integer
from trainyard.config.build import build, is_node, locate, taken_out
from trainyard.errors import ConfigError

STAGES = (
    "before_run",
    "after_run",
    "before_train",
    "after_train",
    "before_train_epoch",
    "after_train_epoch",
    "before_train_iter",
    "after_train_iter",
    "before_val",
    "after_val",
    "before_val_epoch",
    "after_val_epoch",
    "before_val_iter",
    "after_val_iter",
    "before_val_loss",
    "after_val_loss",
    "before_val_loss_iter",
    "after_val_loss_iter",
    "before_test",
    "after_test",
    "before_test_epoch",
    "after_test_epoch",
    "before_test_iter",
    "after_test_iter",
    "after_idle_iter",
    "after_load_checkpoint",
    "before_save_checkpoint",
    "before_leave",
    "after_join",
)

OF_MEMBER = ("before_save_checkpoint", "after_load_checkpoint")
"""Stages that are called for each member; a hook's method may have a parameter `member` besides `checkpoint`."""

PRIORITIES = {
    "HIGHEST": 0,
    "VERY_HIGH": 10,
    "HIGH": 30,
    "ABOVE_NORMAL": 40,
    "NORMAL": 50,
    "BELOW_NORMAL": 60,
    "LOW": 70,
    "VERY_LOW": 90,
    "LOWEST": 100,
}


class HookLike(Protocol):
    """What the Runner requires of a hook; `trainyard.hooks.Hook` is the base class that provides it."""

    priority: int | str

    def state_dict(self, *member: int) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], *member: int) -> None: ...


def priority(value: int | str, key: str = "priority") -> int:
    """Return the number of a priority given by name or number; low numbers are called first.

    Args:
        value: the name or the number.
        key: the setting or the argument that gives it, for errors.

    Raises:
        ConfigError: an unknown name, or a number outside 0 to 100.
    """
    if isinstance(value, str) and value.upper() in PRIORITIES:
        return PRIORITIES[value.upper()]
    if is_integer(value, at_least=0, at_most=100):
        return value
    accepted = f"an integer from 0 to 100, or one of {', '.join(PRIORITIES)}"
    raise ConfigError(key, value, accepted, options=PRIORITIES)


def build_hooks(values: Any) -> dict[str, Any]:
    """Build every hook of a mapping; entries that are None are omitted.

    Raises:
        ConfigError: the value is not a mapping, or an entry cannot be built.
    """
    if values is not None and not isinstance(values, Mapping):
        raise ConfigError("hook", type(values).__name__, "a mapping from names to objects or their configs")
    return {name: build_hook(value, name) for name, value in (values or {}).items() if value is not None}


def build_hook(value: Any, name: str) -> Any:
    """Return the hook that a config describes; a `priority` in the config replaces the hook's own."""
    node, given = taken_out(value, "priority")
    hook = build(node, f"hook.{name}")
    if given is not None:
        hook.priority = given
    return hook


def stages_of(loops: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the stages of loops, or of the classes in their configs, except the standard ones.

    Raises:
        ConfigError: a name does not begin with `before_` or `after_`, the prefixes that mark a hook's methods.
    """
    found: list[str] = []
    for key, loop in loops.items():
        own = locate(loop["_target_"], f"{key}._target_") if is_node(loop) else loop
        stages = getattr(own, "stages", ())
        accepted = "a tuple of names that start with before_ or after_"
        if isinstance(stages, str):  # a tuple without its comma
            raise ConfigError(f"{key}.stages", stages, accepted)
        for stage in stages:
            if not isinstance(stage, str) or not stage.startswith(("before_", "after_")):
                raise ConfigError(f"{key}.stages", stage, accepted)
            if stage not in (*STAGES, *found):
                found.append(stage)
    return tuple(found)


def _method(hook: HookLike, stage: str) -> Callable[..., None]:
    """Return the hook's method for a stage; the argument `member` is dropped if the method has no such parameter."""
    method: Callable[..., None] = getattr(hook, stage)
    if stage not in OF_MEMBER or "member" in signature(method).parameters:
        return method
    return lambda runner, checkpoint, member: method(runner, checkpoint=checkpoint)


class Dispatch:
    """One call list per stage, created once: a hook has no cost at stages that it does not define.

    Hooks of equal priority are called in the order in which they were given.

    Args:
        hooks: the hooks by name.
        own: stages of the run's loops in addition to the standard ones.

    Raises:
        ConfigError: a hook has a method for a stage that does not exist, has an unknown priority, or is not a hook.
    """

    def __init__(self, hooks: Mapping[str, HookLike], own: Sequence[str] = ()) -> None:
        self.hooks = dict(hooks)
        self.stages = (*STAGES, *own)
        for name in self.hooks:
            self._check_kind(name)
        order = sorted(self.hooks, key=lambda name: self._priority(name))
        for name in order:
            self._check_stages(name)
        self._calls: dict[str, list[Callable[..., None]]] = {
            stage: [_method(self.hooks[name], stage) for name in order if hasattr(self.hooks[name], stage)]
            for stage in self.stages
        }

    @property
    def applies_schedule(self) -> bool:
        """Whether a hook writes the values of the schedule to the optimizer, as `param_schedule` does."""
        named = "param_schedule" in self.hooks
        return named or any(getattr(hook, "applies_schedule", False) for hook in self.hooks.values())

    def stage(self, name: str) -> list[Callable[..., None]]:
        """Return the bound methods to call at a stage, first to last.

        Raises:
            ConfigError: there is no such stage.
        """
        if name not in self._calls:
            accepted = "a stage; a custom loop names additional stages in its class attribute `stages`"
            raise ConfigError("stages", name, accepted, options=self.stages)
        return self._calls[name]

    def call(self, stage: str, *args: Any, **kwargs: Any) -> None:
        """Call every hook that defines the stage."""
        for method in self.stage(stage):
            method(*args, **kwargs)

    def recorder(self, metric: str, names: Sequence[str]) -> str | None:
        """Return the hook that states that it records a metric, besides the metrics with these names."""
        for name, hook in self.hooks.items():
            if metric in getattr(hook, "metric_names", lambda names: ())(names):
                return name
        return None

    def order_hint(self, recorder: str, reader: str) -> str:
        """Return what a message says if a hook reads a metric that another hook has not recorded yet."""
        order = sorted(self.hooks, key=self._priority)
        if reader in order and order.index(recorder) > order.index(reader) and (own := self._priority(reader)):
            return (
                f"hook.{recorder} records this metric, but is called after hook.{reader}. Set a priority below {own}, "
                f"such as +hook.{recorder}.priority={own - 1}."
            )
        return f"hook.{recorder} records this metric, but has not recorded it yet."

    def state_dict(self, *member: int) -> dict[str, dict[str, Any]]:
        """Return the hooks' states; for a stack, those of member number `member`."""
        return {name: state for name, hook in self.hooks.items() if (state := hook.state_dict(*member))}

    def load_state_dict(self, states: Mapping[str, dict[str, Any]], *member: int) -> None:
        """Restore the state of every hook; a hook that the checkpoint does not contain keeps its initial state."""
        for name, hook in self.hooks.items():
            if name in states:
                hook.load_state_dict(states[name], *member)

    def _priority(self, name: str) -> int:
        try:
            return priority(self.hooks[name].priority)
        except ConfigError as error:
            raise error.under(f"hook.{name}") from None

    def _check_kind(self, name: str) -> None:
        hook = self.hooks[name]
        needed = ("priority", "state_dict", "load_state_dict")
        if isinstance(hook, type) or not all(hasattr(hook, member) for member in needed):
            hint = (
                f"If the group `hook` has the option {name}, select it with hook={name}, or, if several are selected, "
                f"with hook=[…,{name}]. To remove these values, use ~hook.{name}."
            )
            accepted = "a trainyard.hooks.Hook, its config with `_target_`, or null for no hook"
            raise ConfigError(f"hook.{name}", hook, accepted, hint=hint if isinstance(hook, Mapping) else "")

    def _check_stages(self, name: str) -> None:
        for method in dir(type(self.hooks[name])):
            if method.startswith(("before_", "after_")) and method not in self.stages:
                kind = type(self.hooks[name]).__name__
                raise ConfigError(
                    f"hook.{name}",
                    method,
                    f"the name of a stage for each method of {kind} that starts with before_ or after_ (docs/hooks.md)",
                    options=self.stages,
                )
