"""What Hydra writes for a job, written fast: the same when it is loaded."""

import logging
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from calls import calls
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import run_job, setup_globals
from hydra.types import HydraContext, RunMode
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from trainyard.config.plain import plain
from trainyard.config.yaml_text import yaml_text
from trainyard.sweep import member_log
from trainyard.sweep.compose.composer import Composer
from trainyard.sweep.compose.hydra_files import HydraFiles
from trainyard.sweep.compose.plain import assign
from trainyard.sweep.worker_tasks import LazyJobReturn

CONF = Path(__file__).parents[3] / "conf"
POINTS = [
    ["optim.lr=0.1", "seed=1"],
    ["optim.lr=1", "seed=2"],
    ["optim.lr=1e-3", "seed=3", "model.hidden=[3,4]", "+extra={a: [x, {b: null}], c: 'on', d: '1e3'}"],
    ["+name_of_it='two\nlines'", "+yes=true", "+empty={}", "+none=[]", "+long='" + "word " * 60 + "'"],
]


@pytest.fixture
def hydra() -> Iterator[Any]:
    state = Singleton.get_state()
    setup_globals()
    loader = Hydra.create_main_hydra2("test", create_config_search_path(str(CONF))).config_loader
    yield HydraContext(loader, Callbacks())
    Singleton.set_state(state)


@pytest.fixture
def configs(hydra: Any, tmp_path: Path) -> Any:
    master = hydra.config_loader.load_configuration("train", [], RunMode.MULTIRUN)
    configs = Composer(hydra.config_loader, master).compose_all(POINTS)
    for num, config in enumerate(configs):
        config.hydra.job.num, config.hydra.job.id = num, str(num)
        config.hydra.sweep.dir, config.hydra.sweep.subdir = str(tmp_path / "sweep"), str(num)
        config.hydra.runtime.output_dir = str(tmp_path / "sweep" / str(num))
    return configs


def test_the_files_load_as_hydras_own(hydra: Any, configs: Any, tmp_path: Path) -> None:
    files = HydraFiles()
    for config in configs:
        folder = Path(config.hydra.runtime.output_dir) / ".hydra"
        values = plain(config)
        assert values == OmegaConf.to_container(config)
        files.write(values, folder)
        ours = {file.name: file.read_text() for file in folder.iterdir()}
        run_job(lambda cfg: None, config, "hydra.sweep.dir", "hydra.sweep.subdir", hydra, configure_logging=False)
        theirs = {file.name: file.read_text() for file in folder.iterdir()}
        assert ours.keys() == theirs.keys() == {"config.yaml", "hydra.yaml", "overrides.yaml"}
        for name, text in theirs.items():
            assert OmegaConf.to_container(OmegaConf.load(folder / name)) == yaml.safe_load(ours[name]), name
            assert repr(yaml.safe_load(text)) == repr(yaml.safe_load(ours[name])), "in the order and type of each"


def test_the_second_job_takes_a_fraction(configs: Any, tmp_path: Path) -> None:
    files = HydraFiles()
    values = [plain(config) for config in configs[:2]]
    first = calls(lambda: files.write(values[0], tmp_path / "first"))
    second = calls(lambda: files.write(values[1] | {"seed": 7}, tmp_path / "second"))
    assert second < first / 5


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=20)),
    lambda below: st.one_of(
        st.lists(below, max_size=3), st.dictionaries(st.text("ab: #\n-'0", min_size=1, max_size=8), below, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=100)
@given(st.lists(st.dictionaries(st.sampled_from("abc"), values, max_size=3), min_size=1, max_size=4))
def test_any_values_load_as_they_were(points: Any) -> None:
    files = HydraFiles()
    for values in points:
        text = files._text(values)
        assert repr(yaml.safe_load(text)) == repr(yaml.safe_load(yaml_text(values)))


def test_a_config_becomes_another(configs: Any) -> None:
    pickled = pickle.dumps(configs[0])
    for config in configs:
        copy = pickle.loads(pickled)
        assign(copy, plain(config))
        assert plain(copy) == plain(config)
        assert list(copy) == list(config)
        HydraConfig.instance().cfg = copy
        assert copy.work_dir == config.hydra.runtime.output_dir, "interpolations are followed in it"
    assert plain(pickle.loads(pickled)) == plain(configs[0])


@dataclass
class Schema:
    """What is no dict, list or number in a config."""

    pair: tuple[int, int] = (1, 2)
    either: int | str = 3


def test_tuples_and_unions_of_a_schema(tmp_path: Path) -> None:
    config = OmegaConf.create({"own": Schema, "hydra": {"overrides": {"task": []}}})
    other = OmegaConf.create({"own": Schema(pair=(3, 4), either="x"), "hydra": {"overrides": {"task": []}}})
    for each in (config, other):
        assert plain(each) == OmegaConf.to_container(each)
    HydraFiles().write(plain(other), tmp_path)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"own": {"pair": [3, 4], "either": "x"}}
    assign(config, plain(other))
    assert config == other
    assert OmegaConf.get_type(config.own) is Schema


class _Member:
    def __init__(self, work_dir: Any) -> None:
        self.work_dir = work_dir


@pytest.fixture
def logging_kept() -> Iterator[Any]:
    root, handlers, level = logging.root, list(logging.root.handlers), logging.root.level
    yield
    root.handlers[:], root.level = handlers, level


def test_each_member_has_its_log(
    configs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], logging_kept: Any
) -> None:
    for config in configs:
        Path(config.hydra.runtime.output_dir).mkdir(parents=True)
    work_dirs = [tmp_path / "sweep" / str(num) for num in range(4)]
    configs[2].hydra.job.name = "other"
    member_log.configure(configs, work_dirs)
    log = logging.getLogger("some.place")
    log.info("for all")
    log.info("for %d", 1, extra={"member": _Member(work_dirs[1])})
    log.debug("for nobody")
    texts = [(tmp_path / "sweep" / name).read_text() for name in ("0/train.log", "1/train.log", "2/other.log")]
    assert ["for all" in text for text in texts] == [True, True, True]
    assert ["for 1" in text for text in texts] == [False, True, False]
    assert "[some.place][INFO] for 1\n" in texts[1], "in the format of the app"
    assert capsys.readouterr().out == "for all\n"


def test_a_jobs_return_has_its_configs(configs: Any) -> None:
    result = LazyJobReturn(configs[1], 0.5)
    assert result.return_value == 0.5
    assert result.overrides == POINTS[1]
    assert "hydra" not in result.cfg
    assert result.cfg.seed == 2
    assert list(result.hydra_cfg) == ["hydra"]
    assert pickle.loads(pickle.dumps(result)).cfg.seed == 2
