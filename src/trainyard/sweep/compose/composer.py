"""From the overrides of a sweep's points to their configs, as Hydra composes them, in a fraction of its time.

Hydra composes each point from nothing: it reads the files, builds the defaults list, merges. All of that depends on the
group choices only. So points with the same choices share one composition, made by Hydra; each takes a copy, and Hydra's
own function applies the values that are left. A point that is not certain to come out the same is composed by Hydra.
"""

from __future__ import annotations

import copy
import gc
import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from importlib import import_module
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from trainyard.config.hydra_versions import IS_14

log = logging.getLogger(__name__)

try:
    internals: Any = import_module(f"trainyard.sweep.compose.{'hydra14' if IS_14 else 'hydra13'}")
    """The private functions of Hydra; None where this version of Hydra has other ones."""
except ImportError as missing:
    log.warning("Hydra composes every job of a sweep, which takes longer: %s.", missing)
    internals = None

FAST_PATHS = "env.fast_paths"
"""The setting that turns the private functions of Hydra off, as those of torch: Hydra then composes every job."""


class _UncertainError(Exception):
    """The short way is not certain to give what Hydra gives."""


@dataclass(frozen=True)
class _Shared:
    """What points with the same choices have in common."""

    copy: Callable[[], DictConfig]
    num_tasks: int  # entries of hydra.overrides.task that stand in the configs themselves


class Composer:
    """Composes the points of one sweep.

    Files, environment variables and the working directory are read when a combination of choices is first met.

    Args:
        config_loader: the loader of Hydra's context.
        master: the config of the whole sweep, as a launcher has it.

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
        self._shared: dict[tuple[str, ...], _Shared | Exception] = {}
        self._parse = cache(self._parse_line)
        self._chooses = cache(self._find_choice)

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The config of one point: equal to `config_loader.load_sweep_config(master, list(overrides))`, key for key.

        Args:
            overrides: the point's overrides, as on the command line, without sweeps.

        Returns:
            A config of its own: changing it changes no other.

        Raises:
            Exception: what Hydra raises for these overrides, mostly a `HydraException`; Hydra itself raises it.
        """
        cfg = self._compose_from_shared(list(overrides))
        return self._loader.load_sweep_config(self._master, list(overrides)) if cfg is None else cfg

    def compose_all(self, points: Sequence[Sequence[str]]) -> list[DictConfig]:
        """The config of every point, in their order; about 150 kB of memory each.

        Raises:
            Exception: what Hydra raises for the first point that cannot be composed.
        """
        with rare_collections():
            return [self.compose(point) for point in points]

    def attempt_all(self, points: Sequence[Sequence[str]]) -> list[DictConfig | Exception]:
        """As `compose_all`, but a point that cannot be composed has an error of Hydra's in the place of its config.

        Of several errors in a point it may be another one than Hydra would meet first.
        """
        with rare_collections():
            return [self._attempt(list(point)) for point in points]

    def _attempt(self, point: list[str]) -> DictConfig | Exception:
        try:
            return self._compose(point)
        except HydraException as error:  # so Hydra would raise one too: to ask it for each of many points takes long
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

    def _compose(self, point: list[str]) -> DictConfig:
        if internals is None:
            raise _UncertainError("this version of Hydra has other private functions")
        if type(self._loader) is not ConfigLoaderImpl:
            raise _UncertainError("another loader may do other things")
        overrides = [self._parse(line) for line in self._prefix + point]
        off = [override.value() is False for override in overrides if override.key_or_group == FAST_PATHS]
        if off[-1] if off else self._off:
            raise _UncertainError(f"{FAST_PATHS} is off")
        if any(override.key_or_group == "hydra.searchpath" for override in overrides[len(self._prefix) :]):
            raise _UncertainError("other folders have other groups")
        common, own = self._split(overrides)
        shared = self._share(common)
        cfg = shared.copy()
        for override in own:
            if not _keeps_to_itself(cfg, override):
                raise _UncertainError(f"{override.input_line} may follow an interpolation into Hydra's own node")
            ConfigLoaderImpl._apply_overrides_to_config([override], cfg)
        _record(cfg, [override for override in overrides if not override.is_hydra_override()], shared.num_tasks)
        OmegaConf.copy_cache(from_config=self._master, to_config=cfg)
        return cfg

    def _split(self, overrides: list[Override]) -> tuple[list[Override], list[Override]]:
        """Those that points share (choices of groups, and all up to the last of Hydra's own values), and the rest."""
        chooses = [self._chooses(str(each.input_line)) for each in overrides]
        hydras = [index for index, each in enumerate(overrides) if not chooses[index] and _is_of_hydra(each)]
        first = hydras[-1] + 1 if hydras else 0  # overrides are not moved past one of Hydra's: that one may read them
        common = [each for index, each in enumerate(overrides) if chooses[index] or index < first]
        own = [each for index, each in enumerate(overrides) if not (chooses[index] or index < first)]
        return common, own

    def _share(self, overrides: list[Override]) -> _Shared:
        lines = tuple(str(override.input_line) for override in overrides)
        if lines not in self._shared:
            self._shared[lines] = self._try_to_share(overrides)  # what fails is not tried again
        shared = self._shared[lines]
        if isinstance(shared, Exception):
            raise shared.with_traceback(None)
        return shared

    def _try_to_share(self, overrides: list[Override]) -> _Shared | Exception:
        assert isinstance(self._loader, ConfigLoaderImpl)
        try:
            cfg = internals.load(self._loader, self._master, overrides)
        except Exception as error:  # one without a message is OmegaConf's; a value of the point's own may prevent it
            return error if str(error) else _UncertainError(repr(error.__cause__))
        if not _finishes_alone(cfg):
            return _UncertainError("these choices are not shared")
        num_own = sum(not override.is_hydra_override() for override in overrides)
        return _Shared(_copier(cfg), len(cfg.hydra.overrides.task) - num_own)

    @cached_property
    def _repository(self) -> IConfigRepository:
        assert isinstance(self._loader, ConfigLoaderImpl)
        found: IConfigRepository = internals.repository(
            self._loader, self._master, list(map(self._parse, self._prefix))
        )
        return found

    def _find_choice(self, line: str) -> bool:
        return bool(internals.chooses(self._repository, self._parse(line)))

    @cached_property
    def _parser(self) -> OverridesParser:
        return OverridesParser.create()

    def _parse_line(self, line: str) -> Override:
        return self._parser.parse_overrides([line])[0]


class SweepLoader(ConfigLoaderImpl):
    """Hydra's config loader for the sweepers of one sweep: `load_sweep_config`, with which they check each point before
    they launch it, goes through a composer.

    Another process that it is sent to gets the loader that it stands for.

    Args:
        loader: Hydra's own.
        master: the config of the whole sweep.
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


def _is_of_hydra(override: Override) -> bool:
    return override.is_hydra_override() or override.key_or_group == "hydra"


def _keeps_to_itself(cfg: DictConfig, override: Override) -> bool:
    """Whether applying an override reads and writes only what its key names.

    The copy it is applied to is further than Hydra's config is at that moment: Hydra's node is complete. This would
    show only through an interpolation that is followed on the way.
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
    """Whether what Hydra writes at the end of a composition depends on the values of its own node only."""
    hydra: Any = OmegaConf.to_container(cfg, resolve=False)["hydra"]  # type: ignore[index, call-overload]
    job, runtime, overrides = hydra["job"], hydra["runtime"], hydra["overrides"]
    written = (runtime["choices"], job["env_set"], overrides["hydra"], overrides["task"])
    read = (job["env_copy"], job["config"])
    return not any(isinstance(node, str) for node in written) and "${" not in str(read)


def _record(cfg: DictConfig, overrides: list[Override], num_tasks: int) -> None:
    """Write down the task's overrides where Hydra writes them."""
    tasks = cfg.hydra.overrides.task
    del tasks[num_tasks:]
    for override in overrides:
        tasks.append(override.input_line)
    internals.record_dirname(cfg, overrides)


def _copier(cfg: DictConfig) -> Callable[[], DictConfig]:
    """Makes exact copies of a config; from a pickle in a fifth of the time that `copy.deepcopy` takes."""
    try:
        return partial(pickle.loads, pickle.dumps(cfg, pickle.HIGHEST_PROTOCOL))
    except Exception:  # a value or the class of a schema that does not pickle
        return partial(copy.deepcopy, cfg)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Let the garbage collector look at old objects later: a thousand configs kept make it visit all, again and again.

    Young garbage, which Hydra leaves plenty of, is still collected.
    """
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], 100_000), before[1], 1_000_000)
    try:
        yield
    finally:
        gc.set_threshold(*before)
