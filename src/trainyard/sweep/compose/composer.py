"""Fast composition of the configs of a sweep's jobs, equal to Hydra's.

Hydra composes each job from scratch: it reads the files, builds the defaults list, merges. All of this depends only on
the group choices. Therefore, jobs with the same choices share one composition by Hydra; each job uses a copy, and
Hydra's own function applies the other values. If the result is not certain to be the same, a job is composed by Hydra.
"""

from __future__ import annotations

import copy
import gc
import logging
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property, partial
from types import SimpleNamespace
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from trainyard.sweep.compose import recipe
from trainyard.sweep.compose.recipe import Recipe, Shared

log = logging.getLogger(__name__)

try:
    internals: Any = recipe.internals()
    """Private functions of Hydra; None if this version of Hydra has others."""
except ImportError as missing:
    log.warning(
        "Hydra composes each job of the sweep separately, which is slower, because a private function of Hydra is "
        "missing: %s.",
        missing,
    )
    internals = None

FAST_PATHS = "env.fast_paths"
"""Name of the setting that disables the use of Hydra's and torch's private functions; Hydra then composes every job."""


class _UncertainError(Exception):
    """The fast composition is not certain to give Hydra's result."""


@dataclass(frozen=True)
class _Parts:
    """Overrides of a job: those that it shares with others, its own, and all; and the composition that it shares."""

    common: list[Override]
    own: list[Override]
    all: list[Override]
    shared: Shared

    @property
    def of_task(self) -> list[Override]:
        return [override for override in self.all if not override.is_hydra_override()]


_Form = tuple[tuple[str, ...], tuple[tuple[str, type], ...]]  # shared overrides; keys and types of the others


class Composer:
    """Composes the jobs of one sweep.

    Files, environment variables and the working directory are read when a combination of choices first occurs.

    Args:
        config_loader: the loader of Hydra's context.
        master: the config of the entire sweep, as in a launcher.

    Example:
        In a launcher, after `setup`::

            composer = Composer(self.hydra_context.config_loader, self.config)
            configs = composer.compose_all(job_overrides)
    """

    def __init__(self, config_loader: ConfigLoader, master: DictConfig) -> None:
        self._loader = config_loader
        self._master = master
        prefix: Any = OmegaConf.to_container(master.hydra.overrides.hydra)
        self._prefix: list[str] = prefix
        self._off = OmegaConf.select(master, FAST_PATHS, default=True) is False
        self._shared: dict[tuple[str, ...], Shared | Exception] = {}
        self._certain: set[_Form] = set()  # of which one was composed the fast way
        # The config that the next job may get with other values, and the overrides whose values it has.
        self._last: tuple[_Form, DictConfig, list[Override]] | None = None
        self._parse = cache(self._parse_line)
        self._chooses = cache(self._find_choice)

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Compose one job: equal to `config_loader.load_sweep_config(master, list(overrides))`, key for key.

        Args:
            overrides: the job's overrides, as on the command line, without sweeps.

        Returns:
            A config of its own: changing it changes no other.

        Raises:
            Exception: Hydra's own error for these overrides, mostly a `HydraException`.
        """
        cfg = self._compose_from_shared(list(overrides))
        return self._loader.load_sweep_config(self._master, list(overrides)) if cfg is None else cfg

    def compose_all(self, points: Sequence[Sequence[str]]) -> list[DictConfig]:
        """Compose every job, in order; a config takes about 150 kB of memory.

        Raises:
            Exception: Hydra's error for the first job that cannot be composed.
        """
        with rare_collections():
            return [self.compose(point) for point in points]

    def recipe(self, overrides: Sequence[str]) -> tuple[Recipe, Shared] | None:
        """Return a recipe that composes the config of a job in another process, like `compose`.

        It takes a hundredth of the time of `compose`. None if it is not certain that another process gets the same
        result.
        """
        try:
            parts = self._parts(list(overrides))
            form = _form(parts.common, parts.own)
            if form is not None and form not in self._certain:
                self._compose(list(overrides))
        except Exception:
            return None
        cache = OmegaConf.get_cache(self._master)
        return None if form is None else (Recipe(parts.own, parts.of_task, cache), parts.shared)

    def attempt_all(self, points: Sequence[Sequence[str]]) -> list[DictConfig | Exception]:
        """Compose every job like `compose_all`, with an error of Hydra's instead of a config that cannot be composed.

        If a job has several errors, it may be a different one than Hydra would raise.
        """
        with rare_collections():
            return [self._attempt(list(point)) for point in points]

    def attempt_each(self, points: Iterable[Sequence[str]]) -> Iterator[DictConfig | Exception]:
        """Compose one job after the other, like `attempt_all`, for callers that need each config only briefly.

        A config is valid until the next one is requested, which may be the same object with other values. Do not change
        it. Of Hydra's node, what belongs to the job's number and place may be written: `hydra.job.id`, `hydra.job.num`
        and `hydra.runtime.output_dir` keep what was written into an earlier config.
        """
        for point in points:
            yield self._attempt(list(point), reuse=True)
        self._last = None

    def _attempt(self, point: list[str], *, reuse: bool = False) -> DictConfig | Exception:
        try:
            return self._compose(point, reuse=reuse)
        except HydraException as error:  # Hydra would raise one too; asking it for each of many jobs takes long
            return error
        except Exception as reason:
            log.debug("Composed by Hydra: %s (%r)", point, reason)
        try:
            return self._loader.load_sweep_config(self._master, point)
        except Exception as error:
            return error

    def _compose_from_shared(self, point: list[str]) -> DictConfig | None:
        try:
            return self._compose(point)
        except Exception as reason:  # also an error in the overrides: Hydra will raise its own
            log.debug("Composed by Hydra: %s (%r)", point, reason)
            return None

    def _parts(self, point: list[str]) -> _Parts:
        if internals is None:
            raise _UncertainError("this version of Hydra has other private functions")
        if type(self._loader) is not ConfigLoaderImpl:
            raise _UncertainError("another config loader may behave differently")
        overrides = [self._parse(line) for line in self._prefix + point]
        off = [override.value() is False for override in overrides if override.key_or_group == FAST_PATHS]
        if off[-1] if off else self._off:
            raise _UncertainError(f"{FAST_PATHS} is set to off")
        if any(override.key_or_group == "hydra.searchpath" for override in overrides[len(self._prefix) :]):
            raise _UncertainError("the groups of other config folders may differ")
        common, own = self._split(overrides)
        return _Parts(common, own, overrides, self._share(common))

    def _compose(self, point: list[str], *, reuse: bool = False) -> DictConfig:
        parts = self._parts(point)
        form = _form(parts.common, parts.own)
        last, self._last = self._last, None
        again = reuse and form is not None and last is not None and form == last[0]
        if again and last is not None:
            cfg, known = last[1], _alike(parts.own, last[2])
        else:
            cfg, known = parts.shared.copy(), 0
        for override in parts.own[known:]:
            if not again and not _keeps_to_itself(cfg, override):
                raise _UncertainError(f"{override.input_line} may follow an interpolation into Hydra's own node")
            ConfigLoaderImpl._apply_overrides_to_config([override], cfg)
        recipe.record(cfg, parts.of_task, parts.shared.num_tasks)
        OmegaConf.copy_cache(from_config=self._master, to_config=cfg)
        self._last = (form, cfg, parts.own) if reuse and form is not None else None
        if form is not None:
            self._certain.add(form)
        return cfg

    def _split(self, overrides: list[Override]) -> tuple[list[Override], list[Override]]:
        """Split into shared overrides (group choices, and all up to the last of Hydra's own values) and the rest."""
        chooses = [self._chooses(str(each.input_line)) for each in overrides]
        hydras = [index for index, each in enumerate(overrides) if not chooses[index] and _is_of_hydra(each)]
        first = hydras[-1] + 1 if hydras else 0  # an override of Hydra's may read others: none is moved past it
        common = [each for index, each in enumerate(overrides) if chooses[index] or index < first]
        own = [each for index, each in enumerate(overrides) if not (chooses[index] or index < first)]
        return common, own

    def _share(self, overrides: list[Override]) -> Shared:
        lines = tuple(str(override.input_line) for override in overrides)
        if lines not in self._shared:
            self._shared[lines] = self._try_to_share(overrides)  # a failure is kept and not tried again
        shared = self._shared[lines]
        if isinstance(shared, Exception):
            raise shared.with_traceback(None)
        return shared

    def _try_to_share(self, overrides: list[Override]) -> Shared | Exception:
        assert isinstance(self._loader, ConfigLoaderImpl)
        try:
            cfg = internals.load(self._loader, self._master, overrides)
        except Exception as error:  # OmegaConf's has no message; a value of this job may prevent it
            return error if str(error) else _UncertainError(repr(error.__cause__))
        if not _finishes_alone(cfg):
            return _UncertainError("these choices are not shared")
        num_own = sum(not override.is_hydra_override() for override in overrides)
        return Shared(_Copier(cfg), len(cfg.hydra.overrides.task) - num_own)

    @cached_property
    def _repository(self) -> SimpleNamespace:
        """The configs from which jobs can choose; each question is passed on once."""
        assert isinstance(self._loader, ConfigLoaderImpl)
        found: IConfigRepository = internals.repository(
            self._loader, self._master, list(map(self._parse, self._prefix))
        )
        return SimpleNamespace(group_exists=cache(found.group_exists), config_exists=cache(found.config_exists))

    def _find_choice(self, line: str) -> bool:
        return bool(internals.chooses(self._repository, self._parse(line)))

    @cached_property
    def _parser(self) -> OverridesParser:
        return OverridesParser.create()

    def _parse_line(self, line: str) -> Override:
        return self._parser.parse_overrides([line])[0]


class SweepLoader(ConfigLoaderImpl):
    """Config loader for the sweepers of one sweep, which composes through a `Composer`.

    Sweepers check each job with `load_sweep_config` before they launch it. In another process, this loader is unpickled
    as Hydra's own loader.

    Args:
        loader: Hydra's own.
        master: the config of the entire sweep.
    """

    def __init__(self, loader: ConfigLoaderImpl, master: DictConfig) -> None:
        vars(self).update(vars(loader))
        self.loader = loader
        self.composer = Composer(loader, master)
        self._master = master

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        if master_config is not self._master:
            return super().load_sweep_config(master_config, sweep_overrides)
        return self.composer.compose(sweep_overrides)

    def __reduce__(self) -> tuple[Callable[[ConfigLoaderImpl], ConfigLoaderImpl], tuple[ConfigLoaderImpl]]:
        return copy.copy, (self.loader,)


def _form(common: Sequence[Override], own: Sequence[Override]) -> _Form | None:
    """Return a value that is equal for jobs whose configs can be converted into each other by applying overrides.

    The overrides of a job then replace everything that those of another have changed. None: they may read an old value.
    """
    for override in own:
        if not internals.reads_no_value(override) or "${" in str(override.value()):
            return None
    lines = tuple(str(override.input_line) for override in common)
    return lines, tuple((str(override.get_key_element()), type(override.value())) for override in own)


def _alike(own: Sequence[Override], others: Sequence[Override]) -> int:
    """Return how many of a job's overrides, from the first, are those of another job."""
    pairs = zip(own, others, strict=True)
    return next((index for index, (one, other) in enumerate(pairs) if one is not other), len(own))


def _is_of_hydra(override: Override) -> bool:
    return override.is_hydra_override() or override.key_or_group == "hydra"


def _keeps_to_itself(cfg: DictConfig, override: Override) -> bool:
    """Return whether applying an override reads and writes only what its key names.

    The copy that it is applied to is more complete than Hydra's config at that moment: it has Hydra's node. This would
    matter only for an interpolation that is resolved in the process.
    """
    if override.is_sweep_override() or not override.key_or_group or not internals.is_simple(override):
        return False
    node: Any = cfg
    key: Any
    *parents, last = override.key_or_group.split(".")
    for name in parents:
        key = int(name) if isinstance(node, ListConfig) else name
        if isinstance(node, DictConfig) and key not in node.keys():  # noqa: SIM118, `in node` follows interpolations
            return True
        if OmegaConf.is_interpolation(node, key):
            return False
        node = node[key]
        if not OmegaConf.is_config(node):
            return True
    if internals.reads_no_value(override):
        return True
    key = int(last) if isinstance(node, ListConfig) else last
    if isinstance(node, DictConfig) and key not in node.keys():  # noqa: SIM118
        return True
    if OmegaConf.is_interpolation(node, key):
        return False
    value = None if OmegaConf.is_missing(node, key) else node[key]
    return not OmegaConf.is_config(value) or "${" not in str(OmegaConf.to_container(value, resolve=False))


def _finishes_alone(cfg: DictConfig) -> bool:
    """Return whether what Hydra writes at the end of a composition depends only on the values of its own node."""
    hydra: Any = OmegaConf.to_container(cfg, resolve=False)["hydra"]  # type: ignore[index, call-overload]
    job, runtime, overrides = hydra["job"], hydra["runtime"], hydra["overrides"]
    written = (runtime["choices"], job["env_set"], overrides["hydra"], overrides["task"])
    read = (job["env_copy"], job["config"])
    return not any(isinstance(node, str) for node in written) and "${" not in str(read)


class _Copier:
    """Copies a config exactly: from a pickle, in a fifth of the time of `copy.deepcopy`.

    Another process receives the config itself, because its paths may differ there and only one job uses it.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self._cfg = cfg
        self._copy: Callable[[], DictConfig] = partial(copy.deepcopy, cfg)
        with suppress(Exception):  # a value or a schema's class that cannot be pickled
            self._copy = partial(pickle.loads, pickle.dumps(cfg, pickle.HIGHEST_PROTOCOL))

    def __call__(self) -> DictConfig:
        return self._copy()

    def __reduce__(self) -> tuple[Callable[..., Callable[[], DictConfig]], tuple[Any, ...]]:
        return partial, (_itself, self._cfg)


def _itself(cfg: DictConfig) -> DictConfig:
    return cfg


@contextmanager
def rare_collections() -> Iterator[None]:
    """Make the garbage collector visit old objects less often, since a thousand configs would make each visit slow.

    Young garbage, of which Hydra produces a lot, is still collected.
    """
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], 100_000), before[1], 1_000_000)
    try:
        yield
    finally:
        gc.set_threshold(*before)
