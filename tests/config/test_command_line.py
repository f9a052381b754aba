"""Arguments of a command line, as Hydra is given them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainyard.config.command_line import arranged
from trainyard.errors import TrainyardError

FLAGS = st.sampled_from(
    [["-m"], ["--multirun"], ["--config-dir", "conf"], ["--config-name=own"], ["-cd", "own"], ["--resolve"]]
)
OVERRIDES = st.sampled_from([["seed=1"], ["~optim"], ["+a.b=-1"], ["model=mlp"], ["hydra.run.dir=x"]])


@given(st.lists(FLAGS), st.lists(OVERRIDES), st.randoms(use_true_random=False))
def test_flags_may_stand_anywhere(flags: list[list[str]], overrides: list[list[str]], random: object) -> None:
    mixed = [*flags, *overrides]
    random.shuffle(mixed)  # type: ignore[attr-defined]
    found = arranged([argument for group in mixed for argument in group])
    assert found == [
        *(argument for group in mixed if group in flags for argument in group),
        *(argument for group in mixed if group in overrides for argument in group),
    ]


def test_an_optional_value_of_a_flag() -> None:
    assert arranged(["seed=1", "--info", "searchpath"]) == ["--info", "searchpath", "seed=1"]
    assert arranged(["--info", "seed=1"]) == ["--info", "seed=1"]
    assert arranged(["seed=1", "--cfg", "job", "model=mlp"]) == ["--cfg", "job", "seed=1", "model=mlp"]


@pytest.mark.parametrize("flag", ["-cp", "--config-path"])
def test_a_relative_folder_of_configs_starts_at_the_current_folder(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert arranged(["seed=1", flag, "conf"]) == [flag, f"{tmp_path}/conf", "seed=1"]
    assert arranged([f"{flag}=../conf", "seed=1"]) == [f"{flag}={tmp_path.parent}/conf", "seed=1"]
    for other in ("/conf", "pkg://mine.conf"):
        assert arranged([flag, other]) == [flag, other]
    assert arranged(["--config-dir", "conf"]) == ["--config-dir", "conf"], "Hydra takes it from the current folder"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["optim=sgd,rmsprop", "optim.momentum=0.9"], ["optim=sgd,rmsprop", "optim.momentum=choice(0.9)"]),
        (["model=mlp,cnn", "++model.a.b=[1,2]"], ["model=mlp,cnn", "++model.a.b=choice([1,2])"]),
        (["optim=sgd", "optim.momentum=0.9"], ["optim=sgd", "optim.momentum=0.9"]),
        (["optim=sgd,adam", "optim.lr=1,2", "optimal.x=1"], ["optim=sgd,adam", "optim.lr=1,2", "optimal.x=1"]),
        (["optim=sgd,adam", "~optim.lr"], ["optim=sgd,adam", "~optim.lr"]),
        (["optim=sgd,adam", "optim.lr=[1"], ["optim=sgd,adam", "optim.lr=[1"]),
    ],
)
def test_keys_of_a_swept_group(given: list[str], found: list[str]) -> None:
    assert arranged(["-m", *given]) == ["-m", *found]
    assert arranged(given) == given


def test_abbreviated_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for flags in (["--config-pa", "conf"], ["--config-p=conf"]):
        assert "=".join(arranged(["seed=1", *flags])[:-1]) == f"--config-path={tmp_path}/conf"
    assert arranged(["optim=sgd,adam", "--multi", "optim.lr=1"]) == [
        "--multirun",
        "optim=sgd,adam",
        "optim.lr=choice(1)",
    ]
    assert arranged(["seed=1", "--config"]) == ["--config", "seed=1"], "ambiguous: Hydra reports it"


def test_the_config_of_a_sweep() -> None:
    with pytest.raises(TrainyardError, match="omit -m"):
        arranged(["seed=0,1", "-m", "--cfg", "job"])
