"""Calls whose paths mean the same in the folders of two machines."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from trainyard.sweep.compose.composer import _Copier
from trainyard.sweep.compose.recipe import Shared
from trainyard.sweep.executor.shipping import portable
from trainyard.sweep.executor.shipping.portable import Folders

HEAD = Folders(("/home/me/p/multirun/1", "/home/me/p/multirun/1"), {"/home/me/p": "/home/me/p"})


@dataclass
class Part:
    path: Path
    name: str


def carried(value: Any, there: Folders, here: Folders = HEAD) -> Any:
    return portable.load(io.BytesIO(portable.dumps(value, here)), there)


def test_paths_are_those_of_the_machine_that_opens_them(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    node = Folders(("/home/me/p/multirun/1", "/scratch/1"), {"/home/me/p": str(tmp_path)})
    given = {
        "text": "/home/me/p/multirun/1/0",
        "/home/me/p/multirun/1": Path("/home/me/p/multirun/1"),
        "part": Part(Path("/home/me/p/train.py"), "/home/me/p/data"),
        "config": OmegaConf.create({"hydra": {"dir": "/home/me/p/multirun/1", "lr": 0.1}}),
        "call": lambda: "/home/me/p/multirun/1",
        "other": ["/home/me/p/multirun/12", "/data/home/me/p", 3],
    }
    found = carried(given, node)
    assert found["text"] == "/scratch/1/0"
    assert found["/scratch/1"] == Path("/scratch/1")
    assert found["part"] == Part(tmp_path / "train.py", "/home/me/p/data")  # data is at its own place
    assert found["config"] == {"hydra": {"dir": "/scratch/1", "lr": 0.1}}
    assert found["call"]() == "/scratch/1"
    assert found["other"] == given["other"]
    back = carried({"dir": "/scratch/1/0", "file": tmp_path / "train.py"}, Folders(), node)
    assert back == {"dir": "/home/me/p/multirun/1/0", "file": Path("/home/me/p/train.py")}


@settings(max_examples=30)
@given(st.recursive(st.one_of(st.text("/ab"), st.integers(), st.none()), st.lists))
def test_other_values_stay_as_they_are(value: Any) -> None:
    folders = Folders(("/a", "/a"), {"/b": "/b"})
    assert carried(value, Folders(), folders) == value


def test_what_jobs_share_has_the_paths_of_the_machine_that_makes_their_configs() -> None:
    config = OmegaConf.create({"sweep": "/home/me/p/multirun/1", "hydra": {"overrides": {"task": []}}})
    shared = Shared(_Copier(config), 0)
    found = carried(shared, Folders(("/home/me/p/multirun/1", "/scratch/1")))
    assert found.copy().sweep == "/scratch/1"
    assert shared.copy() == config
    assert shared.copy() is not config


def test_without_folders_nothing_is_changed() -> None:
    assert carried(["/home/me", Path("/x")], Folders(), Folders()) == ["/home/me", Path("/x")]
