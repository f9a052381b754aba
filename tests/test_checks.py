"""Checks of single values, and that every argument that is a number, an integer or a boolean goes through them."""

from __future__ import annotations

import inspect
import math
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.optim import SGD
from torch.utils.data import Dataset

import trainyard.data
import trainyard.distributed.ddp
import trainyard.distributed.fsdp
import trainyard.hooks
import trainyard.hooks.image_transforms
import trainyard.metrics
import trainyard.metrics.energy_distance
import trainyard.models
import trainyard.models.gan
import trainyard.optim
import trainyard.reinforcement
import trainyard.runner
import trainyard.runner.weights
import trainyard.schedules
import trainyard.step.clip
import trainyard.sweep.executor.policy
import trainyard.sweep.proposers.pruners
import trainyard.track
from trainyard.checks import boolean, choice, existing_file, integer, integers, is_integer, is_number, number
from trainyard.errors import ConfigError

SRC = Path(trainyard.data.__file__).parents[1]

NO_NUMBER = st.one_of(
    st.booleans(),
    st.none(),
    st.text(),
    st.binary(),
    st.lists(st.integers()),
    st.just(math.nan),
    st.complex_numbers(),
    st.sampled_from([np.True_, np.float32("nan"), np.arange(3), torch.tensor(True), torch.tensor(3.0)]),
)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


def refused(check: Any, *args: Any, **keywords: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        check("key", *args, **keywords)
    assert caught.value.key == "key"
    return caught.value.accepted


@given(*[st.integers(-(2**63), 2**63 - 1)] * 3)
def test_an_integer_within_the_bounds_is_returned_as_it_is(value: int, one: int, other: int) -> None:
    least, most = sorted((one, other))
    assert integer("key", value) == value
    assert is_integer(value, at_least=least, at_most=most) == (least <= value <= most)
    if least <= value <= most:
        assert integer("key", value, at_least=least, at_most=most) is value
    else:
        assert refused(integer, value, at_least=least, at_most=most) == f"an integer from {least} to {most}"


@given(FINITE, FINITE, FINITE)
def test_a_number_within_the_bounds_is_returned_as_it_is(value: float, one: float, other: float) -> None:
    least, most = sorted((one, other))
    assert number("key", value) == value
    assert is_number(value, at_least=least, at_most=most) == (least <= value <= most)
    assert is_number(value, above=least, below=most) == (least < value < most)
    if least <= value <= most:
        assert number("key", value, at_least=least, at_most=most) is value
    if not least < value < most:
        refused(number, value, above=least, below=most)


@given(st.integers(-(2**53), 2**53))
def test_an_integer_is_a_number(value: int) -> None:
    found = number("key", value)
    assert type(found) is float
    assert found == value


@given(NO_NUMBER)
def test_what_is_no_number(value: Any) -> None:
    assert refused(number, value, at_least=0) == "a number of at least 0"
    assert refused(number, value, finite=False) == "a number"
    assert refused(integer, value) == "an integer"
    assert not is_number(value, finite=False)
    assert not is_integer(value)
    assert refused(integers, [value], at_least=1) == "a list of integers, each of at least 1"


@given(st.one_of(st.integers(), FINITE, st.text(), st.none(), st.just(np.True_), st.just(torch.tensor(True))))
def test_what_is_no_boolean(value: Any) -> None:
    assert refused(boolean, value) == "true or false"


@pytest.mark.parametrize("value", [True, False])
def test_a_boolean_is_nothing_else(value: bool) -> None:
    assert boolean("key", value) is value
    for check in (integer, number, integers, existing_file):
        refused(check, value)
    refused(choice, value, ("True", "False", "1"))


@pytest.mark.parametrize("kind", [np.int8, np.uint64, np.int64])
def test_integers_of_numpy(kind: type[np.integer[Any]]) -> None:
    found = integer("key", kind(3), at_least=3)
    assert type(found) is int
    assert found == 3
    assert integers("key", (kind(1), 2), at_least=1, length=2) == [1, 2]


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), Fraction(1, 2)])
def test_numbers_of_other_kinds(value: Any) -> None:
    assert number("key", value) == 0.5
    refused(integer, value)


def test_infinity() -> None:
    assert refused(number, math.inf, at_least=0) == "a finite number of at least 0"
    assert refused(number, 10**400) == "a finite number"
    assert refused(number, -math.inf, at_least=0, finite=False) == "a number of at least 0"
    assert number("key", math.inf, above=0, finite=False) == math.inf
    refused(integer, math.inf)


@pytest.mark.parametrize(
    ("check", "bounds", "accepted"),
    [
        (integer, {"at_least": 1}, "an integer of at least 1"),
        (integer, {"at_most": 3}, "an integer of at most 3"),
        (integer, {"at_least": 1, "at_most": 65535}, "an integer from 1 to 65535"),
        (integer, {"at_least": 1, "other": "null to keep all"}, "an integer of at least 1, or null to keep all"),
        (number, {"above": 0, "below": 1}, "a number above 0 and below 1"),
        (number, {"above": 0, "at_most": 1}, "a number above 0 and of at most 1"),
        (number, {"at_least": 0, "below": 1}, "a number of at least 0 and below 1"),
        (number, {"above": 1e-6}, "a number above 1e-06"),
        (number, {"above": 0, "unit": "seconds", "other": "null"}, "a number of seconds above 0, or null"),
        (integers, {"at_least": 1, "length": 2}, "a list of integers, each of at least 1, with at least 2 elements"),
        (boolean, {"other": "null"}, "true or false, or null"),
        (choice, {"options": ("stop", "skip")}, "one of stop, skip"),
        (choice, {"options": {"a": 1, "b": 2}, "other": "null for both"}, "one of a, b, or null for both"),
    ],
)
def test_what_a_message_accepts(check: Any, bounds: dict[str, Any], accepted: str) -> None:
    assert refused(check, [None], **bounds) == accepted


def test_auto_that_nothing_fills_in() -> None:
    with pytest.raises(ConfigError, match="No value can be inferred for auto here"):
        integer("num_classes", "auto", at_least=1)


def test_a_choice_offers_the_nearest_name() -> None:
    assert choice("action", "stop", ("stop", "skip")) == "stop"
    with pytest.raises(ConfigError, match="Did you mean 'stop'"):
        choice("action", "stopp", ("stop", "skip"))


def test_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("x,y\n")
    assert existing_file("path", str(tmp_path / "table.csv")) == tmp_path / "table.csv"
    with pytest.raises(ConfigError, match=r"Did you mean '.*table\.csv'"):
        existing_file("path", str(tmp_path / "tabel.csv"))
    for place in (".", "/"):
        with pytest.raises(ConfigError, match=r"the path of an existing file\. '/.*' is a folder\.$"):
            existing_file("path", place)
    with pytest.raises(ConfigError, match=rf"Trainyard looked in '{tmp_path}'\.$"):
        existing_file("path", str(tmp_path / "x"))
    with pytest.raises(ConfigError, match=r"The folder .* does not exist"):
        existing_file("path", str(tmp_path / "nowhere" / "table.csv"))


def test_checks_need_no_torch() -> None:
    code = "import sys, trainyard.checks; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_other_file_words_such_a_check() -> None:
    bound = r"(?: of \w+)?(?: (?:above|below|of at least|of at most|from) [-\d.]+)?"
    message = re.compile(rf"""ConfigError\([^()]*["']an? (?:integer|number|whole number){bound}(?:, or [^"']*)?["']""")
    for path in SRC.rglob("*.py"):
        if path.name != "checks.py":
            found = message.search(path.read_text(encoding="utf-8"))
            assert found is None, f"{path}: {found.group()}"


# Every public class, with what it cannot be made without.
ROWS = torch.zeros(8, 2), torch.zeros(8, dtype=torch.int64)
PARAMETERS = [nn.Parameter(torch.zeros(2))]


class Labelled(Dataset[Any]):
    """A data set that tells the classes of its samples."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return index

    def get_cat_ids(self, index: int) -> list[int]:
        return [index % 2]


NEEDED: dict[str, dict[str, Any]] = {
    "ArrayData": {"sources": {"train": ROWS}, "spec": {}},
    "Augment": {"transforms": [torch.neg]},
    "ClassBalancedDataset": {"dataset": Labelled(), "oversample_thr": 0.1},
    "CNN": {"in_channels": 1, "num_classes": 2},
    "ClipGradNorm": {"max_norm": 1.0},
    "ClipGradValue": {"limit": 1.0},
    "CutMix": {"num_classes": 2},
    "DQN": {"net": nn.Linear(4, 2)},
    "DQNLoop": {"max_iters": 1, "environment": Labelled},
    "EpochBasedTrainLoop": {"max_epochs": 1},
    "EpochBatchSampler": {"n": 8, "batch_size": 2},
    "FirstSamples": {"dataset": Labelled(), "count": 2},
    "GAN": {"in_features": 2, "num_classes": 2},
    "Hyperband": {"last": 9},
    "ImageLoader": {"tensors": ROWS, "batch_size": 2},
    "IterBasedTrainLoop": {"max_iters": 1},
    "Lion": {"params": PARAMETERS},
    "LoadFrom": {"path": "last.pt"},
    "MLP": {"in_features": 2, "num_classes": 2},
    "Mixup": {"num_classes": 2},
    "Muon": {"params": PARAMETERS},
    "RandomChoice": {"choices": [nn.Identity(), nn.Identity()]},
    "RepeatDataset": {"dataset": Labelled(), "times": 2},
    "ResNet": {"in_channels": 1, "num_classes": 2},
    "SAM": {"params": PARAMETERS, "base": SGD},
    "TensorLoader": {"tensors": ROWS, "batch_size": 2},
    "Transformer": {"vocab_size": 4, "context_length": 4},
    "Supervised": {"net": nn.Identity()},
    "Unfreeze": {"at": {1: "net"}},
}
MODULES = (
    trainyard.data,
    trainyard.distributed.ddp,
    trainyard.distributed.fsdp,
    trainyard.hooks,
    trainyard.hooks.image_transforms,
    trainyard.metrics,
    trainyard.metrics.energy_distance,
    trainyard.models,
    trainyard.models.gan,
    trainyard.optim,
    trainyard.reinforcement,
    trainyard.runner,
    trainyard.runner.weights,
    trainyard.schedules,
    trainyard.step.clip,
    trainyard.sweep.executor.policy,
    trainyard.sweep.proposers.pruners,
    trainyard.track,
)
# What the framework makes itself, and data and models of libraries that are absent here.
LEFT_OUT = {"Best", "Member", "ReplayMemory", "Runner", "RunInfo", "RunShipment", "Shipment"}
LEFT_OUT |= {"Torchvision", "WindowLoader", "WorkerLoader", "ShardLoader", "TableEncoder"}
LEFT_OUT |= {"CosineAnnealingLR", "PolynomialLR"}  # those of torch, whose errors the builder explains
LEFT_OUT |= {"BytePairs", "HuggingFace", "Timm", "TorchvisionModel", "Transformers"}
LEFT_OUT |= {"help_topics"}  # a function
KEYS = {"max_norm": "clip_grad_norm", "limit": "clip_grad_value"}


def arguments(cls: type) -> Iterator[tuple[str, set[str], bool]]:
    """The arguments of numbers, integers or booleans: name, types, and whether it is a plain value."""
    for name, parameter in inspect.signature(cls).parameters.items():
        annotation = str(parameter.annotation)
        kinds = set(re.findall(r"\w+", annotation))
        if kinds & {"int", "float", "bool"} and not kinds & {"Callable", "Any"}:
            yield name, kinds, "[" not in annotation


def classes() -> Iterator[type]:
    for module in MODULES:
        for name in getattr(module, "__all__", None) or public(module):
            found = getattr(module, name)
            if inspect.isclass(found) and not inspect.isabstract(found) and name not in LEFT_OUT:
                yield found


def public(module: ModuleType) -> list[str]:
    found = vars(module).items()
    return [name for name, value in found if getattr(value, "__module__", "") == module.__name__ and name[0] != "_"]


def table() -> Iterator[Any]:
    """Each argument with the values that it is to refuse: none is of its type."""
    for cls in dict.fromkeys(classes()):
        for name, kinds, plain in arguments(cls):
            wrong: list[Any] = [[["x"]]]
            if "bool" not in kinds:
                wrong += [True, math.nan] + ([] if "float" in kinds else [1.5])
            elif plain and kinds <= {"bool", "None"}:
                wrong += [1, "yes", 0.0]
            wrong += [] if "None" in kinds else [None]
            wrong += [] if kinds & {"str", "Path"} else ["x"]
            yield pytest.param(cls, name, wrong, id=f"{cls.__name__}-{name}")


@pytest.fixture(scope="module")
def needed(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, dict[str, Any]]:
    """What a class cannot be made without, and small data in place of its default."""
    folder = tmp_path_factory.mktemp("data")
    np.savez(folder / "rows.npz", x=np.zeros((40, 2), np.float32), y=np.arange(40) % 2)
    (folder / "text.txt").write_text("abcd" * 100)
    np.arange(400, dtype=np.uint16).tofile(folder / "tokens.bin")
    for index in range(20):
        file = folder / "images" / f"class{index % 2}" / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(file)
    rows = str(folder / "rows.npz")
    return {
        **NEEDED,
        "Arrays": {"path": rows},
        "ImageFolder": {"path": str(folder / "images"), "image_size": 4},
        "Stream": {"shards": [rows], "target": "y", "num_classes": 2},
        "Text": {"path": str(folder / "text.txt"), "context_length": 4},
        "Tokens": {"path": str(folder / "tokens.bin"), "context_length": 4},
    }


@pytest.mark.parametrize(("cls", "name", "values"), list(table()))
def test_arguments_refuse_what_is_none_of_their_values(
    cls: type, name: str, values: list[Any], needed: Mapping[str, dict[str, Any]]
) -> None:
    cls(**needed.get(cls.__name__, {}))  # the rest can be
    for value in values:
        with pytest.raises(ConfigError) as caught:
            cls(**{**needed.get(cls.__name__, {}), name: value})
        assert caught.value.key.partition(".")[0] == KEYS.get(name, name), value


def test_the_table_holds_what_a_config_can_build() -> None:
    held = {cls.__name__ for cls in classes()} | LEFT_OUT
    conf = Path(__file__).parents[1] / "conf"
    texts = [path.read_text(encoding="utf-8") for path in conf.rglob("*.yaml")]
    targets = {target for text in texts for target in re.findall(r"_target_: (trainyard\.[\w.]+)", text)}
    assert targets, "no config names a class"
    missing = {target for target in targets if target.rpartition(".")[2] not in held}
    assert missing <= {"trainyard.distributed.Strategy"}, missing


@pytest.mark.parametrize("value", [True, -1, 1.5, "1", math.nan])
@pytest.mark.parametrize("name", ["seed", "accumulate"])
def test_the_runner_refuses_its_own_at_construction(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        trainyard.runner.Runner(nn.Identity(), **{name: value})
    assert caught.value.key == name


@pytest.mark.parametrize("value", [2**63, 10**30])
def test_integers_have_64_bits(value: int) -> None:
    """torch and NumPy overflow beyond them."""
    assert refused(integer, value, at_least=1) == f"an integer from 1 to {2**63 - 1}"
    assert integer("key", 2**63 - 1) == 2**63 - 1
