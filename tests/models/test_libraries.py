"""Models of timm, torchvision and transformers. Where a library is not installed, its tests are skipped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trainyard
from trainyard.config.build import fill_auto
from trainyard.data import ArrayData
from trainyard.errors import ConfigError, TrainyardError
from trainyard.fused.runner import FusedRunner
from trainyard.models import Supervised, Timm, TorchvisionModel, Transformers
from trainyard.models.libraries import library, made
from trainyard.models.transformers import cross_entropy
from trainyard.runner import Runner

BERT = {
    "model_type": "bert",
    "vocab_size": 20,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 8,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 20, "n_embd": 8, "n_head": 2, "n_layer": 1}
GPT2 |= {"bos_token_id": 0, "eos_token_id": 0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def installed(name: str) -> Any:
    try:
        return pytest.importorskip(name, exc_type=ImportError)
    except RuntimeError as error:  # as torchvision beside another torch
        pytest.skip(f"{name} does not import: {error}")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network, and empty caches."""
    for module in ("huggingface_hub.constants", "huggingface_hub.file_download"):
        if module in sys.modules:
            monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True, raising=False)
            monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path), raising=False)
            monkeypatch.setattr(f"{module}.is_offline_mode", lambda: True, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy"):  # where nothing listens
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    return tmp_path


class OwnLoss(nn.Module):
    """Takes `labels` and computes its loss, as models of transformers do."""

    def __init__(self, computes: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.computes = computes

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.layer(x)
        loss = None if labels is None or not self.computes else 7 * cross_entropy(logits, labels)
        return SimpleNamespace(logits=logits, loss=loss)


def test_a_network_that_computes_its_loss_trains_as_it_is() -> None:
    net, x, y = OwnLoss(), torch.randn(5, 4), torch.tensor([0, 1, 2, -100, 1])
    model = Supervised(net)
    torch.testing.assert_close(model.train_step({"x": x, "labels": y})["loss"], net(x, y).loss)
    torch.testing.assert_close(model.val_step({"x": x, "labels": y}), net.layer(x))
    assert isinstance(model(x=x, labels=y, mode="tensor"), SimpleNamespace)
    torch.testing.assert_close(model.train_step((x, y))["loss"], nn.functional.cross_entropy(net.layer(x), y))
    given = Supervised(net, cross_entropy).train_step({"x": x, "labels": y})
    torch.testing.assert_close(given["loss"], cross_entropy(net.layer(x), y))


def test_an_output_without_loss_is_named() -> None:
    with pytest.raises(TrainyardError, match="OwnLoss takes 'labels', but returned a SimpleNamespace"):
        Supervised(OwnLoss(computes=False)).train_step({"x": torch.ones(1, 4), "labels": torch.tensor([0])})


def test_labels_of_tokens_are_counted() -> None:
    x, y = torch.randn(2, 3, 4), torch.tensor([[0, -100, 1], [2, 2, -100]])
    assert Supervised(OwnLoss()).train_step({"x": x, "labels": y})["num_items"] == 4


def test_auto_or_null_is_null_where_the_data_does_not_say() -> None:
    config = {"num_classes": "auto_or_null", "vocab_size": "auto_or_null"}
    assert fill_auto(config, "model", {"num_classes": 4}) == {"num_classes": 4, "vocab_size": None}
    assert fill_auto(config, "model", None) == {"num_classes": None, "vocab_size": None}


@pytest.mark.parametrize(
    ("module", "extra", "make"),
    [
        ("timm", "timm", lambda: Timm("resnet18", 2)),
        ("torchvision.models", "vision", lambda: TorchvisionModel("resnet18", 2)),
        ("transformers", "transformers", lambda: Transformers("causal_lm")),
    ],
)
def test_an_absent_library(monkeypatch: pytest.MonkeyPatch, module: str, extra: str, make: Any) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"is missing. Install it with: pip install 'trainyard\[{extra}\]'"):
        make()


# -- timm --------------------------------------------------------------------------------------------------------------


def test_timm() -> None:
    installed("timm")
    model = Timm("resnet10t", 5, in_channels=1, drop_rate=0.1).eval()
    assert model.val_step(torch.rand(2, 1, 32, 32)).shape == (2, 5)
    model.train_step((torch.rand(2, 1, 32, 32), torch.tensor([0, 4])))["loss"].backward()


def test_weights_of_a_file_in_timm(tmp_path: Path) -> None:
    timm = installed("timm")
    weights = timm.create_model("resnet10t").state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    model = Timm("resnet10t", 5, pretrained=str(tmp_path / "weights.pth")).eval()
    torch.testing.assert_close(model.net.layer1[0].conv1.weight, weights["layer1.0.conv1.weight"])
    assert model.val_step(torch.rand(1, 3, 32, 32)).shape == (1, 5)


def test_what_timm_does_not_have(offline: Path) -> None:
    installed("timm")
    for arguments, message in [
        ({"name": "resnet1"}, "name: 'resnet1' is invalid. Expected the name of a timm model .* Did you mean 'resnet1"),
        ({"drop_rat": 1}, "drop_rat: 1 is invalid. Expected an argument that timm's resnet10t accepts"),
        ({"pretrained": "absent.pth"}, "pretrained: 'absent.pth' is invalid. Expected the path of an existing file"),
        (
            {"pretrained": True},
            r"copy the folder models--timm--resnet10t.c3_in1k from .*, or set `pretrained` to the path of a weights",
        ),
    ]:
        with pytest.raises(ConfigError, match=message):
            Timm(**{"name": "resnet10t", "num_classes": 2, **arguments})


def test_an_import_of_a_library_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lacks_one.py").write_text("import absent_dependency")
    (tmp_path / "too_old.py").write_text("raise ImportError('torch>=99 is required.')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"library; absent_dependency, which lacks_one imports, is missing\. Install"):
        library("lacks_one", "timm")
    with pytest.raises(ConfigError, match=r"failed: torch>=99 is required\. Install a version that is compatible with"):
        library("too_old", "timm")


def test_an_argument_that_a_model_of_a_library_does_not_accept() -> None:
    with pytest.raises(ConfigError, match=r"biass: 1 is invalid\. Expected an argument that torch's Linear accepts"):
        made(lambda name, **arguments: torch.nn.Linear(1, 2, **arguments), "Linear", {"biass": 1}, of="torch")
    with pytest.raises(TypeError, match="inside"):  # an error of the library's own code
        made(lambda name, bias: torch.nn.Linear(1, 2, inside=bias), "Linear", {"bias": 1}, of="torch")


# -- torchvision -------------------------------------------------------------------------------------------------------


def test_torchvision() -> None:
    installed("torchvision")
    model = TorchvisionModel("squeezenet1_1", 5, in_channels=1, dropout=0.1).eval()
    assert model.val_step(torch.rand(2, 1, 32, 32)).shape == (2, 5)


def test_what_torchvision_does_not_have(offline: Path) -> None:
    installed("torchvision")
    for arguments, message in [
        ({"name": "resnet19"}, "name: 'resnet19' is invalid. .* Did you mean 'resnet1"),
        ({"dropuot": 1}, "dropuot: 1 is invalid. Expected an argument that torchvision's resnet18 accepts"),
        (
            {"weights": "IMAGENET"},
            "weights: 'IMAGENET' is invalid. Expected null, or weights of resnet18: DEFAULT, IMAGE",
        ),
        ({"weights": "DEFAULT"}, f"place the file at {offline}/hub/checkpoints/resnet18-f37072fd.pth"),
    ]:
        with pytest.raises(ConfigError, match=message):
            TorchvisionModel(**{"name": "resnet18", "num_classes": 2, **arguments})


# -- transformers ------------------------------------------------------------------------------------------------------


def test_a_classifier_of_sequences() -> None:
    installed("transformers")
    model = Transformers("sequence_classification", config=BERT, num_classes=3).eval()
    batch = {"input_ids": torch.randint(20, (2, 6)), "attention_mask": torch.ones(2, 6, dtype=torch.int64)}
    labels = torch.tensor([0, 2])
    logits = model.val_step(batch | {"labels": labels})
    assert logits.shape == (2, 3)
    own = model.train_step(batch | {"labels": labels})["loss"]
    torch.testing.assert_close(own, nn.functional.cross_entropy(logits, labels))
    torch.testing.assert_close(model.train_step((batch["input_ids"], labels))["loss"], own)


def test_a_causal_model_predicts_at_the_positions_of_its_labels() -> None:
    installed("transformers")
    model = Transformers("causal_lm", config=GPT2)
    tokens = torch.randint(20, (2, 6))
    labels = tokens.clone()
    labels[:, 0] = -100
    losses = model.train_step({"input_ids": tokens, "labels": labels})
    assert losses["num_items"] == 10
    predicted = model.val_step({"input_ids": tokens, "labels": labels})
    torch.testing.assert_close(losses["loss"], cross_entropy(predicted, labels))
    shifted = model.train_step((tokens[:, :-1], tokens[:, 1:]))["loss"]
    torch.testing.assert_close(shifted, losses["loss"])


@pytest.mark.parametrize("entries", [BERT, GPT2 | {"pad_token_id": 0}], ids=["bert", "gpt2"])
def test_seeds_stack_whatever_their_masks(entries: dict[str, Any]) -> None:
    installed("transformers")
    lengths = torch.arange(16) % 5 + 2
    mask = (torch.arange(6) < lengths[:, None]).long()
    columns = {"input_ids": torch.randint(1, 20, (16, 6)) * mask, "attention_mask": mask, "labels": lengths % 3}

    def config(seed: int) -> dict[str, Any]:
        return {
            "model": {"_target_": Transformers, "task": "sequence_classification", "config": entries, "num_classes": 3},
            "data": {"_target_": ArrayData, "sources": {"train": columns}, "spec": {}, "batch_size": 4},
            "optim": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
            "loop": {"_target_": "trainyard.runner.IterBasedTrainLoop", "max_iters": 4},
            "metric": {},
            "hook": {},
            "device": "cpu",
            "seed": seed,
            "work_dir": None,
        }

    fused = FusedRunner([config(seed) for seed in (1, 2)])
    fused.train()
    for seed, member in zip((1, 2), fused.all_members, strict=True):
        single = Runner.from_cfg(config(seed))
        single.train()
        state = member.model.state_dict()
        for name, value in single.model.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-5)


def test_a_pickled_model_attends_in_a_new_process(tmp_path: Path) -> None:
    installed("transformers")
    model = Transformers("sequence_classification", config=BERT, num_classes=3).eval()
    ids, mask = torch.randint(1, 20, (2, 6)), (torch.arange(6) < 3).long().expand(2, 6)
    with torch.no_grad():
        torch.save((model, ids, mask, model(input_ids=ids, attention_mask=mask, mode="predict")), tmp_path / "model.pt")
    program = """if True:
        import sys, torch
        model, ids, mask, expected = torch.load(sys.argv[1], weights_only=False)
        with torch.no_grad():
            torch.testing.assert_close(model(input_ids=ids, attention_mask=mask, mode="predict"), expected)
    """
    path = os.environ | {"PYTHONPATH": str(Path(trainyard.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", program, tmp_path / "model.pt"], check=True, env=path)


def test_save_pretrained_and_back(tmp_path: Path) -> None:
    installed("transformers")
    model = Transformers("masked_lm", config=BERT)
    model.save_pretrained(tmp_path / "mine")
    again = Transformers("masked_lm", name=str(tmp_path / "mine"), vocab_size=7)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)
    head = Transformers("sequence_classification", name=str(tmp_path / "mine"), num_classes=4)
    assert head.val_step(torch.randint(20, (2, 6))).shape == (2, 4)


def test_what_transformers_does_not_have(offline: Path) -> None:
    installed("transformers")
    for arguments, message in [
        ({"task": "causal_l"}, "task: 'causal_l' is invalid. .* Did you mean 'causal_lm'"),
        ({"config": {"model_type": "berd"}}, "config.model_type: 'berd' is invalid. .* Did you mean 'bert'"),
        ({"config": {}}, "config.model_type: None is invalid. .* because `name` is null.$"),
        ({"config": {**BERT, "hidden_sise": 3}}, "config: 'hidden_sise' is invalid. .* Did you mean 'hidden_size'"),
        (
            {"config": {**BERT, "hidden_size": 9}},
            r"config: \{'vocab_size': 20, .*\} is invalid. Expected entries of BertConfig .*: The hidden size \(9\)",
        ),
        ({"config": {**BERT, "hidden_size": "x"}}, "config: .* is invalid. Expected entries of BertConfig .*got str"),
        ({"config": {"model_type": "resnet"}}, "task: 'causal_lm' is invalid. .* type resnet: .*image_classification"),
        ({"name": "./nothing"}, "name: './nothing' is invalid. Expected a folder .* The folder does not exist.$"),
        ({"name": str(offline)}, f"transformers says: .*{offline}"),
        (
            {"name": "nobody/nothing"},
            rf"copy the folder models--nobody--nothing to {offline} from .*, or set model.name to a folder",
        ),
    ]:
        with pytest.raises(ConfigError, match=message):
            Transformers(**{"task": "causal_lm", **arguments})
