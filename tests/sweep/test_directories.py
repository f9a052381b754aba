"""Directories of a sweep's jobs: one of its own for each, inside the sweep's."""

import os
import sys
from pathlib import Path
from typing import Any

import forked
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict
from waiting import LIMIT

from trainyard.config.current_job import current_job
from trainyard.config.hydra_versions import VERSION_BASE
from trainyard.errors import ConfigError
from trainyard.sweep.directories import Places, check_name, job_directory
from trainyard.sweep.plan import Job

ROOT = Path(__file__).parents[2]


def _job(sweep: Path, num: int, *overrides: str, subdir: str = "${hydra.job.num}", work_dir: str | None = None) -> Job:
    with initialize_config_dir(str(ROOT / "conf"), **VERSION_BASE):
        config = compose("train", overrides=[*overrides, f"hydra.sweep.subdir={subdir}"], return_hydra_config=True)
    with open_dict(config):
        config.hydra.job.num = num
    with current_job(config):
        return Job(num, overrides, config, job_directory(config, sweep), work_dir=work_dir)


@pytest.mark.parametrize("subdir", ["../x", "../../x${hydra:job.num}", "/tmp/x", "a/../../b", ".", "a/.."])
def test_a_directory_outside_the_sweep_is_refused(tmp_path: Path, subdir: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _job(tmp_path / "sweep", 0, subdir=subdir)
    assert str(caught.value).startswith(
        f"hydra.sweep.subdir: {subdir!r} is invalid. Expected a directory inside the sweep directory"
    )


def test_the_value_of_an_interpolation_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\. The value resolves to '\.\./x'\. hydra\.sweep\.dir names"):
        _job(tmp_path / "sweep", 0, "name=../x", subdir="${name}")


def test_keys_that_are_excluded_from_another_name(tmp_path: Path) -> None:
    excluded = "hydra.job.config.override_dirname.exclude_keys=[seed]"
    jobs = [_job(tmp_path, num, f"seed={num}", excluded, subdir="a") for num in range(2)]
    ((_, error),) = Places().take(jobs)
    assert str(error).endswith("Add ${hydra:job.num} or ${seed} to hydra.sweep.subdir.")


def test_a_directory_inside_the_sweep(tmp_path: Path) -> None:
    assert _job(tmp_path, 3, "seed=1", subdir="${seed}/./a/../${hydra:job.num}").directory == tmp_path / "1/3"


def test_a_name_is_measured_in_bytes() -> None:
    config: Any = OmegaConf.create({"hydra": {"sweep": {"subdir": "é" * 200, "dir": "s"}}})
    with pytest.raises(ConfigError, match=r"has 400 bytes\. Use a shorter name, such as"):
        check_name(config, Path("s", "é" * 200))


def test_two_jobs_in_one_directory(tmp_path: Path) -> None:
    jobs = [_job(tmp_path, num, f"seed={num}", "optim.lr=0.1", subdir="lr${optim.lr}") for num in range(3)]
    (one, error), (other, same) = Places().take(jobs)
    assert (one.num, other.num) == (1, 2)
    assert same is error, "one report for all"
    assert str(error) == (
        "hydra.sweep.subdir: 'lr${optim.lr}' is invalid. Expected a separate directory for each job. Both #0 seed=0 "
        f"and #1 seed=1 would write to {tmp_path}/lr0.1. Add ${{hydra:job.num}} or ${{seed}} to hydra.sweep.subdir."
    )
    places = Places()
    assert places.take(jobs[:1]) == []
    assert [job.num for job, _ in places.take(jobs[1:2])] == [1], "of a later batch"
    assert Places().take([_job(tmp_path, num, "seed=0") for num in range(3)]) == []


def test_two_models_in_one_directory(tmp_path: Path) -> None:
    jobs = [_job(tmp_path, num, f"model={name}", subdir="a") for num, name in enumerate(("mlp", "cnn"))]
    ((_, error),) = Places().take(jobs)
    assert "Add ${hydra:job.num} or ${hydra:runtime.choices.model} to hydra.sweep.subdir." in str(error)


def test_two_trainings_in_one_work_dir(tmp_path: Path) -> None:
    jobs = [_job(tmp_path, num, f"seed={num}", work_dir="outputs/mine") for num in range(2)]
    ((_, error),) = Places().take(jobs)
    assert str(error).startswith("work_dir: 'outputs/mine' is invalid. Expected a separate directory for each job.")
    other = _job(tmp_path, 1, "seed=1", work_dir=str(tmp_path / "0"))
    assert [job.num for job, _ in Places().take([_job(tmp_path, 0, "seed=0"), other])] == [1]
    apart = [
        _job(tmp_path, num, f"seed={num}", "hydra.job.chdir=true", work_dir="outputs/mine") for num in range(2)
    ]  # fmt: skip
    assert Places().take(apart) == [], "each job changes to its own directory first"


def test_nothing_starts(tmp_path: Path) -> None:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "HYDRA"))}
    sweep = forked.run(
        [
            sys.executable, str(ROOT / "train.py"), "-m", "tracker=none", "seed=0,1", "optim.lr=1e-3,1e-2",
            "hydra.sweep.dir=sweep", "hydra.sweep.subdir=${hydra.job.override_dirname}",
            "hydra.job.config.override_dirname.exclude_keys=[seed,tracker]",
        ],
        cwd=tmp_path, env=clean | {"PYTHONPATH": str(ROOT / "src"), "COLUMNS": "500"}, timeout=LIMIT,
    )  # fmt: skip
    assert sweep.returncode == 2
    assert "'${hydra.job.override_dirname}' is invalid. Expected a separate directory for each job." in sweep.stderr
    assert "remove seed from hydra.job.config.override_dirname.exclude_keys" in sweep.stderr
    assert "in 2 of 4 jobs, first in #2: seed=1 optim.lr=0.001" in sweep.stderr
    assert list(tmp_path.iterdir()) == []
