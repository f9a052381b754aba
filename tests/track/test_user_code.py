"""The user's files that go along with a logged model, and its predictions in each form that MLflow asks for."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from trainyard.errors import ConfigError
from trainyard.track.shipper.served_model import ServedModel
from trainyard.track.shipper.user_code import copy, files_of, modules_of

FILES = {
    "train.py": "import own.nets",
    "own/__init__.py": "import torch",
    "own/nets.py": "from . import layers\nfrom .parts.heads import Head\nimport numpy",
    "own/layers.py": "def layer():\n    import tools.extra as extra\n    return extra",
    "own/unused.py": "",
    "own/parts/heads.py": "from ..blocks import Block\nfrom trainyard.models import MLP",
    "own/blocks/__init__.py": "from own.blocks.block import Block",
    "own/blocks/block.py": "class Block: ...",
    "tools/extra.py": "from shared import constants",
    "tools/broken.py": "def",
}


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    for name, text in FILES.items():
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in ("shared.py", "own/nets.py", "numpy_of_mine.py"):  # a later folder does not come before an earlier one
        path = tmp_path / "library" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("constants = {}")
    return [tmp_path / "project", tmp_path / "library"]


def test_the_files_are_those_that_are_imported(folders: list[Path], tmp_path: Path) -> None:
    found = files_of(["own.nets.Net", "torch.nn.Linear", "trainyard.models.MLP", "tools.broken"], folders)
    expected = {
        "own/__init__.py",
        "own/blocks/__init__.py",
        "own/blocks/block.py",
        "own/layers.py",
        "own/nets.py",
        "own/parts/heads.py",
        "shared.py",
        "tools/broken.py",
        "tools/extra.py",
    }
    assert {str(place) for place in found} == expected
    assert found[Path("own/nets.py")] == folders[0] / "own/nets.py"
    paths = copy(found, tmp_path / "code")
    assert paths == [str(tmp_path / "code" / name) for name in ("own", "shared.py", "tools")]
    assert {str(file.relative_to(tmp_path / "code")) for file in (tmp_path / "code").rglob("*.py")} == expected
    assert copy({}, tmp_path / "nothing") == []


def test_the_modules_are_those_of_the_classes_and_targets() -> None:
    config = {"model": {"_target_": "own.nets.Net", "layers": [{"_target_": "own.layers.Layer", "size": 3}]}, "seed": 1}
    found = modules_of(nn.Sequential(nn.Linear(2, 2)), config)
    assert found == {"own.nets.Net", "own.layers.Layer", "torch.nn.modules.container", "torch.nn.modules.linear"}
    assert modules_of(nn.Identity(), None) == {"torch.nn.modules.linear"}


def test_predictions_have_the_form_that_is_asked_for() -> None:
    net = nn.Linear(2, 3)
    x = np.ones((4, 2), dtype=np.float32)
    served = ServedModel(net, lambda net, inputs: net(inputs))
    expected = net(torch.ones(4, 2)).detach().numpy()
    assert np.array_equal(served.predict(x), expected)
    table = served.predict(pd.DataFrame(x.astype(np.float64), index=[5, 6, 7, 8]))
    assert list(table.index) == [5, 6, 7, 8]
    assert np.array_equal(table.to_numpy(), expected)
    several = ServedModel(net, lambda net, inputs: {"scores": net(inputs["x"]), "parts": (inputs["x"], None)})
    found = several.predict({"x": x})
    assert np.array_equal(found["scores"], expected)
    assert np.array_equal(found["parts"][0], x)
    assert served.get_raw_model() is net


def test_a_table_with_a_number_beyond_float32_is_rejected() -> None:
    served = ServedModel(nn.Identity(), lambda net, inputs: net(inputs))
    expected = r"inputs: 1e\+39 is invalid. Expected numbers within the range of float32. Index: \[1, 0\]\."
    with pytest.raises(ConfigError, match=expected):
        served.predict(pd.DataFrame({"a": [0.0, 1e39], "b": [1, 2]}))
    assert served.predict(pd.DataFrame({"a": [np.inf, np.nan]}))[0].tolist()[0] == np.inf
