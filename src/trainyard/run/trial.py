"""Trial of a sweep's jobs: their parts are built, without training, so that a wrong value is found before a job starts.

Each distinct part is built once: the data, which has the values for `auto`; the model, on the meta device and, if it is
small, on the CPU; metrics, loops, hooks, the optimizer and the schedule. A batch is passed through the model and its
metrics (on the meta device for a large model), and the metrics that the config names are compared with the existing
ones.

A failure that may only occur in this trial (a model that the meta device does not support, a metric that rejects
artificial outputs) is checked as in a single run, and only that result counts.
"""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import Any

import torch
from hydra.core.utils import env_override
from torch import nn
from torch.overrides import TorchFunctionMode

from trainyard.config.build import build
from trainyard.config.compiling import check_capture
from trainyard.config.distinct import DistinctConfigs, JobSize, TrialResult
from trainyard.config.schema import check_nodes
from trainyard.data.lengths import first_batch
from trainyard.data.transfer import apply, to_device
from trainyard.distributed import Strategy, as_strategy
from trainyard.errors import ConfigError, TrainyardError, UnknownMetricError
from trainyard.metrics import results_of
from trainyard.models import call
from trainyard.run import ranks
from trainyard.run.job_size import estimate
from trainyard.run.rungs import check_rungs
from trainyard.runner import Runner, checkpoint, weights
from trainyard.runner.arguments import arguments
from trainyard.runner.batch_checks import (
    check_last_batch,
    check_resident_targets,
    check_test_step,
    check_training_targets,
)
from trainyard.runner.env import find_device
from trainyard.runner.member import Member, member_arguments
from trainyard.runner.misfit import explained
from trainyard.runner.model_losses import loss_step
from trainyard.runner.parts import Parts
from trainyard.runner.sanity_check import watched
from trainyard.step.precision import make_precision
from trainyard.track.sweep_position import PARAMETERS, Rungs

log = logging.getLogger(__name__)

LIMIT = 30.0
"""Seconds after which the remaining jobs are not tried."""
SMALL = 2**22
"""Maximum number of parameters of a model that is also built on the CPU, so that a batch passes through it as in a
single run."""
ENV = "hydra.job.env_set"
"""Key of the environment variables of a job among its values."""
METRICS = "hydra.sweeper.objective"
"""Key of the metrics that a job must return, each with the key of the config that names it."""
RUNGS = "hydra.sweeper.rungs"
"""Key of the rungs at which a job reports to its sweep."""

META, CPU = torch.device("meta"), torch.device("cpu")
Values = dict[str, Any]
Key = tuple[Any, ...]
_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(Runner.__init__).parameters.items()
    if name not in ("self", "model")
}
_BARE: Values = {"work_dir": None, "tracker": None, "resume": False, "load_from": None, "env": None, "compile": False}
_MODEL = ("data", "model", "init", "freeze", "activation_checkpointing")


class _DoubtError(Exception):
    """A possible error that only a single run can confirm."""


def try_jobs(configs: DistinctConfigs) -> TrialResult:
    """Try these jobs, for at most `LIMIT` seconds.

    Args:
        configs: the configs from `trainyard.config.schema.check_settings`.
    """
    began = perf_counter()
    found = TrialResult([None] * len(configs.jobs), sizes=[None] * len(configs.jobs))
    known = _Known()
    order = sorted(range(len(configs.jobs)), key=lambda number: [configs.jobs[number].get(key, -1) for key in _MODEL])
    for done, number in enumerate(order):
        if perf_counter() - began > LIMIT:
            found.left = len(order) - done
            break
        values = configs.values(number)
        metrics, rungs = values.pop(METRICS, {}), values.pop(RUNGS, None)
        with env_override(values.pop(ENV, {})):
            found.errors[number], found.sizes[number] = _tried(values, configs.jobs[number], known, metrics, rungs)
    return found


@dataclass
class _Known:
    """Results of steps, by the values on which they depend.

    Attributes:
        errors: why a step fails; None if it does not.
        built: the parts that a step has built.
    """

    errors: dict[Key, str | None] = field(default_factory=dict)
    built: dict[Key, Values] = field(default_factory=dict)

    def keep(self, key: Key, parts: _Parts) -> None:
        """Keep the parts that a step has built; of models, only the last one, which a step may have rebuilt."""
        if key[0] == "_model":
            self.built = {other: built for other, built in self.built.items() if other[0] != "_model"}
        self.built[key] = {}
        for other, built in self.built.items():
            if other == key or other[0] == "_model":
                built |= {name: vars(parts)[name] for name in _BUILT.get(other[0], ()) if name in vars(parts)}

    def give(self, key: Key, parts: _Parts) -> None:
        """Give a job the kept parts."""
        vars(parts).update(self.built.get(key, {}))


_BUILT = {
    "_data": ("data", "loaders"),
    "_model": ("_model", "model_config", "meta"),
    "_metrics": ("metrics",),
    "_loops": ("train_loop", "val_loop", "test_loop"),
    "_hooks": ("dispatch",),
    "_schedule": ("schedule",),
    "_validation": ("names",),
}
"""Attributes of parts that a step builds and jobs share."""


class _WithoutNumbers(TorchFunctionMode):
    """Mode that skips operations that draw initial numbers on the meta device.

    For normal numbers, torch would import its compiler there, which takes a second.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.normal_ or getattr(func, "__module__", "") == nn.init.__name__:
            tensor = args[0] if args else kwargs.get("tensor")
            if isinstance(tensor, torch.Tensor) and tensor.device == META:
                return tensor
        return func(*args, **kwargs)


class _Parts(Parts):
    """Parts of one job, on the CPU; its model is on the meta device as long as that works."""

    def __init__(self, values: Values) -> None:
        self.given = _DEFAULTS | arguments(values)
        settings = self.given | _BARE
        super().__init__(settings, CPU, Strategy(), [Member(**member_arguments(settings))])
        self.mode = values["mode"]
        self.meta = True
        self.names: list[str] | None = None  # as long as the results of the validation are not known

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The evaluated sets: those of the validation in a training."""
        return self.sets("val" if self.mode == "train" else self.mode)

    @property
    def model(self) -> nn.Module:
        if "_model" not in vars(self):
            try:
                self._model = self._built(META)
            except Exception as error:
                self.use_cpu(repr(error))
            else:
                if sum(parameter.numel() for parameter in self._model.parameters()) <= SMALL:
                    self.use_cpu("the model is small")
        return self._model

    def use_cpu(self, reason: str) -> None:
        """Build the model on the CPU."""
        log.debug("The model is built on the CPU: %s", reason)
        self.meta = False
        self._model = self._built(CPU)

    def _built(self, device: torch.device) -> nn.Module:
        self.device = device
        try:
            with device, _WithoutNumbers():
                model: nn.Module = vars(Parts)["model"].func(self)
        finally:
            self.device = CPU
        return model


Step = Callable[[_Parts], None]
"""Builds some parts, or checks them."""


def _steps(values: Values) -> Iterator[tuple[Step, Sequence[str], str]]:
    """Yield the steps of a trial in order, each with the keys and other values on which it depends."""
    trains = values["mode"] == "train"
    yield _process, ("device", "precision", "capture", "direction", "tracker", "env", "strategy"), ""
    yield _load_from, ("load_from",), ""
    yield _data, ("data", "mode"), ""
    yield _model, _MODEL, ""
    yield _metrics, (*_MODEL, "metric"), ""  # without one, the model may be its own
    loops = ("loop", "val_loop", "test_loop")
    yield _loops, (*loops, "mode"), ""
    yield _hooks, ("hook", *loops), ""
    if trains:
        optim = values.get("optim")
        alone = isinstance(optim, Mapping) and "_target_" in optim and not optim.get("paramwise")
        yield _optimizer, ("optim", *(() if alone else _MODEL)), ""
        yield _schedule, ("schedule", "loop", "data", "direction"), _shape(optim)
    yield _validation, (*_MODEL, "metric", "mode"), ""
    if trains:
        yield _test, _MODEL, ""
        clips = [values.get(key) is not None for key in ("clip_grad_norm", "clip_grad_value")]
        yield _step, (*_MODEL, "metric", "device", "precision"), f"{clips} {_shape(optim)}"
        yield _hook_checks, (*_MODEL, "hook", *loops), ""
        yield _names, (*_MODEL, "metric", "hook", "schedule", *loops, "objective"), _shape(optim)


def _tried(
    values: Values,
    job: Mapping[str, int],
    known: _Known,
    metrics: Mapping[str, str] = MappingProxyType({}),
    rungs: Rungs | None = None,
) -> tuple[str | None, JobSize | None]:
    """Return the error of a job (None if there is none), and the size of its results, if known."""
    try:
        check_nodes(values)
        if "launcher" in (values.get("strategy") or {}):  # checked where all devices are in sight
            values["strategy"] = None
        ranks.spread(values)
    except TrainyardError as error:
        return str(error), None
    try:
        parts = _Parts(values)
    except TrainyardError as error:
        return str(error), None
    for step, keys, further in _steps(values):
        key = step.__name__, further, *(job.get(name) for name in (ENV, *keys))
        if key not in known.errors:
            known.errors[key] = _attempt(step, parts, values)
            known.keep(key, parts)
        elif known.errors[key] is None:
            known.give(key, parts)
        if known.errors[key] is not None:
            return known.errors[key], None
    if metrics:
        wrong, names = _without([*metrics], parts)
        if wrong is not None:
            further = "" if parts.names is not None else " and the results of the validation"
            accepted = f"These jobs compute {', '.join(names)}{further}"
            return str(UnknownMetricError(metrics[wrong], wrong, accepted, options=names)), None
    if rungs is not None and values["mode"] == "train" and not values.get("quick"):  # quick=true changes the intervals
        try:
            check_rungs(rungs, parts)
        except ConfigError as error:
            return str(error), None
    return None, estimate(parts, parts.names or [], parts.given["tracker"]) if values["mode"] == "train" else None


def _attempt(step: Step, parts: _Parts, values: Values) -> str | None:
    try:
        step(parts)
    except TrainyardError as error:
        return str(error)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        log.debug("The job is checked as a single run: %r", error)
        return _error_of_single_run(values)
    return None


def _error_of_single_run(values: Values) -> str | None:
    """Prepare a single run, which ends with the validation of one batch; return the error."""
    try:
        Runner.from_cfg(values | _BARE).prepare(values["mode"])
    except TrainyardError as error:
        return str(error)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        said = str(error).strip().partition("\n")[0]
        return f"{type(error).__name__}: {said} ({Path(frame.filename).name}:{frame.lineno})"
    return None


# -- steps -------------------------------------------------------------------------------------------------------------


def _process(parts: _Parts) -> None:
    given = parts.settings
    device = find_device(given["device"])
    check_capture(given["capture"], device.type)
    make_precision(given["precision"], CPU)
    for name in ("tracker", "env"):
        build(parts.given[name], name)
    as_strategy(build(given["strategy"], "strategy"))


def _load_from(parts: _Parts) -> None:
    given = weights.load_from(parts.given["load_from"])
    if given is not None and not Path(given.path).exists():
        checkpoint.given(weights.KEY, given.path, weights.read)


def _data(parts: _Parts) -> None:
    parts.loader(parts.mode)
    for name in (*parts.evaluated, *parts.sets("test")):
        parts.loader(name)


def _model(parts: _Parts) -> None:
    _ = parts.model


def _metrics(parts: _Parts) -> None:
    _ = parts.metrics


def _loops(parts: _Parts) -> None:
    if parts.mode == "train":
        _ = parts.train_loop
    _ = parts.val_loop, parts.test_loop


def _hooks(parts: _Parts) -> None:
    _ = parts.dispatch


def _hook_checks(parts: _Parts) -> None:
    for name, hook in parts.dispatch.hooks.items():
        try:
            getattr(hook, "sanity_check", lambda _: None)(parts)
        except ConfigError as error:
            raise error.under(f"hook.{name}") from None


def _optimizer(parts: _Parts) -> None:
    try:
        _ = parts.optimizer
    except Exception as error:
        if not parts.meta:
            raise
        parts.use_cpu(repr(error))
        _ = parts.optimizer


def _schedule(parts: _Parts) -> None:
    _ = parts.schedule


def _validation(parts: _Parts) -> None:
    """Pass a batch of each set through the model and the metrics, which receive zeros if there are no numbers.

    Raises:
        _DoubtError: this fails. Only real outputs show whether a value is invalid.
    """
    try:
        parts.names = [name for split in parts.evaluated for name in _results(parts, split)]
    except Exception as error:
        raise _DoubtError from error


def _results(parts: _Parts, split: str) -> list[str]:
    model = parts.model.eval()
    predict = getattr(model, f"{split.partition('/')[0]}_step", partial(call, model, mode="predict"))
    if parts.validates_by_loss:
        predict = loss_step(model)
    batch = first_batch(parts.loader(split), split)
    device = META if parts.meta else CPU
    with torch.no_grad(), device:
        outputs = predict(to_device(batch, device))
    check_resident_targets(parts, outputs)
    if parts.meta:
        outputs = apply(lambda leaf: torch.zeros_like(leaf, device=CPU), outputs)
    for metric in parts.metrics.values():
        metric.reset()
        metric.process(batch, outputs)
    return [f"{split}/{name}" for name, value in results_of(parts.metrics).items() if value.numel() == 1]


def _test(parts: _Parts) -> None:
    check_test_step(parts)


def _step(parts: _Parts) -> None:
    """Perform one step with a batch of the training data, if the model is small and trains on the CPU."""
    device = META if parts.meta else CPU
    check_last_batch(parts, device)
    check_training_targets(parts, device)
    if parts.meta or find_device(parts.settings["device"]) != CPU or hasattr(parts.model, "train_steps"):
        return
    parts.model.train()
    with explained(parts):
        parts.step(first_batch(parts.loader("train"), "train"), 0, 1)


_EVALUATED = ("val", "test")
"""Groups of metrics that an evaluation records."""
_LATER = ("train", "train_eval", "val_loss", "val_raw", "best", "norm", "system", "lr_finder")
"""Groups of metrics that a training records, and whose names a trial does not know."""


def _without(metrics: Sequence[str], parts: _Parts) -> tuple[str | None, list[str]]:
    """Return the first of these names under which no job returns a number (None if there is none), and known names.

    The user's own hooks and loops may record numbers of any name.
    """
    names = list(parts.names or [])
    if parts.names is None:
        metrics = [name for name in metrics if name.partition("/")[0] not in _EVALUATED]
    if parts.mode == "train" and any(name.startswith("test/") for name in metrics):
        try:
            names += [name for split in parts.sets("test") for name in _results(parts, split)]
        except Exception as error:
            log.debug("The names of the test results are not known: %r", error)
            metrics = [name for name in metrics if not name.startswith("test/")]
    further = [getattr(hook, "metric_names", lambda _: ())(names) for hook in parts.dispatch.hooks.values()]
    known = list(dict.fromkeys([*names, *(name for more in further for name in more), PARAMETERS]))
    loops = (parts.train_loop,) if parts.mode == "train" else ()
    used = (*parts.dispatch.hooks.values(), *loops, parts.val_loop, parts.test_loop)
    is_known_code = all(type(each).__module__.startswith("trainyard.") for each in used)
    for name in metrics:
        group = name.partition("/")[0]
        if name not in known and group not in _LATER and (is_known_code or group == "val"):
            return name, known
    return None, known


def _names(parts: _Parts) -> None:
    """Compare the metrics that the config names with the existing ones.

    Raises:
        _DoubtError: a metric does not exist.
    """
    validated = parts.names or []
    further = [getattr(hook, "metric_names", lambda _: ())(validated) for hook in parts.dispatch.hooks.values()]
    known = [*validated, *(name for more in further for name in more)]
    for key, name in watched(parts):
        if key == "objective":  # is one of the validation's, if there is one
            is_there = name in validated or not validated
        else:
            is_there = name in known or name.startswith("train/")
        if not is_there:
            raise _DoubtError(name)


def _shape(value: Any) -> str:
    """Return a value as text, with a placeholder for each number."""
    if isinstance(value, Mapping):
        return repr({key: _shape(entry) for key, entry in value.items()})
    if isinstance(value, list | tuple):
        return repr([_shape(entry) for entry in value])
    return "#" if isinstance(value, int | float) and not isinstance(value, bool) else repr(value)
