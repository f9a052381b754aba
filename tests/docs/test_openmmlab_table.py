"""docs/coming-from-openmmlab.md: every row has a test that exists, and every option in it can be given."""

import ast
import inspect
import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from trainyard import evaluate, inference, models, runner
from trainyard.config.build import build
from trainyard.config.hydra_versions import VERSION_BASE
from trainyard.config.schema import check
from trainyard.data import Rings
from trainyard.models import MLP
from trainyard.runner.dispatch import build_hooks

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/coming-from-openmmlab.md").read_text()
TABLES = PAGE[PAGE.index("## The tables") :]
OVERRIDE = re.compile(r"[+~]{0,2}[A-Za-z_][\w./@]*(=.*)?")
NAMES = {**vars(models), **vars(runner), "offline": evaluate.offline, "Predictor": inference.Predictor}


def rows() -> list[tuple[str, str]]:
    """Of each row, what is ours and its tests."""
    found = []
    for line in TABLES.splitlines():
        if line.startswith("| ") and not line.startswith("| OpenMMLab"):
            cells = re.split(r" \| ", line.strip("| "))
            comment = re.search(r"<!-- (.+?) -->", line)
            assert len(cells) == 3, line
            assert comment, f"no test: {line}"
            found.append((cells[1] + re.sub("<!--.*-->", "", cells[2]), comment.group(1)))
    return found


ROWS = rows()


@cache
def names_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def spans(kind: str) -> list[str]:
    """The code in our columns that is a list of overrides, or Python."""
    code = dict.fromkeys(span for ours, _ in ROWS for span in re.findall("`(.+?)`", ours))
    return [span for span in code if kind_of(span) == kind]


def kind_of(span: str) -> str:
    try:
        words = shlex.split(span)
    except ValueError:
        words = []
    if words and all(OVERRIDE.fullmatch(word) for word in words) and any("=" in w or w[0] == "~" for w in words):
        return "overrides"
    return "python" if re.match(r"(runner\.|[A-Z]\w+[.(]|offline\()", span) else "other"


def test_every_row_names_tests_that_exist() -> None:
    assert len(ROWS) > 100
    for ours, tests in ROWS:
        for test in tests.split():
            file, _, name = test.partition("::")
            assert (ROOT / file).exists(), f"{ours}: {file}"
            assert name in names_in(file), f"{ours}: {test}"
            assert name.startswith("test_")


def test_every_row_says_what_to_write() -> None:
    for ours, _ in ROWS:
        code = re.findall("`(.+?)`", ours)
        assert code or re.match("not needed|the same", ours), ours
    assert len(spans("overrides")) > 80
    assert len(spans("python")) > 10


MINE = """\
import torch
from trainyard.hooks import Hook
from trainyard.runner import EpochBasedTrainLoop, ValLoop

class MyHook(Hook): ...
class MyLoop(EpochBasedTrainLoop): ...
class MyValLoop(ValLoop): ...
class MySGD(torch.optim.SGD): ...

class MySet(torch.utils.data.Dataset): ...

class MyMetric:
    def process(self, data_batch, data_samples): ...
    def compute_metrics(self, results): ...

def make_optimizer(params, **arguments): ...
"""


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The config of a command line, of a user who has a module `mine`."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "mine.py").write_text(MINE)
    sys.path.insert(0, str(folder))
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), **VERSION_BASE):
        yield lambda overrides: compose(
            "train", overrides=[*shlex.split(overrides), "work_dir=null"], return_hydra_config="hydra." in overrides
        )
    sys.path.remove(str(folder))
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("overrides", spans("overrides"))
def test_every_option_can_be_given(composed: Any, overrides: str) -> None:
    """As before a run: each key is there, each class imports and takes its arguments; those of the parts fit too."""
    config = check(composed(overrides))
    build_hooks(config["hook"])
    for key in ("loop", "val_loop", "test_loop", "env", "strategy"):
        build(config.get(key), key)
    if "_target_" in (config["schedule"] or {}):
        build(config["schedule"], "schedule")


@pytest.fixture(scope="module")
def known() -> dict[str, object]:
    made = runner.Runner(MLP(2, 2, hidden=[2]), Rings(num_samples=20), loop=runner.EpochBasedTrainLoop(1), device="cpu")
    return {"runner": made}


@pytest.mark.parametrize("code", spans("python"))
def test_every_name_is_known(known: Any, code: str) -> None:
    tree = ast.parse(code.replace("…", "..."), mode="eval")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = eval(ast.unparse(node.value), {**NAMES, **known})
            assert hasattr(owner, node.attr), f"{code}: {node.attr}"
        if isinstance(node, ast.Call):
            called = eval(ast.unparse(node.func), {**NAMES, **known, "Accuracy": dict, "MyModel": dict})
            taken = inspect.signature(called).parameters if called is not dict else {}
            for keyword in node.keywords:
                assert keyword.arg in taken, f"{code}: {keyword.arg}"
