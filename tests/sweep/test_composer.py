"""A composer gives, point for point, what Hydra gives: the same nodes, the same errors."""

import gc
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, ListConfig, Node, OmegaConf, open_dict

from trainyard.sweep.composer import Composer

CONF = Path(__file__).parents[2] / "conf"

# What the project's configs do not do, but Hydra can.
EXTRA = {
    "composed.yaml": """
        defaults:
          - train
          - db: sqlite
          - db@backup: mysql
          - nested: outer
          - dependent: ${db}
          - optional absent: ${model}
          - wide: [one, two]
          - composer_schema: base
          - _self_
        alias: ${db}
        job: ${hydra.job}
        chosen: ${hydra.runtime.choices.model}/${hydra:runtime.cwd}
        home: ${oc.env:HOME}
        environment: HOME
        missing: ???
        missing_node: {inner: "???"}
        merged: {kept: 1, followed: "${db.host}"}
        rows: [{a: 1}, {a: 2}]
        """,
    "db/sqlite.yaml": "{host: here, port: 1, table: {name: '${seed}', rows: [1, 2]}}",
    "db/mysql.yaml": "{host: there, port: 2, user: null}",
    "db/postgres.yaml": "{host: nowhere}",
    "dependent/sqlite.yaml": "file: ${db.host}.db",
    "dependent/mysql.yaml": "socket: ${..db.port}",
    "absent/mlp.yaml": "only: mlp",
    "nested/outer.yaml": "{defaults: [inner: a, _self_], level: 1, inner: {kind: outer}}",
    "nested/last.yaml": "{defaults: [_self_, inner@inside: b], level: 2, inside: {kind: last}}",
    "nested/inner/a.yaml": "{kind: a, size: 1}",
    "nested/inner/b.yaml": "{kind: b, size: 2}",
    "wide/one.yaml": "one: 1",
    "wide/two.yaml": "two: 2",
    "wide/three.yaml": "# @package elsewhere\nthree: 3",
    "experiment/other.yaml": """
        # @package _global_
        defaults: [override /db: mysql, override /model: cnn, override /hydra/job_logging: none]
        seed: 77
        hydra: {job: {config: {override_dirname: {exclude_keys: [seed]}}}}
        """,
    "hydra/callbacks/mine.yaml": "{first: {_target_: hydra.experimental.callback.Callback}}",
}

PREFIX = ["hydra.sweep.dir=multirun/${objective}", "hydra/job_logging=disabled", "+hydra.job.env_set.PLACE=x"]


class Color(Enum):
    RED = 1
    BLUE = 2


@dataclass
class Item:
    size: int = 1


@dataclass
class Schema:
    number: int = 1
    ratio: float | None = None
    color: Color = Color.RED
    numbers: list[int] = field(default_factory=lambda: [1, 2])
    items_by_name: dict[str, Item] = field(default_factory=lambda: {"first": Item()})
    either: int | str = 3
    path: Path = Path("somewhere")


ConfigStore.instance().store(group="composer_schema", name="base", node=Schema)


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(dedent(text).lstrip())


def start(folder: Path, name: str, overrides: list[str]) -> tuple[ConfigLoader, DictConfig]:
    """A config loader and a master config, as a launcher has them; inside `initialize_config_dir`."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    master = hydra.compose_config(name, overrides, RunMode.MULTIRUN, with_log_configuration=False)
    assert master.hydra.run.dir  # so that the time in it is fixed for all points
    return hydra.config_loader, master


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("composer") / "conf"
    shutil.copytree(CONF, folder)
    write(folder, EXTRA)
    with initialize_config_dir(str(folder), job_name="train", version_base="1.3"):
        yield folder


@pytest.fixture(scope="module")
def shared(conf: Path) -> tuple[ConfigLoader, DictConfig, Composer]:
    """One composer for all examples: what it keeps from one must not show in the next."""
    loader, master = start(conf, "composed", PREFIX)
    return loader, master, Composer(loader, master)


@pytest.fixture
def calls(shared: tuple[ConfigLoader, DictConfig, Composer], monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often Hydra is asked, by the name of what is called."""
    return count_calls(shared[0], monkeypatch)


def count_calls(loader: ConfigLoader, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    calls = {"load_configuration": 0, "load_sweep_config": 0}

    def counted(name: str, method: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
        def call(*args: Any, **kwargs: Any) -> DictConfig:
            calls[name] += 1
            return method(*args, **kwargs)

        return call

    for name in calls:
        monkeypatch.setattr(loader, name, counted(name, getattr(loader, name)))
    return calls


def state(node: Node) -> Any:
    """All there is to a node: types, flags, keys, resolvers' caches, values with their types, order."""
    metadata = {**vars(node._metadata), "resolver_cache": dict(node._metadata.resolver_cache)}
    content = vars(node)["_content" if "_content" in vars(node) else "_val"]
    children = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    assert all(child._get_parent() is node for child in children)
    if isinstance(content, dict):
        content = [(key, state(child)) for key, child in content.items()]
    elif isinstance(content, list):
        content = [state(child) for child in content]
    elif isinstance(content, Node):
        content = state(content)
    else:
        content = (type(content), repr(content))
    return type(node), metadata, content


def resolved(node: Any) -> Any:
    """The values with interpolations followed; an error where one leads nowhere."""
    if not OmegaConf.is_config(node):
        return repr(node)
    values = {}
    for key in range(len(node)) if isinstance(node, ListConfig) else node:
        followed = OmegaConf.is_interpolation(node, key)
        try:
            values[key] = repr(node[key]) if followed else resolved(node[key])
        except Exception as error:
            values[key] = (type(error), str(error))
    return values


def outcome(compose: Callable[[], DictConfig]) -> Any:
    """All there is to a config, or to the error in its place."""
    try:
        cfg = compose()
    except Exception as error:
        cause = error.__cause__
        return type(error), str(error), type(cause), str(cause), error.__context__ is cause
    flags = [(OmegaConf.is_readonly(node), OmegaConf.is_struct(node)) for node in (cfg, cfg.hydra, cfg.hydra.job)]
    return state(cfg), OmegaConf.to_container(cfg, resolve=False), flags, resolved(cfg)


def assert_equal(shared: tuple[ConfigLoader, DictConfig, Composer], point: list[str]) -> None:
    loader, master, composer = shared
    ours, hydras = outcome(lambda: composer.compose(point)), outcome(lambda: loader.load_sweep_config(master, point))
    assert ours == hydras, point


KEYS = """
    seed name objective optim.lr optim.betas optim model model.hidden model.hidden.0 model.hidden.9 hook.ema.decay
    hook.default loop.max_epochs db db.host db.table db.table.name db.table.rows backup.port backup alias alias.host
    job job.name merged merged.kept merged.followed missing missing.deep missing_node missing_node.inner rows rows.0.a
    rows.1 nested.inner.kind nested.inside elsewhere.three unknown unknown.deep.er seed.below home.below chosen
    environment composer_schema composer_schema.number composer_schema.ratio composer_schema.color
    composer_schema.numbers composer_schema.either composer_schema.items_by_name composer_schema.items_by_name.new
    composer_schema.items_by_name.first.size composer_schema.path composer_schema.unknown a/b $dollar optim.no-such
    hydra hydra.job hydra.job.name hydra.job.num hydra.job.id hydra.job.chdir hydra.job.override_dirname hydra.verbose
    hydra.sweep.subdir hydra.run.dir hydra.runtime.cwd hydra.runtime.choices hydra.runtime.choices.model hydra.mode
    hydra.overrides.task hydra.overrides.hydra hydra.job.env_set.A hydra.job.env_copy hydra.sweeper hydra.launcher
    hydra.job.config.override_dirname.kv_sep hydra.job.config.override_dirname.exclude_keys hydra.nothing
"""
VALUES = r"""
    1 0 -3 2.5e-3 1_000 inf true False null word a/b:c "${seed}" [] [1,2,3] [a,[b,{c:d}],null] {} {job:{name:x}}
    {width:3,deep:{er:1}} {host:x,port:7} {kept:2,followed:3} {name:x} {size:4} {first:{size:5}} {lr:0.5}
    ${seed} ${db.host} ${db} ${hydra.job.name} ${hydra.job} ${hydra:runtime.cwd} ${hydra.runtime.choices.db}
    ${oc.env:HOME} ${oc.select:nothing,7} ${oc.env:NO_SUCH_VARIABLE} ${undefined.key} ${..seed} x_${seed}_${name} RED
    HOME [HOME] [seed] [${environment}] ??? a\,b int('3') str([1,2]) 1,2 range(1,3) choice(a,b) glob(*) [1 {a} ${
"""
CHOICES = """
    model=mlp model=cnn model=nope model=[mlp,cnn] model=3 model={width:2} +model=mlp ++model=mlp ~model ~model=mlp
    ~model=cnn optim=sgd optim=adamw optim@fast=adam +optim@fast=adam +optim@fast.inner=sgd experiment=digits_cnn
    experiment=other experiment=null experiment=[digits_cnn,other] hook=[default,ema] hook=ema hook=[] ~hook
    hook=[default,early_stop,nan_guard] hook.ema=null db=mysql db=postgres db=null db=${model} db@backup=sqlite
    db@backup=null db@nope=sqlite ~db@backup ~db@backup=mysql ~db@backup=sqlite +db@third=mysql
    +db@db.table.more=mysql +db=sqlite dependent=mysql dependent=${model} ~dependent nested=last nested/inner=b
    nested=null ~nested/inner nested/inner@nested.inside=a +nested/inner=b +nested/inner@_global_=b wide=[one,three]
    wide=three wide=[] +wide=three composer_schema=nope composer_schema={number:5} absent=mlp loop=iter
    schedule=cosine tracker=none env=??? metric=language nope/group=x +nope/group=x ~nope/group hydra/callbacks=mine
    hydra/job_logging=none hydra/job_logging=nope hydra/launcher=basic +hydra/callbacks=mine hydra/env=default
    ~hydra/help hydra/output=default hydra=config +hydra/job_logging@x=none hydra.searchpath=[]
    hydra.searchpath=[pkg://nope] +hydra.searchpath=[x] @=x =x +={a:1} ~={} ~ + model@=cnn model@:x=cnn
"""
values = st.sampled_from([*VALUES.split(), "", "two words", "'quoted, {text}'", "'", "{a: 1, b: [2]}"])
keys, choices = st.sampled_from(KEYS.split()), st.sampled_from(CHOICES.split())
value_overrides = st.one_of(
    st.builds("{}{}={}".format, st.sampled_from(["", "", "", "+", "++", "~"]), keys, values),
    st.builds("~{}".format, keys),
)
points = st.lists(st.one_of(value_overrides, value_overrides, choices), max_size=5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(points)
@example([])
@example(["optim=sgd", "optim.lr=0.1", "seed=3", "name='a, b'"])
@example(["job.name=through_an_alias", "job={chdir: true}"])
@example(["seed=1", "hydra.job.env_copy=[${environment}]", "environment=PATH"])
@example(["job=null", "++job={name:x}", "hydra.job.name=y", "job=3"])
@example(["hydra.overrides.task=[x]", "seed=2", "hydra.runtime.choices.model=x", "hydra.job.config_name=z"])
def test_a_point_is_what_hydra_makes_of_it(shared: tuple[ConfigLoader, DictConfig, Composer], point: list[str]) -> None:
    assert_equal(shared, point)


ordinary = st.lists(
    st.one_of(
        st.builds("optim.lr={}".format, st.floats(1e-6, 1)),
        st.builds("seed={}".format, st.integers(0, 9)),
        st.sampled_from(["db=mysql", "db@backup=sqlite", "hook=[default,ema]", "nested/inner=b", "wide=[one,three]"]),
        st.sampled_from(
            ["+new.key=1", "++seed=4", "~seed", "~objective=val/accuracy", "~hook.timer", "alias=3", "name=null"]
        ),
        st.sampled_from(["+list=[1,2]", "model.hidden=[8]", "model.hidden.0=9", "+optim={extra:1}", "nested={level:9}"]),
        st.sampled_from(["name=${hydra.job.num}", "home='quoted, text'", "merged.followed=x", "name=${oc.env:HOME}"]),
    ),
    max_size=4,
    unique_by=lambda override: override.split("=")[0].strip("+~"),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ordinary)
def test_ordinary_points_are_composed_once_for_each_choice_of_groups(
    shared: tuple[ConfigLoader, DictConfig, Composer], calls: dict[str, int], point: list[str]
) -> None:
    calls.update(load_configuration=0, load_sweep_config=0)
    shared[2].compose([*point, "accumulate=1"])
    assert calls["load_configuration"] <= 1
    shared[2].compose([*point, "accumulate=2"])
    assert calls["load_configuration"] <= 1
    assert calls["load_sweep_config"] == 0


def test_the_projects_own_configs(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader, master = start(conf, "train", ["hydra.sweep.dir=here"])
    composer = Composer(loader, master)
    grid = [
        [f"model={model}", f"optim.lr={lr}", f"seed={seed}"]
        for model in ("mlp", "cnn")
        for lr in (0.1, 0.01)
        for seed in range(2)
    ]
    hydras = [state(loader.load_sweep_config(master, point)) for point in grid]
    calls = count_calls(loader, monkeypatch)
    assert [state(cfg) for cfg in composer.compose_all(grid)] == hydras
    assert calls == {"load_configuration": 2, "load_sweep_config": 0}


def test_changing_one_config_changes_no_other(shared: tuple[ConfigLoader, DictConfig, Composer]) -> None:
    composer = shared[2]
    point = ["db=mysql", "seed=5", "+extra={list: [1, {a: 2}]}"]
    changed, other = composer.compose_all([point, point])
    before = state(other)

    def wreck(node: Any) -> None:
        node._metadata.resolver_cache["now"]["x"] = 1
        OmegaConf.set_readonly(node, False)
        for key in range(len(node)) if isinstance(node, ListConfig) else list(node.keys()):
            child = node._get_node(key)
            if OmegaConf.is_config(child) and not child._is_none() and not child._is_missing():
                wreck(child)
            child._metadata.flags["wrecked"] = True
        if isinstance(node, ListConfig):
            node.clear()
        elif not OmegaConf.is_interpolation(node):
            with open_dict(node):
                node._content.clear()

    wreck(changed)
    assert state(other) == before
    assert state(composer.compose(point)) == before


def test_values_resolved_for_the_sweep_are_the_same_in_every_point(conf: Path) -> None:
    loader, master = start(conf, "composed", ["+stamp=${now:%f}"])
    composer = Composer(loader, master)
    first = composer.compose(["+stamp=${now:%f}"])
    stamp = master.stamp  # after the first composition: later points have it all the same
    assert [cfg.stamp for cfg in composer.compose_all([["+stamp=${now:%f}"]] * 3)] == [stamp] * 3
    assert set(first._metadata.resolver_cache["now"]) < set(master._metadata.resolver_cache["now"])


def test_an_error_stays_an_error_and_leaves_nothing_behind(
    shared: tuple[ConfigLoader, DictConfig, Composer], calls: dict[str, int]
) -> None:
    thresholds = gc.get_threshold()
    for _ in range(2):
        with pytest.raises(Exception, match="Could not find 'model/nope'"):
            shared[2].compose_all([["seed=1"], ["model=nope"]])
    assert gc.get_threshold() == thresholds
    assert calls["load_sweep_config"] == 2
    assert_equal(shared, ["model=cnn"])


def test_a_schema_that_does_not_pickle(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Local:
        value: int = 1

    ConfigStore.instance().store(group="composer_local", name="local", node=Local)
    loader, master = start(conf, "composed", [])
    composer = Composer(loader, master)
    calls = count_calls(loader, monkeypatch)
    point = ["+composer_local=local", "composer_local.value=4"]
    first, second = composer.compose_all([point, point])
    assert calls == {"load_configuration": 1, "load_sweep_config": 0}
    first.composer_local.value = 9
    assert state(second) == state(loader.load_sweep_config(master, point))


@pytest.mark.parametrize("names", ["[HOME]", "[${environment}]", "${names}"])
def test_environment_that_is_copied(conf: Path, monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    monkeypatch.setenv("PLACE", "here")
    loader, master = start(conf, "composed", ["+hydra.job.env_set.A=1", f"hydra.job.env_copy={names}", "+names=[HOME]"])
    both = loader, master, Composer(loader, master)
    for point in (["+names=[HOME]"], ["+names=[PLACE]", "environment=PLACE"]):
        assert_equal(both, point)


def test_groups_in_folders_of_the_search_path(conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"far/a.yaml": "x: 1", "far/b.yaml": "x: 2"})
    write(conf, {"searching.yaml": f"defaults: [train, far: a, _self_]\nhydra: {{searchpath: ['file://{tmp_path}']}}"})
    loader, master = start(conf, "searching", [])
    both = loader, master, Composer(loader, master)
    for point in (["far=b", "far.x=3"], ["+far@near=b"], ["far=c"], ["far.x=4"]):
        assert_equal(both, point)
    calls = count_calls(loader, monkeypatch)
    both[2].compose(["far=b", "far.x=5"])
    assert calls == {"load_configuration": 0, "load_sweep_config": 0}


def test_another_loader_does_its_own(conf: Path) -> None:
    class Marking(ConfigLoaderImpl):
        def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
            cfg = super().load_sweep_config(master_config, sweep_overrides)
            cfg.name = "marked"
            return cfg

    loader, master = start(conf, "composed", [])
    composer = Composer(Marking(loader.get_search_path()), master)
    assert [cfg.name for cfg in composer.compose_all([[], ["seed=1"], ["model=cnn"]])] == ["marked"] * 3


def test_no_primary_config(conf: Path) -> None:
    loader, master = start(conf, None, [])  # type: ignore[arg-type]
    both = loader, master, Composer(loader, master)
    for point in ([], ["+db=mysql", "+x=1"], ["seed=1"]):
        assert_equal(both, point)
