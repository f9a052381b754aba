"""A job in a worker gets what Hydra would give it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest
import yaml
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobStatus, run_job, setup_globals
from hydra.experimental.callback import Callback
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from trainyard.sweep import worker_tasks
from trainyard.sweep.compose.composer import Composer
from trainyard.sweep.job_configs import JobPlace, JobRecipe
from trainyard.sweep.sweepable import as_sweepable
from trainyard.track.sweep_position import SweepPosition

CONF = Path(__file__).parents[2] / "conf"


class Seen(Callback):
    """Callback that keeps what it is given."""

    def __init__(self) -> None:
        self.jobs: list[Any] = []

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.jobs.append(OmegaConf.to_container(config))

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        value = job_return._return_value
        self.jobs.append((job_return.status, value if job_return.status is JobStatus.COMPLETED else repr(value)))
        self.jobs.append(OmegaConf.to_container(job_return.cfg))
        self.jobs.append(OmegaConf.to_container(job_return.hydra_cfg))
        self.jobs.append((list(job_return.overrides), job_return.working_dir, job_return.task_name))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Any]:
    """Return a function that makes the config of a job in a folder, each time a new one."""
    state = Singleton.get_state()
    setup_globals()
    loader = Hydra.create_main_hydra2("test", create_config_search_path(str(CONF))).config_loader
    master = loader.load_configuration("train", [], RunMode.MULTIRUN)
    composer = Composer(loader, master)

    def made(folder: str) -> tuple[HydraContext, Seen, DictConfig]:
        overrides = ["optim.lr=0.5", "seed=3", "hydra.job.chdir=false", "+hydra.job.env_set={TOLD: yes}"]
        config = composer.compose(overrides)
        config.hydra.job.num, config.hydra.job.id = 7, "7"
        config.hydra.sweep.dir, config.hydra.sweep.subdir = str(tmp_path / folder), "7"
        callbacks, seen = Callbacks(), Seen()
        callbacks.callbacks.append(seen)
        return HydraContext(loader, callbacks), seen, config

    yield made
    Singleton.set_state(state)


def _told(text: str, folder: Path) -> str:
    return text.replace(str(folder), "FOLDER")


@pytest.mark.parametrize("fails", [False, True])
def test_a_job_is_run_as_by_hydra(make: Any, tmp_path: Path, fails: bool) -> None:
    found = {}
    for by in ("hydra", "us"):
        context, seen, config = make(by)
        got: list[Any] = []

        def function(cfg: DictConfig, got: list[Any] = got) -> float:
            import os

            got.append((OmegaConf.to_container(cfg, resolve=True), HydraConfig.get().runtime.output_dir))
            got.append((OmegaConf.is_struct(cfg), OmegaConf.is_readonly(HydraConfig.get()), os.environ["TOLD"]))
            if fails:
                raise ValueError("no")
            return 0.5

        try:
            if by == "hydra":
                returned = run_job(function, config, "hydra.sweep.dir", "hydra.sweep.subdir", context)
                got += [returned.return_value, str(returned.working_dir), str(returned.task_name)]
            else:
                done = worker_tasks.run_here(function, config, context)
                got += [done.return_value, done.working_dir, done.task_name]
        except ValueError as error:
            got.append(str(error))
        files = {file.name: file.read_text() for file in (tmp_path / by / "7" / ".hydra").iterdir()}
        loaded = {name: yaml.safe_load(_told(text, tmp_path / by)) for name, text in files.items()}
        found[by] = _told(repr((got, seen.jobs)), tmp_path / by), repr(sorted(loaded.items()))
    assert found["us"][0] == found["hydra"][0]
    assert found["us"][1] == found["hydra"][1]


def test_a_job_is_run_from_a_recipe_of_another_process(make: Any, tmp_path: Path) -> None:
    context, _, config = make("sent")
    composer = Composer(context.config_loader, config)
    found = composer.recipe(["optim.lr=0.25", f"hydra.sweep.dir={tmp_path}", "hydra.job.chdir=false"])
    assert found is not None
    recipe, shared = cloudpickle.loads(cloudpickle.dumps(found))
    application = as_sweepable(lambda cfg: cfg.optim.lr * len(HydraConfig.get().overrides.task))
    work = worker_tasks.JobWork(JobRecipe(recipe, JobPlace(3, tmp_path / "3", "3")), SweepPosition(None, (), "job"))
    common = worker_tasks.JobCommon(context, application, Singleton.get_state(), shared)
    assert worker_tasks.run_one(work, common).return_value == 0.25
    assert (tmp_path / "3" / ".hydra" / "config.yaml").exists()


def test_plugins_are_looked_up_once(make: Any) -> None:
    plugins = Plugins.instance()
    worker_tasks._take_over(lambda cfg: None, Singleton.get_state())
    first = Plugins.instance()
    worker_tasks._take_over(lambda cfg: None, Singleton.get_state())
    assert Plugins.instance() is first
    assert first is not None
    assert plugins is not None
