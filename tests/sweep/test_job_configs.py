"""Configs of jobs are dropped once they are checked, and composed again: the same ones, with the same place."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from trainyard.config.current_job import current_job
from trainyard.config.hydra_versions import VERSION_BASE
from trainyard.config.plain import children, plain
from trainyard.config.schema import check_settings
from trainyard.errors import ConfigError
from trainyard.sweep.compose.composer import Composer
from trainyard.sweep.directories import LONGEST
from trainyard.sweep.job_configs import JobConfigs
from trainyard.sweep.plan import plain_configs
from trainyard.sweep.sweepable import SweepableTask

CONF = Path(__file__).parents[2] / "conf"
POINTS = [
    *([f"model={model}", f"optim.lr={lr}", "seed=0"] for model in ("mlp", "cnn") for lr in (1, 2, 3)),
    ["optim={lr:0.5}", "model.hidden=[3]", "name=x"],
    ["optim={lr:0.25}", "model.hidden=[3]", "name=x"],
    ["optim.lr=oops", "+hydra.job.env_set.A=1"],
    ["hydra.job.chdir=true", "seed=5", "name=${seed}"],
    *([f"name=${{now:%f}}-{num}"] for num in range(3)),
]  # fmt: skip


class _App(SweepableTask):
    resumes = True

    def __init__(self) -> None:
        self.seen: list[str] = []

    def check(self, config: DictConfig) -> dict[str, Any]:
        self.seen.append(_text(config))
        return check_settings(config)


def _text(config: DictConfig) -> str:
    with current_job(config):
        return f"{OmegaConf.to_yaml(config)}{config.hydra.sweep.subdir} {check_settings(config)}"


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Any]:
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        loader: Any = GlobalHydra.instance().config_loader()

        def make(*command: str, limit: str = "", here: bool = True) -> Any:
            master = loader.load_configuration("train", list(command), RunMode.MULTIRUN)
            app = _App()
            return JobConfigs(Composer(loader, master), app, master, tmp_path / "s", 2, limit, here), app

        yield make


@pytest.mark.parametrize(
    "subdir", ["hydra.sweep.subdir=${hydra.job.num}", "hydra.sweep.subdir=lr${optim.lr}/${now:%f}"]
)
def test_the_config_at_the_start_is_the_one_that_was_checked(made: Any, tmp_path: Path, subdir: str) -> None:
    configs, app = made("tracker=none", subdir)
    recorded = {1: "elsewhere/1", 2: "elsewhere/2", 9: "elsewhere/9"}
    jobs = []
    for job, error in configs.checked(POINTS, range(len(POINTS)), recorded):
        assert error is None
        jobs.append(job)
    assert [job.num for job in jobs] == list(range(len(POINTS)))
    assert {str(job.directory.relative_to(tmp_path / "s")) for job in jobs} >= {*recorded.values()}
    for job, checked in zip(jobs, app.seen, strict=True):
        assert _text(job.config) == checked
        assert job.config is not job.config, "what is changed in one is not in the next"
        with current_job(config := job.config):
            assert job.values == check_settings(config)
        assert job.known_process is not None
        assert job.chdir == ("hydra.job.chdir=true" in job.overrides)
    assert list(plain_configs(jobs)) == [plain(job.config) for job in jobs]


def whole_configs() -> int:
    """The number of configs with their `hydra` node that are alive in this process."""
    gc.collect()
    return sum(type(each) is DictConfig and "hydra" in (children(each) or ()) for each in gc.get_objects())


def test_a_job_keeps_no_config_and_shares_what_is_equal(made: Any) -> None:
    configs, _ = made("tracker=none")
    before = whole_configs()  # those of other tests too
    points = [[f"optim.lr={lr}", f"seed={seed}"] for lr in (0.1, 0.2) for seed in range(20)]
    jobs = [job for job, _ in configs.checked(points, range(len(points)), {})]
    assert len({id(job.values["model"]) for job in jobs}) == 1
    assert len({id(job.values["optim"]) for job in jobs}) == 2
    assert whole_configs() - before < len(jobs) / 2


def test_errors_come_with_their_jobs(made: Any) -> None:
    configs, _ = made("tracker=none")
    points = [["seed=1"], ["seed=x"], ["sed=1"], ["seed=2"], ["hydra.sweep.subdir=../x"]]
    found = [(job.num, type(error).__name__) for job, error in configs.checked(points, range(3, 8), {})]
    assert found == [
        (3, "NoneType"), (4, "ConfigError"), (5, "ConfigCompositionException"), (6, "NoneType"), (7, "ConfigError"),
    ]  # fmt: skip


def test_a_job_that_takes_more_slots_than_there_are_is_told_why(made: Any) -> None:
    configs, app = made("tracker=none", limit="One agent has no more.")
    app.slots = lambda values, room: room + 1
    ((error, _),) = [(error, job) for job, error in configs.checked([["seed=1"]], [0], {})]
    told = "A job needs 3 slots, one for each device, but at most 2 can be used. One agent has no more."
    assert str(error) == told


def test_devices_of_this_machine_do_not_limit_jobs_that_run_elsewhere(made: Any) -> None:
    rooms: list[int] = []

    def slots(values: Any, room: int) -> int:
        rooms.append(room)
        return 3

    for here in (True, False):
        configs, app = made("tracker=none", here=here)
        app.slots = slots
        ((_, error),) = list(configs.checked([["seed=1"]], [0], {}))
        assert str(error) == "A job needs 3 slots, one for each device, but at most 2 can be used."
    assert rooms[0] == 2
    assert rooms[1] > 1000


def test_a_name_that_is_too_long_is_found_with_its_key(made: Any, tmp_path: Path) -> None:
    configs, app = made("tracker=none", "hydra.sweep.subdir=${hydra.job.override_dirname}")
    points = [[f"+note={'x' * (LONGEST - size)}"] for size in (len("+note=") - 1, len("+note="))]
    (_, error), (job, right) = configs.checked(points, range(2), {})
    assert right is None
    assert isinstance(error, ConfigError)
    told = "hydra.sweep.subdir: '${hydra.job.override_dirname}' is invalid. Expected names of at most 255 bytes between"
    assert str(error).startswith(told)
    assert "has 256" in str(error)
    assert "exclude_keys" in str(error)
    assert len(app.seen) == 1, "before the parts are checked"
    job.directory.mkdir(parents=True)
