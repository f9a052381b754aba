"""Settings of the launcher `slurm`: what agents ask Slurm for, what slots they bring, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from trainyard.errors import ConfigError
from trainyard.sweep import agent_settings
from trainyard.sweep.executor.slurm import Resources, name_of, script
from trainyard.sweep.executor.slurm_commands import check_installed, clean
from trainyard.sweep.slurm_settings import SlurmSettings


def test_the_options_of_sbatch() -> None:
    resources = Resources("gpu", "lab", "low", 2, 8, 1.5, 90, "a100|h100", additional_parameters={"mail_type": "END"})
    assert resources.options() == {
        "partition": "gpu",
        "account": "lab",
        "qos": "low",
        "constraint": "a100|h100",
        "gpus-per-node": 2,
        "cpus-per-task": 8,
        "mem": "1536M",
        "time": 90,
        "mail-type": "END",
    }


def test_the_script_runs_the_agent_as_a_step_after_the_setup() -> None:
    options = {"time": 5, "requeue": True, "exclusive": False, "comment": "two words"}
    text = script(["python", "-c", "print('x')"], options, ["module load cuda"])
    assert text.splitlines() == [
        "#!/bin/bash",
        "#SBATCH --time=5",
        "#SBATCH --requeue",
        "#SBATCH --comment='two words'",
        "module load cuda",
        """exec srun --ntasks=1 --cpus-per-task=1 --unbuffered python -c 'print('"'"'x'"'"')'""",
    ]


def test_each_sweep_has_jobs_of_its_own_name() -> None:
    assert name_of(Path("/a")) == name_of(Path("/a")) != name_of(Path("/b"))


def test_a_job_takes_over_nothing_of_the_job_that_submits_it() -> None:
    variables = {"PATH": "p", "SLURM_CONF": "c", "SLURM_JOB_ID": "1", "SLURMD_NODENAME": "n", "SBATCH_TIMELIMIT": "1"}
    assert clean(variables) == {"PATH": "p", "SLURM_CONF": "c"}


@pytest.mark.parametrize(
    ("settings", "slots"),
    [
        ({}, [("cpu", 1)] * 8),
        ({"max_slots": 2, "cpus_per_task": 8, "threads_per_job": 4}, [("cpu", 4)] * 2),
        ({"max_slots": 4, "gpus_per_node": 2, "cpus_per_task": 8}, [("cuda:0", 4), ("cuda:1", 4)] * 2),
        ({"max_slots": 4, "gpus_per_node": 1, "jobs_per_gpu": 2, "cpus_per_task": 8}, [("cuda:0", 4)] * 4),
        ({"max_jobs": 3}, [("cpu", 1)] * 3),
    ],
)
def test_slots(settings: Any, slots: Any) -> None:
    found = SlurmSettings.from_config(settings).slots(continued=False)
    assert [(slot.device, slot.threads) for slot in found] == slots
    assert [slot.index for slot in found] == list(range(len(slots)))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"partion": "gpu"}, "Did you mean 'partition'?"),
        ({"max_slots": 0}, "hydra.launcher.max_slots: 0 is invalid. Expected "),
        ({"mem_gb": -1.0}, "hydra.launcher.mem_gb: -1.0 is invalid. Expected "),
        ({"mem_gb": "much"}, "hydra.launcher.mem_gb: 'much' is invalid. Expected a number of GB, or null."),
        (
            {"timeout_min": 2, "signal_delay_s": 61},
            "hydra.launcher.signal_delay_s: 61 is invalid. Expected an integer from 1 to 60 (seconds; one minute less "
            "than timeout_min=2).",
        ),
        ({"patience": 1.0}, "hydra.launcher.patience: 1.0 is invalid. Expected "),
        ({"transport": "http"}, "hydra.launcher.transport: 'http' is invalid. Expected tcp or files."),
        ({"partition": 3}, "hydra.launcher.partition: 3 is invalid. Expected a string, or null."),
        (
            {"setup": "module load"},
            "hydra.launcher.setup: 'module load' is invalid. Expected a list of strings, or null.",
        ),
        ({"detach": "yes"}, "hydra.launcher.detach: 'yes' is invalid. Expected true or false."),
        ({"additional_parameters": 3}, "hydra.launcher.additional_parameters: 3 is invalid. Expected "),
    ],
)
def test_what_cannot_be(settings: Any, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        SlurmSettings.from_config(settings)
    assert told in str(error.value)


def test_without_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="sbatch is not on the PATH"):
        check_installed()


def test_a_database_on_a_network_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused with what to do instead; a server, and a disk of this machine, are not."""
    monkeypatch.setattr(agent_settings, "network_disk", lambda path: f"nfs4 at {path}" if "home" in str(path) else None)
    settings = SlurmSettings()
    for uri in ("sqlite:////var/mlflow.db", "http://home:5000"):
        settings.check(OmegaConf.create({"tracker": {"uri": uri}}))
    settings.check(OmegaConf.create({"tracker": None}))
    settings.check(OmegaConf.create({}))
    with pytest.raises(ConfigError) as error:
        settings.check(OmegaConf.create({"tracker": {"uri": "sqlite:////home/me/mlflow.db"}}))
    assert "This database is on a network disk (nfs4 at /home/me/mlflow.db)" in str(error.value)
    with pytest.raises(ConfigError, match=r"^tracker\.uri: 'file:runs' is invalid"):
        settings.check(OmegaConf.create({"tracker": {"uri": "file:runs"}}))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////home/me/mlflow.db")
    with pytest.raises(ConfigError, match=r"^MLFLOW_TRACKING_URI: 'sqlite:////home/me/mlflow\.db' is invalid"):
        settings.check(OmegaConf.create({"tracker": {"uri": None}}))
