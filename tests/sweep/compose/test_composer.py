"""A composer gives, point for point, what Hydra gives: the same nodes, the same errors."""

import copy
import gc
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
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
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, Node, OmegaConf

from trainyard.config.hydra_versions import IS_14, VERSION_BASE
from trainyard.sweep.compose.composer import Composer, SweepLoader, internals

CONF = Path(__file__).parents[3] / "conf"

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
        chosen: ${hydra.runtime.choices.model}
        choices: ${hydra.runtime.choices}
        environment: HOME
        missing: ???
        missing_node: {inner: "???"}
        merged: {kept: 1, followed: "${db.host}", choices: "${hydra.runtime.choices}"}
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
        hydra: {verbose: true}
        """,
    "hydra/callbacks/mine.yaml": "{first: {_target_: hydra.experimental.callback.Callback}}",
}

Launched = tuple[ConfigLoader, DictConfig, Composer]  # what a launcher has, and the composer of it
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
    pair: tuple[int, int] = (1, 2)


ConfigStore.instance().store(group="composer_schema", name="base", node=Schema)


def write(folder: Path, files: dict[str, str]) -> None:
    for file, text in ((folder / name, text) for name, text in files.items()):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text).lstrip())


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
    with initialize_config_dir(str(folder), job_name="train", **VERSION_BASE):
        yield folder


@pytest.fixture(scope="module")
def shared(conf: Path) -> Launched:  # what the composer keeps from one example must not show in the next
    loader, master = start(conf, "composed", PREFIX)
    return loader, master, Composer(loader, master)


def count_calls(loader: ConfigLoader, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often Hydra is asked from now on, by the name of what is called."""
    calls = {"load": 0, "load_sweep_config": 0}

    def call(name: str, method: Callable[..., DictConfig], *args: Any, **kwargs: Any) -> DictConfig:
        calls[name] += 1
        return method(*args, **kwargs)

    for owner, name in ((internals, "load"), (loader, "load_sweep_config")):
        monkeypatch.setattr(owner, name, partial(call, name, getattr(owner, name)))
    return calls


def state(node: Node) -> Any:
    """All there is to a node: types, flags, keys, resolvers' caches, values with their types, order."""
    metadata = {**vars(node._metadata), "resolver_cache": dict(node._metadata.resolver_cache)}
    content = vars(node)["_content" if "_content" in vars(node) else "_val"]
    if isinstance(content, dict):
        content = [(key, child._get_parent() is node, state(child)) for key, child in content.items()]
    elif isinstance(content, list):
        content = [(child._get_parent() is node, state(child)) for child in content]
    else:
        content = state(content) if isinstance(content, Node) else (type(content), repr(content))
    return type(node), metadata, content


def resolved(node: Any) -> Any:
    """The values with interpolations followed; an error where one leads nowhere."""
    if not OmegaConf.is_config(node):
        return repr(node)
    values = {}
    for key in node if isinstance(node, DictConfig) else range(len(node)):
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


def assert_equal(shared: Launched, point: list[str]) -> None:
    loader, master, composer = shared
    hydras = outcome(lambda: loader.load_sweep_config(master, point))
    equal = outcome(lambda: composer.compose(point)) == hydras  # pytest's own diff of the two would take minutes
    assert equal, point
    (attempted,) = composer.attempt_all([point])
    fails = isinstance(hydras[0], type) and issubclass(hydras[0], Exception)
    assert isinstance(attempted, Exception) == fails, point
    assert fails or outcome(lambda: attempted) == hydras, point  # type: ignore[return-value]


# Overrides that Hydra mostly accepts, and such as it mostly refuses. Values of a key come from VALUES.
KEYS = """
    seed name objective optim.lr optim.betas model.hidden model.hidden.0 hook.ema.decay hook.timer loop.max_epochs db
    db.host db.table db.table.name db.table.rows backup.port backup alias alias.host job job.name choices.model merged
    merged.kept merged.followed missing missing_node missing_node.inner rows rows.0.a rows.1 nested nested.inner.kind
    chosen environment optim model hydra.job.name hydra.job.id hydra.job.override_dirname hydra.sweep.subdir
    hydra.run.dir hydra.runtime.cwd hydra.runtime.choices.model hydra.job.env_set.PLACE hydra.sweeper hydra.verbose
"""
OTHER_KEYS = """
    model.hidden.9 missing.deep nested.inside elsewhere.three unknown unknown.deep.er seed.below a/b $dollar
    optim.no-such db.table.name.x hydra hydra.job hydra.job.num hydra.job.chdir hydra.runtime.choices hydra.mode
    composer_schema.number composer_schema.ratio composer_schema.color composer_schema.numbers composer_schema.either
    composer_schema.items_by_name composer_schema.items_by_name.first.size composer_schema.items_by_name.new
    composer_schema.path composer_schema.unknown composer_schema hydra.overrides.task hydra.overrides.hydra
    hydra.job.env_copy hydra.job.config.override_dirname.kv_sep hydra.job.config.override_dirname.exclude_keys
"""
VALUES = r"""
    1 0 -3 2.5e-3 1_000 inf true False null word a/b:c "${seed}" [] [1,2,3] [a,[b,{c:d}],null] {} {job:{name:x}}
    {width:3,deep:{er:1}} {host:x,port:7} {kept:2,choices:{x:1}} {name:x} {size:4} {first:{size:5}} {lr:0.5}
    ${seed} ${db.host} ${db} ${hydra.job.name} ${hydra.job} ${hydra:runtime.cwd} ${hydra.runtime.choices.db}
    ${oc.env:HOME} ${oc.select:nothing,7} ${oc.env:NO_SUCH_VARIABLE} ${undefined.key} ${..seed} x_${seed}_${name} RED
    HOME [HOME] [seed] [${environment}] ??? a\,b int('3') str([1,2])
"""
OTHER_VALUES = "1,2 range(1,3) choice(a,b) glob(*) [1 {a} ${ '"
CHOICES = """
    model=mlp model=cnn optim=sgd optim=adamw +optim@fast=adam +optim@fast.inner=sgd experiment=other experiment=null
    experiment=digits_cnn hook=[default,ema] hook=ema hook=[] hook=[default,early_stop,nan_guard] ~hook db=mysql db=null
    db@backup=sqlite db@backup=null ~db@backup ~db@backup=mysql +db@third=mysql +db@db.table.more=mysql db={port:3}
    dependent=mysql ~dependent nested=last nested/inner=b nested=null ~nested/inner +nested/inner@_global_=b loop=iter
    wide=[one,three] wide=three wide=[] composer_schema={number:5} schedule=cosine tracker=none metric=language
    hydra/job_logging=none hydra/launcher=basic hydra/callbacks=mine hydra/env=default ~hydra/help hydra/output=default
    model={width:2} optim={lr:3} hydra.searchpath=[] hydra.job.env_copy=[HOME] hydra={verbose:true} hook.ema=null
    +hydra.job.env_set.A=1 hydra.job.env_copy=[${environment}] hydra.overrides.task=[x] hydra.job.chdir=true
    +hydra.runtime.choices.b=2 hydra.job.config.override_dirname.exclude_keys=[seed] hydra.runtime.version=${seed}
    hydra.job.config.override_dirname.kv_sep=${environment} composer_schema.color=BLUE composer_schema.number=${seed}
    composer_schema.items_by_name={first:{size:5}} +composer_schema.items_by_name.new.size=3 composer_schema.either=x
    rows[0].a=9 model.hidden[0]=4 rows[1]={a:3} ~rows[0] db\\.port=1 ~db/mysql
    composer_schema.pair=[3,4] composer_schema.pair.0=5 composer_schema.pair[1]=5
"""
OTHER_CHOICES = """
    model=nope model=[mlp,cnn] model=3 ++model=mlp +model=mlp ~model=cnn ~model experiment=[digits_cnn,other]
    optim@fast=adam db=postgres db=${model} db@nope=sqlite ~db@backup=sqlite +db=sqlite dependent=${model} absent=mlp
    nested/inner@nested.inside=a +nested/inner=b +wide=three composer_schema=nope env=??? nope/group=x +nope/group=x
    ~nope/group hydra/job_logging=nope hydra=config +hydra/callbacks=mine +hydra/job_logging@x=none
    hydra.searchpath=[pkg://nope] +hydra.searchpath=[x] @=x =x +={a:1} ~={} ~ + model@=cnn model@:x=cnn
"""
values = st.sampled_from([*VALUES.split(), "", "two words", "'quoted, {text}'", "{a: 1, b: [2]}"])
likely = st.one_of(
    st.builds("{}{}={}".format, st.sampled_from(["", "", "++"]), st.sampled_from(KEYS.split()), values),
    st.builds("+{}={}".format, st.sampled_from(["new", "new.deep.er", "optim.new", "backup.extra", "job.new"]), values),
    st.builds("~{}".format, st.sampled_from(KEYS.split())),
    st.sampled_from(CHOICES.split()),
    st.sampled_from(CHOICES.split()),
)
unlikely = st.one_of(
    st.sampled_from(OTHER_CHOICES.split()),
    st.builds(
        "{}{}={}".format,
        st.sampled_from(["", "", "+", "++", "~"]),
        st.sampled_from(KEYS.split() + OTHER_KEYS.split()),
        values | st.sampled_from(OTHER_VALUES.split()),
    ),
)
points = st.lists(likely, max_size=5) | st.lists(likely | unlikely, min_size=1, max_size=4)


@settings(max_examples=10)
@given(points)
@example([])
@example(["optim=sgd", "optim.lr=0.1", "seed=3", "name='a, b'"])
@example(["db.port=5", "db={port: 3}"])
@example(["name=glob(*)"])
@example(["~choices.model"])  # this and the next three: what is followed is not there yet when Hydra applies values
@example(["~chosen"])
@example(["+chosen=x"])
@example(["++merged={choices: {x: 1}}"])
@example(["seed=1", "hydra.job.env_copy=[${environment}]", "environment=PATH"])
@example(["hydra.overrides.task=[x]", "seed=2", "+hydra.runtime.choices.model=x", "hydra={runtime: {cwd: z}}"])
def test_a_point_is_what_hydra_makes_of_it(shared: Launched, point: list[str]) -> None:
    assert_equal(shared, point)


ORDINARY = """
    seed=3 optim.lr=1e-4 name=null alias=3 name='quoted' name=${hydra.job.num} name=${oc.env:HOME} merged.followed=x
    model.hidden=[8] model.hidden.0=9 rows.1.a=5 nested={level:9} +new.key=1 +list=[1,{a:2}] +optim={extra:1} ++seed=4
    ~seed ~objective=val/accuracy ~hook.timer composer_schema.color=BLUE composer_schema.items_by_name.first.size=2
    optim=sgd schedule=cosine db=mysql db@backup=sqlite hook=[default,ema] nested/inner=b wide=[one,three]
"""
ordinary = st.lists(
    st.sampled_from(ORDINARY.split()), max_size=4, unique_by=lambda line: line.strip("+~").split("=")[0]
)


@settings(max_examples=15)
@given(ordinary)
def test_ordinary_points_are_composed_once_for_each_choice_of_groups(shared: Launched, point: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        calls = count_calls(shared[0], patch)
        first, second = shared[2].compose_all([[*point, "accumulate=1"], [*point, "accumulate=2"]])
    assert (first.accumulate, second.accumulate) == (1, 2)
    assert calls["load"] <= 1
    assert calls["load_sweep_config"] == 0


kept_keys = st.lists(st.sampled_from(KEYS.split()), min_size=1, max_size=3)
streams = st.tuples(st.lists(likely, max_size=2), kept_keys).flatmap(
    lambda drawn: st.lists(
        st.tuples(*(st.builds("{}={}".format, st.just(key), values) for key in drawn[1])).map(
            lambda own: [*drawn[0], *own]
        ),
        min_size=2,
        max_size=5,
    )
)


@settings(max_examples=10)
@given(streams)
@example(
    [["optim.lr=0.1", "seed=1"], ["optim.lr=0.2", "seed=2"], ["optim.lr=0.2", "seed=null"], ["optim.lr=1", "seed=2"]]
)
@example([["model.hidden=[1]", "model.hidden.0=5"], ["model.hidden=[2,3]", "model.hidden.0=6"], ["model.hidden=[2,3]"]])
@example([["db.table={rows:[1]}", "seed=1"], ["db.table={name:x}", "seed=2"]])
@example([["db=mysql", "db.host=a"], ["db=sqlite", "db.host=b"], ["db=mysql", "db.host=c"]])
@example([["seed=1", "no.such=1"], ["seed=2"], ["seed=x y"], ["seed=3"]])
def test_each_config_of_a_stream_is_the_one_that_its_job_has(shared: Launched, stream: list[list[str]]) -> None:
    *_, composer = shared
    for point, streamed in zip(stream, composer.attempt_each(stream), strict=True):
        last, composer._last = composer._last, None  # `compose` is another user of the composer
        alone = outcome(lambda point=point: composer.compose(point))  # type: ignore[misc]
        made = composer.recipe(point)
        composer._last = last
        if made is not None:
            recipe, common = pickle.loads(pickle.dumps(made))  # another process
            assert outcome(lambda recipe=recipe, common=common: recipe.make(common)) == alone, point  # type: ignore[misc]
        if isinstance(streamed, Exception):
            assert isinstance(alone[0], type), point
            assert issubclass(alone[0], Exception)
        else:
            equal = outcome(lambda config=streamed: config) == alone  # type: ignore[misc]
            assert equal, (point, stream)


def test_a_stream_of_values_copies_one_config(shared: Launched) -> None:
    stream = [[f"optim.lr={num / 10}", f"seed={num}", "model=mlp"] for num in range(5)]
    *_, composer = shared
    configs = list(composer.attempt_each(stream))
    assert len({id(config) for config in configs}) == 1
    assert composer._last is None, "it is not kept"


def test_a_job_of_a_stream_is_made_elsewhere_from_its_own_values_alone(
    shared: Launched, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, composer = shared
    points = [[f"optim.lr={num / 10}", f"seed={num}", "model=mlp"] for num in range(3)]
    first, *rest = [composer.recipe(point) for point in points]
    assert first is not None
    assert all(each is not None and each[1] is first[1] for each in rest), "what they share is one object"
    assert len(pickle.dumps(first[0])) < 10_000 < len(pickle.dumps(first[1]))
    monkeypatch.setattr(composer, "_compose", None)
    assert composer.recipe(["optim.lr=0.5", "seed=9", "model=mlp"]) is not None, "nothing is composed for it"
    assert composer.recipe(["optim.lr=${seed}", "seed=9", "model=mlp"]) is None, "it reads another value"


def test_the_projects_own_configs(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader, master = start(conf, "train", ["hydra.sweep.dir=here"])
    composer = Composer(loader, master)
    grid = [[f"model={model}", f"optim.lr={lr}", "seed=4"] for model in ("mlp", "cnn") for lr in (0.1, 0.01, 0.001)]
    hydras = [state(loader.load_sweep_config(master, point)) for point in grid]
    calls = count_calls(loader, monkeypatch)
    assert [state(cfg) for cfg in composer.compose_all(grid)] == hydras
    assert calls == {"load": 2, "load_sweep_config": 0}


def test_hydra_composes_every_job_where_fast_paths_are_off(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader, master = start(conf, "train", ["hydra.sweep.dir=here"])
    jobs = [["env.fast_paths=false", f"optim.lr={lr}"] for lr in (0.1, 0.01)]
    hydras = [state(loader.load_sweep_config(master, job)) for job in jobs]
    composer = Composer(loader, master)
    calls = count_calls(loader, monkeypatch)
    assert [state(cfg) for cfg in composer.compose_all(jobs)] == hydras
    assert calls["load_sweep_config"] == 2
    composer.compose(["env.fast_paths=true"])
    assert calls["load_sweep_config"] == 2


def test_hydra_composes_every_job_where_its_private_functions_are_gone(
    conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader, master = start(conf, "train", ["hydra.sweep.dir=here"])
    calls = count_calls(loader, monkeypatch)
    monkeypatch.setattr("trainyard.sweep.compose.composer.internals", None)
    assert Composer(loader, master).compose(["optim.lr=0.1"]).optim.lr == 0.1
    assert calls["load_sweep_config"] == 1


@pytest.mark.parametrize("name", ["repository", "load", "chooses", "reads_no_value", "is_simple", "record_dirname"])
def test_the_private_functions_are_there(name: str) -> None:
    assert callable(getattr(internals, name))


def test_changing_one_config_changes_no_other(shared: Launched) -> None:
    composer = shared[2]
    point = ["db=mysql", "seed=5", "+extra={list: [1, {a: 2}]}"]
    changed, other = composer.compose_all([point, point])
    before = state(other)

    def wreck(node: Any) -> None:
        node._metadata.resolver_cache["now"]["x"] = 1
        for child in [
            node._get_node(key) for key in (node.keys() if isinstance(node, DictConfig) else range(len(node)))
        ]:
            child._metadata.flags["wrecked"] = True
            if OmegaConf.is_config(child):
                wreck(child)
        if isinstance(node._content, dict | list):
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


def test_an_error_stays_an_error_and_leaves_nothing_behind(shared: Launched, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_calls(shared[0], monkeypatch)
    before = gc.get_threshold()
    gc.set_threshold(600, 9, 8)
    for _ in range(2):
        with pytest.raises(Exception, match="Could not find 'model/nope'"):
            shared[2].compose_all([["seed=1"], ["model=nope"]])
    assert gc.get_threshold() == (600, 9, 8)
    gc.set_threshold(*before)
    assert calls["load_sweep_config"] == 2
    assert_equal(shared, ["model=cnn"])


def test_errors_of_many_points_are_found_without_hydra(shared: Launched, monkeypatch: pytest.MonkeyPatch) -> None:
    composer = Composer(*shared[:2])
    calls = count_calls(shared[0], monkeypatch)
    points = [
        [*choice, f"optim.lr={i}", *wrong]
        for choice in (["model=mlp"], ["model=nope"])
        for wrong in ([], ["no.key=1"], ["seed=[1"], ["~nothing"])
        for i in range(10)
    ]
    found = [type(each).__name__ for each in composer.attempt_all(points)]
    assert calls == {"load": 2, "load_sweep_config": 0}
    missing, wrong, unread = "MissingConfigException", "ConfigCompositionException", "OverrideParseException"
    assert found[:40] == ["DictConfig"] * 10 + [wrong] * 10 + [unread] * 10 + [wrong] * 10
    assert found[40:] == [missing] * 20 + [unread] * 10 + [missing] * 10


def test_sweepers_check_points_with_the_composer(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader, master = start(conf, "composed", PREFIX)
    assert isinstance(loader, ConfigLoaderImpl)
    sweepers = SweepLoader(loader, master)
    points = [["db=mysql", "seed=5"], ["model=cnn", "+new=[1,2]"], ["db=mysql", "~name"], ["model=nope"], ["no.key=1"]]
    hydras = [outcome(lambda point=point: loader.load_sweep_config(master, point)) for point in points]  # type: ignore[misc]
    assert [outcome(lambda point=point: sweepers.load_sweep_config(master, point)) for point in points] == hydras  # type: ignore[misc]
    another = master.copy()
    another.hydra.overrides.hydra.append("hydra.job.name=another")
    assert sweepers.load_sweep_config(another, ["seed=5"]).hydra.job.name == "another"
    assert sweepers.get_group_options("db") == loader.get_group_options("db")
    sent = copy.copy(sweepers)  # in the way of pickle; pickle itself minds what other tests have imported again
    assert type(sent) is ConfigLoaderImpl
    assert state(sent.load_sweep_config(master, points[0])) == hydras[0][0]
    calls = count_calls(loader, monkeypatch)
    sweepers.load_sweep_config(master, ["db=mysql", "seed=6"])
    assert calls == {"load": 0, "load_sweep_config": 0}


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
    assert calls == {"load": 1, "load_sweep_config": 0}
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
    assert calls == {"load": 0, "load_sweep_config": 0}
    loader, master = start(conf, "composed", [])
    assert_equal((loader, master, Composer(loader, master)), [f"hydra.searchpath=['file://{tmp_path}']", "+far=b"])


def test_another_loader_does_its_own(conf: Path) -> None:
    class Marking(ConfigLoaderImpl):
        def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
            cfg = super().load_sweep_config(master_config, sweep_overrides)
            cfg.name = "marked"
            return cfg

    loader, master = start(conf, "composed", [])
    composer = Composer(Marking(loader.get_search_path()), master)
    assert [cfg.name for cfg in composer.compose_all([[], ["seed=1"], ["model=cnn"]])] == ["marked"] * 3


@pytest.mark.skipif(not IS_14, reason="Hydra 1.3 has no aliases")
def test_aliases_are_replaced_once(conf: Path) -> None:
    write(conf, {"aliased.yaml": """
        defaults: [train, _self_]
        hydra: {aliases: {rate: optim.lr, optim.lr: optim.weight_decay}}
        """})  # fmt: skip
    loader, master = start(conf, "aliased", ["optim=sgd"])
    both = loader, master, Composer(loader, master)
    for point in (["optim.lr=0.5"], ["rate=0.5"], ["optim=adam", "optim.lr=0.5"]):
        assert_equal(both, point)
    assert both[2].compose(["optim.lr=0.5"]).optim.lr == 0.5


def test_a_job_keeps_the_launcher_of_its_sweep(conf: Path) -> None:
    """Hydra 1.4 refuses a job that changes it, Hydra 1.3 passes the change over."""
    write(conf, {
        "launching.yaml": "defaults: [train, place: here, _self_]",
        "place/here.yaml": "x: 1",
        "place/there.yaml": "# @package _global_\ndefaults: [override /hydra/launcher: basic]",
    })  # fmt: skip
    loader, master = start(conf, "launching", [])
    both = loader, master, Composer(loader, master)
    assert_equal(both, ["place=there", "seed=3"])
    (attempted,) = both[2].attempt_all([["place=there", "seed=3"]])
    assert isinstance(attempted, Exception) == IS_14


def test_no_primary_config(conf: Path) -> None:
    loader, master = start(conf, None, [])
    both = loader, master, Composer(loader, master)
    for point in ([], ["+db=mysql", "+x=1"], ["seed=1"]):
        assert_equal(both, point)
