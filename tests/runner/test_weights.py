"""Weights from files: ours and others', whole and in part, under revised names."""

from __future__ import annotations

import copy
import datetime
import json
import logging
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from trainyard.errors import ConfigError
from trainyard.fused.runner import FusedRunner
from trainyard.hooks.checkpoint import publish
from trainyard.models import CNN, MLP
from trainyard.runner import Runner, checkpoint
from trainyard.runner.weights import LoadFrom, load, load_from, read

State = dict[str, Tensor]


def mlp(num_classes: int = 3, seed: int = 0) -> MLP:
    """net.1 and net.3 are Linear: four tensors."""
    torch.manual_seed(seed)
    return MLP(2, num_classes, [4])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A plain state dict, as `torch.save(model.state_dict(), …)` writes it."""
    path = tmp_path / "plain.pth"
    torch.save(mlp(seed=1).state_dict(), path)
    return path


def begun(given: Any, model: nn.Module | None = None) -> Runner:
    """A Runner that has loaded what it begins with."""
    runner = Runner(
        mlp() if model is None else model,
        {"val": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.rand(4, 2), torch.arange(4) % 3))},
        load_from=given,
        hooks={},
        device="cpu",
    )
    runner.prepare("val")
    return runner


def same(state: Any, expected: Any) -> bool:
    return all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def failure(given: Any, model: nn.Module | None = None) -> str:
    with pytest.raises(ConfigError) as error:
        begun(given, model)
    return str(error.value)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        dict,
        lambda state: {"state_dict": state, "meta": {"epoch": 3}},
        lambda state: {"model": state, "optimizer": {}, "lr": 0.1},
        lambda state: {"model_state_dict": state, "model": "mlp"},
        lambda state: {"model": mlp().state_dict(), "eval_model": state},
        lambda state: {"state_dict": OrderedDict(state), "model": {"name": "mlp"}},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_every_origin(tmp_path: Path, wrap: Any, zipped: bool) -> None:
    state = mlp(seed=1).state_dict()
    torch.save(wrap(state), tmp_path / "file.pth", _use_new_zipfile_serialization=zipped)
    assert same(begun(tmp_path / "file.pth").model.state_dict(), state)
    assert same(begun({"path": str(tmp_path / "file.pth")}).model.state_dict(), state)


def test_a_published_file_and_a_checkpoint(tmp_path: Path) -> None:
    state = mlp(seed=1).state_dict()
    checkpoint.save(tmp_path / "best.pt", {"model": mlp().state_dict(), "eval_model": state, "epoch": 1})
    for path in (tmp_path / "best.pt", publish(tmp_path / "best.pt", tmp_path, "mine")):
        assert same(read(path), state)


def test_a_report_of_what_matched(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = mlp(num_classes=5)
    own = copy.deepcopy(model.state_dict())
    with caplog.at_level(logging.INFO):
        state = begun({"path": file, "strict": False}, model).model.state_dict()
    assert (
        f"Loaded the weights of {file}: 2 of 4 tensors loaded; "
        "different shapes: net.3.weight [3, 4] instead of [5, 4], net.3.bias [3] instead of [5]."
    ) in caplog.messages
    theirs = read(file)
    assert same(state, {name: (theirs if name.startswith("net.1") else own)[name] for name in own})


def test_everything_that_may_be_said(file: Path) -> None:
    weights = read(file)
    weights |= {f"head.{index}.weight": torch.ones(1) for index in range(5)}
    del weights["net.1.bias"]
    told = load(mlp(num_classes=5), weights, LoadFrom(file, strict=False, exclude=["net.3.bias"]))
    assert told == (
        "1 of 4 tensors loaded; not requested: 1; missing: net.1.bias; not in this model: head.0.weight, "
        "head.1.weight, head.2.weight and 2 more; different shapes: net.3.weight [3, 4] instead of [5, 4]"
    )


@pytest.mark.parametrize("revise", [{"backbone.": "", "x": "y"}, [[r"^backbone\.", ""], ["^x", "y"]]])
def test_revised_names(tmp_path: Path, revise: Any) -> None:
    state = mlp(seed=1).state_dict()
    torch.save({f"backbone.{name}": tensor for name, tensor in state.items()} | {"x": torch.ones(1)}, tmp_path / "a.pt")
    runner = begun(OmegaConf.create({"path": str(tmp_path / "a.pt"), "revise_keys": revise, "exclude": ["y"]}))
    assert same(runner.model.state_dict(), state)


def test_an_empty_beginning_is_put_before_all(tmp_path: Path) -> None:
    state = mlp(seed=1).net.state_dict()
    torch.save(state, tmp_path / "a.pt")
    runner = begun({"path": tmp_path / "a.pt", "revise_keys": {"": "net."}})
    assert same(runner.model.net.state_dict(), state)


def test_the_weights_of_the_network_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As timm, torchvision and transformers save them: without the `net.` that a model of ours has before them."""
    state = mlp(seed=1).net.state_dict()
    torch.save(state, tmp_path / "a.pt")
    with caplog.at_level(logging.INFO, "trainyard"):
        runner = begun(tmp_path / "a.pt")
    assert same(runner.model.net.state_dict(), state)
    assert "4 of 4 tensors loaded; with the prefix 'net.'." in caplog.text
    other = mlp(num_classes=5)
    begun({"path": tmp_path / "a.pt", "exclude": ["net.3"]}, other)
    assert same(other.net[1].state_dict(), {"weight": state["1.weight"], "bias": state["1.bias"]})
    assert "net.3.weight has shape [3, 4] instead of [5, 4]" in failure(tmp_path / "a.pt", mlp(5))
    torch.save({f"a.{name}": value for name, value in state.items()}, tmp_path / "a.pt")
    assert 'With load_from: {path: …, revise_keys: {a.: "net."}}, 4 of the 4' in failure(tmp_path / "a.pt")


def test_groups_of_a_pattern(tmp_path: Path) -> None:
    torch.save({f"layer{name[4:]}": value for name, value in mlp(seed=1).state_dict().items()}, tmp_path / "a.pt")
    runner = begun({"path": tmp_path / "a.pt", "revise_keys": [[r"^layer(\d+)\.", r"net.\1."]]})
    assert same(runner.model.state_dict(), mlp(seed=1).state_dict())


@pytest.mark.parametrize("rule", [{"exclude": ["net.3"]}, {"exclude": ["net.3.*"]}, {"include": ["net.1"]}])
def test_strict_is_about_what_is_asked_for(file: Path, rule: Any) -> None:
    model = mlp(num_classes=5)
    own = copy.deepcopy(model.state_dict())
    state = begun({"path": file, **rule}, model).model.state_dict()
    assert same(state, {name: (read(file) if name.startswith("net.1") else own)[name] for name in own})
    everything = ["net.1", "net.3"]
    assert "net.3.weight has shape [3, 4] instead of [5, 4]" in failure({"path": file, "include": everything}, mlp(5))


def test_the_advice_on_names_works(tmp_path: Path, file: Path) -> None:
    """A file that contains only a part of the model gets the prefix of this part, which `revise_keys` replaces."""
    within = {name.removeprefix("net.").replace("3.", "head."): value for name, value in read(file).items()}
    torch.save(within, tmp_path / "a.pt")
    told = failure(tmp_path / "a.pt")
    assert told.endswith(
        'With load_from: {path: …, revise_keys: {head.: "net.3.", "": "net."}}, 2 of the 2 missing tensors match.'
    )
    given = {"path": tmp_path / "a.pt", "revise_keys": {"head.": "net.3.", "": "net."}}
    assert same(begun(given).model.state_dict(), read(file))
    assert "revise_keys: {" not in failure(given | {"revise_keys": {"head.": "net.4.", "": "net."}})


def test_the_matching_tensors_alone_can_be_loaded(tmp_path: Path, file: Path) -> None:
    told = failure(file, mlp(5))
    assert told.endswith(" With load_from: {path: …, strict: false}, only the 2 matching tensors are loaded.")
    begun({"path": file, "strict": False}, mlp(5))
    assert "strict" not in failure({"path": file, "include": ["net.3"]}, mlp(5)), "nothing matches"


def test_what_does_not_fit_names_the_nearest(tmp_path: Path, file: Path) -> None:
    torch.save({name.replace("net", "nets"): value for name, value in read(file).items()}, tmp_path / "a.pt")
    told = failure(tmp_path / "a.pt")
    assert (
        "Expected a checkpoint of this model (MLP). This checkpoint differs from the model: net.1.weight is missing, "
        "net.1.bias is" in told
    )
    assert 'With load_from: {path: …, revise_keys: {nets.: "net."}}, 4 of the 4 missing tensors match.' in told
    torch.save({f"a.b.{name}": value for name, value in read(file).items()}, tmp_path / "a.pt")
    assert 'With load_from: {path: …, revise_keys: {a.b.: ""}}, 4 of the 4 missing tensors match.' in failure(
        {"path": tmp_path / "a.pt", "strict": False}
    )
    weights = read(file)
    weights["net.1.wieght"] = weights.pop("net.1.weight")
    torch.save(weights, tmp_path / "a.pt")
    assert "In this checkpoint, the name nearest to net.1.weight is net.1.wieght." in failure(tmp_path / "a.pt")


def test_nothing_at_all_fits(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(3)}, tmp_path / "a.pt")
    told = failure({"path": tmp_path / "a.pt", "strict": False})
    assert "net.1.weight is missing, net.1.bias is missing, net.3.weight is missing, and 2 more differences." in told


class _Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return open, (str(self.target), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_opening_a_file_runs_no_code(tmp_path: Path, zipped: bool) -> None:
    content = {"state_dict": mlp().state_dict(), "meta": _Evil(tmp_path / "ran")}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    if zipped:  # the object is skipped
        assert same(begun(tmp_path / "a.pt").model.state_dict(), mlp().state_dict())
    else:
        assert "contains objects other than tensors" in failure(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


class HistoryBuffer:
    """Holds arrays, as MMEngine's buffer of logged values does."""

    def __init__(self) -> None:
        self.history = np.ones(3)


def test_objects_in_a_file_are_skipped_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    state = mlp(seed=1).state_dict()
    meta = {"time": datetime.datetime.now(datetime.UTC), "mmengine_version": "0.10.7", "epoch": 3}
    logs = {"loss": HistoryBuffer(), "lr": HistoryBuffer()}
    torch.save({"meta": meta, "state_dict": state, "message_hub": {"log_scalars": logs}}, tmp_path / "a.pth")
    assert same(begun(tmp_path / "a.pth").model.state_dict(), state)
    assert "Skipped objects in" in caplog.text
    assert f"{HistoryBuffer.__module__}.HistoryBuffer" in caplog.text


def test_the_class_of_a_skipped_object_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("elsewhere")
    module.Buffer = type("Buffer", (), {"__module__": "elsewhere"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    torch.save({"state_dict": mlp(seed=1).state_dict(), "of": module.Buffer()}, tmp_path / "a.pth")
    monkeypatch.delitem(sys.modules, "elsewhere")  # to import it would fail
    assert same(begun(tmp_path / "a.pth").model.state_dict(), mlp(seed=1).state_dict())


def test_files_of_safetensors_and_folders_of_hugging_face(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    state = mlp(seed=1).state_dict()
    safetensors.save_file(state, tmp_path / "model.safetensors")
    assert same(begun(tmp_path / "model.safetensors").model.state_dict(), state)
    assert same(begun(tmp_path).model.state_dict(), state)
    names = list(state)
    (tmp_path / "model.safetensors").unlink()
    parts = {"a.safetensors": names[:2], "b.safetensors": names[2:]}
    for file, own in parts.items():
        safetensors.save_file({name: state[name] for name in own}, tmp_path / file)
    index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same(begun(tmp_path).model.state_dict(), state)
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:20])
    assert "not a complete safetensors file" in failure(tmp_path / "a.safetensors")
    assert "the path of a checkpoint that exists" in failure(tmp_path / "c.safetensors")
    assert failure(tmp_path / "c.safetensors").endswith(f"Trainyard looked in {str(tmp_path)!r}.")
    assert failure(tmp_path / "d" / "c.safetensors").endswith(f"The folder {str(tmp_path / 'd')!r} does not exist.")


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ("", "index.json cannot be read"),
        ("{", "index.json cannot be read"),
        ("[]", "has no mapping from tensors to files under 'weight_map'"),
        ("{}", "has no mapping from tensors to files under 'weight_map'"),
        ('{"weight_map": {}}', "has no mapping from tensors to files under 'weight_map'"),
        ('{"weight_map": ["a.bin"]}', "has no mapping from tensors to files under 'weight_map'"),
        ('{"weight_map": {"a": 3}}', "has no mapping from tensors to files under 'weight_map'"),
        ('{"weight_map": {"a": "absent.bin"}}', "its index lists absent.bin, which does not exist"),
        ('{"weight_map": {"a": "."}}', "is not complete: its index lists"),
        ('{"weight_map": {"a": "list.bin"}}', "list.bin contains no named tensors"),
    ],
)
def test_a_damaged_index_of_a_folder(tmp_path: Path, index: str, told: str) -> None:
    torch.save([torch.ones(3)], tmp_path / "list.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(index)
    message = failure(tmp_path)
    assert message.startswith(f"load_from: '{tmp_path}' is invalid. Expected a complete checkpoint.")
    assert told in message


def test_a_folder_without_weights(tmp_path: Path) -> None:
    files = "a sharded checkpoint (rest.pt) nor weights (model.safetensors or pytorch_model.bin)"
    assert failure(tmp_path).endswith(f"{tmp_path} is a folder, but contains neither {files}.")
    torch.save({}, tmp_path / "a.pt")
    assert failure(tmp_path).endswith(f"{files}. Specify a checkpoint in it, such as {tmp_path / 'a.pt'}.")


def test_safetensors_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.safetensors").touch()
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert "safetensors is missing. Install it with: pip install" in failure(tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", [torch.ones(3), {"epoch": 3}, {"model": {"layers": 3}}, [1], {}])
def test_a_file_without_weights(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pt")
    assert "contains no named tensors" in failure(tmp_path / "a.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_file(tmp_path: Path, zipped: bool) -> None:
    torch.save(mlp().state_dict(), tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:-150])
    assert "Expected a complete checkpoint" in failure(tmp_path / "a.pt")


def test_null_is_no_pattern() -> None:
    made = load_from({"path": "a", "include": None, "exclude": None})
    assert made is not None
    assert (made.include, made.exclude) == ([], [])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (3, "load_from: 3 is invalid. Expected the path of a checkpoint or weights file, a mapping with `path`, or "),
        ({"strict": False}, "load_from.path: None is invalid"),
        ({"path": 3}, "load_from.path: 3 is invalid"),
        (
            {"path": "a", "strct": False},
            "load_from: 'strct' is invalid. Expected one of the keys path, strict, revise_keys, ",
        ),
        ({"path": "a", "strct": False}, "Did you mean 'strict'?"),
        ({"path": "a", "strict": "no"}, "load_from.strict: 'no' is invalid. Expected true or false."),
        (
            {"path": "a", "revise_keys": "a"},
            "load_from.revise_keys: 'a' is invalid. Expected a mapping from name prefixes",
        ),
        ({"path": "a", "revise_keys": ["ab"]}, "load_from.revise_keys: ['ab'] is invalid"),
        (
            {"path": "a", "revise_keys": [["(", ""]]},
            "load_from.revise_keys: '(' is invalid. Expected a regular expression",
        ),
        (
            {"path": "a", "revise_keys": [["a(b)", r"\2"]]},
            r"load_from.revise_keys: '\2' is invalid. Expected a replacement for re.sub, which can refer",
        ),
        (
            {"path": "a", "revise_keys": [["a(?P<b>c)", r"\g<d>"]]},
            r"load_from.revise_keys: '\g<d>' is invalid. Expected a replacement for re.sub",
        ),
        ({"path": "a", "include": "net"}, "load_from.include: 'net' is invalid. Expected a list of patterns"),
    ],
)
def test_settings_that_cannot_work(given: Any, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_from(given)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        (
            {"revise_keys": {"nett.": ""}},
            "load_from.revise_keys: 'nett.' is invalid. Expected the prefix of a name in the file",
        ),
        (
            {"revise_keys": {"nett.": ""}},
            "Did you mean 'net.'? The file has net.1.weight, net.1.bias, net.3.weight and 1",
        ),
        (
            {"revise_keys": [["^x", ""]]},
            "load_from.revise_keys: '^x' is invalid. Expected a pattern that matches a name in the",
        ),
        ({"revise_keys": [[r"\d", "0"]]}, "two tensors of the file would be named net.0.weight"),
        (
            {"exclude": ["net.9"]},
            "load_from.exclude: 'net.9' is invalid. Expected a glob that matches the name of a tensor",
        ),
        ({"include": ["net.1.wieght"]}, "Did you mean 'net.1.weight'?"),
        ({"exclude": ["net"]}, "Expected patterns that leave at least one tensor of the model to load"),
    ],
)
def test_rules_that_fit_nothing(file: Path, rules: Any, told: str) -> None:
    assert told in failure({"path": file, **rules})


def test_nothing_is_asked_for() -> None:
    assert load_from(None) is None
    assert load_from("") is None


def test_members_of_a_group_load_in_part(file: Path) -> None:
    torch.save({f"old.{name}": tensor for name, tensor in read(file).items()}, file)
    config: dict[str, Any] = {
        "model": {"_target_": MLP, "in_features": 2, "num_classes": 2, "hidden": [4]},
        "data": {"_target_": "trainyard.data.Rings", "num_samples": 64, "batch_size": 16},
        "optim": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
        "loop": {"_target_": "trainyard.runner.IterBasedTrainLoop", "max_iters": 3},
        "freeze": ["net.1"],
        "load_from": {"path": str(file), "strict": False, "revise_keys": {"old.": ""}},
        "hook": {},
        "metric": {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        "device": "cpu",
    }
    configs = [config | {"seed": seed} for seed in range(2)]
    group = FusedRunner(configs)
    group.train()
    for solo, values in zip(group.members, configs, strict=True):
        alone = Runner.from_cfg(values)
        alone.train()
        state = solo.model.state_dict()
        for name, tensor in alone.model.state_dict().items():
            torch.testing.assert_close(state[name], tensor)
        assert torch.equal(state["net.1.weight"], read(file)["old.net.1.weight"]), "loaded, and frozen"


def test_fine_tuning_with_another_head(tmp_path: Path) -> None:
    """A network trained on ten digits begins another, for which only the head is learnt; its checkpoint resumes."""
    shared: dict[str, Any] = {
        "data": {"_target_": "trainyard.data.Digits", "batch_size": 128},
        "optim": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01},
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 1},
        "metric": {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        "hook": {"checkpoint": {"_target_": "trainyard.hooks.Checkpoint"}},
        "device": "cpu",
    }
    model = {"_target_": CNN, "in_channels": 1, "num_classes": 10, "channels": [4, 8]}
    first = Runner.from_cfg(shared | {"model": model, "work_dir": tmp_path / "first"})
    first.train()
    trunk = {name: tensor.clone() for name, tensor in first.model.state_dict().items() if "net.9" not in name}
    tuning = shared | {
        "model": {**model, "num_classes": 12},
        "work_dir": tmp_path / "second",
        "load_from": {"path": tmp_path / "first/checkpoints/best.pt", "exclude": ["net.9"]},
        "freeze": ["net.[0-8]"],
    }
    second = Runner.from_cfg(tuning)
    second.train()
    assert len(trunk) == 12
    assert same(second.model.state_dict(), trunk)
    assert second.members[0].metrics["val/loss"] < 2.5
    third = Runner.from_cfg(tuning | {"resume": True})
    third.prepare()
    assert same(third.model.state_dict(), dict(second.model.state_dict()))
