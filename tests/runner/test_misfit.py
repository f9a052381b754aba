"""What does not fit together is told in one sentence: the key, or the layer with its name and shapes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from trainyard.data import ArrayData, Loaders
from trainyard.errors import ConfigError, TrainyardError
from trainyard.hooks import NaNGuard
from trainyard.models import BaseModel, Supervised
from trainyard.runner import Runner
from trainyard.runner.batch_checks import IndexRanges

RANKED = {"accuracy": {"_target_": "trainyard.metrics.Accuracy", "topk": [1, 5]}}
FACTS = {"in_features": 4, "num_classes": 3}


class Net(nn.Module):
    """Two layers by name, of which the second may take another width than the first gives."""

    def __init__(self, width: int = 8, classes: int = 3, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = nn.Linear(4, 8)
        self.norm = nn.Identity() if norm is None else norm
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.backbone(x)))
        return out


class Tokens(BaseModel):
    def __init__(self, rows: int = 10, sparse: bool = False, detached: bool = False) -> None:
        super().__init__()
        self.rows = nn.Embedding(rows, 3, sparse=sparse)
        self.detached = detached

    def forward(self, x: Tensor, y: Tensor | None = None, mode: str = "tensor") -> Any:
        out = self.rows((x[:, 0] * 10).long().clamp(0, 9))
        if mode != "loss":
            return out
        loss = F.cross_entropy(out, y)
        return {"loss": loss.detach() if self.detached else loss}


def _tensors(count: int = 64, x: torch.dtype = torch.float32, y: Any = None) -> TensorDataset:
    inputs = torch.rand(count, 4, generator=torch.Generator().manual_seed(0)).mul(10 if x == torch.int64 else 1)
    targets = torch.arange(count) % 3 if y is None else y(torch.arange(count) % 3)
    return TensorDataset(inputs.to(x), targets)


def _data(train: Any = None, val: Any = None, size: int = 16) -> Loaders:
    given = {"train": train or _tensors(), "val": val or _tensors()}
    return Loaders(**{split: DataLoader(own, size) for split, own in given.items()}, spec=FACTS)


@pytest.fixture
def told(parts: Any, tmp_path: Path) -> Any:
    """The error of a training with other parts; nothing is written if it is found before the training."""

    def run(*, before: bool = True, **more: Any) -> str:
        given = parts | {"data": _data(), "work_dir": tmp_path / "run"} | more
        with pytest.raises(TrainyardError) as error:
            Runner(**given).train()
        assert before is None or (tmp_path / "run").exists() != before
        return str(error.value)

    return run


@pytest.mark.parametrize(
    ("key", "given", "fact", "also"),
    [("in_features", 10, 4, "Layer net.1 (Linear(in_features=10,"), ("num_classes", 2, 3, "")],
)
def test_an_argument_of_the_model_that_is_another_than_the_fact(
    told: Any, key: str, given: int, fact: int, also: str
) -> None:
    node = {"_target_": "trainyard.models.MLP", "in_features": "auto", "num_classes": "auto", "hidden": [5], key: given}
    message = told(model=node)
    assert message.startswith(f"model.{key}: {given} is invalid. Expected auto, or {fact}, as in the data.")
    assert also in message


def test_an_argument_of_a_network_within_the_model(told: Any) -> None:
    net = {"_target_": "torch.nn.Linear", "in_features": 7, "out_features": 3}
    message = told(model={"_target_": "trainyard.models.Supervised", "net": net})
    assert message.startswith("model.net.in_features: 7 is invalid. Expected auto, or 4")


def test_an_argument_is_not_the_cause_of_an_error_of_types(told: Any) -> None:
    """The width of an inner layer has the name of a fact of the data."""
    net = {"_target_": "torch.nn.Linear", "in_features": 7, "out_features": 3}
    doubles = _tensors(x=torch.float64)
    message = told(model={"_target_": "trainyard.models.Supervised", "net": net}, data=_data(doubles, doubles))
    assert message.startswith("model: error in a batch of 'val': layer net (Linear(in_features=7,")
    assert "the data must be too (x.to(torch.float32))" in message


def test_an_error_of_types_within_a_network_whose_inputs_have_the_type_of_its_weights(told: Any) -> None:
    class Chosen(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) @ torch.eye(3, dtype=torch.float64)

    message = told(model=Supervised(Chosen()))
    assert "raised RuntimeError: expected m1 and m2 to have the same dtype" in message
    assert "so the data must be" not in message


def test_a_layer_of_the_users_own(told: Any) -> None:
    message = told(model=Supervised(Net(width=5)))
    assert message.startswith("model: error in a batch of 'val': layer net.head (Linear(in_features=5,")
    assert "was given float32 [16, 8] and raised RuntimeError: mat1 and mat2" in message
    assert "(test_misfit.py:" in message, "the line of the user's code"


@pytest.mark.parametrize("kind", [torch.int64, torch.float64])
def test_inputs_of_a_type_that_the_layer_does_not_take(told: Any, kind: torch.dtype) -> None:
    message = told(model=Supervised(Net()), data=_data(_tensors(x=kind), _tensors(x=kind)))
    assert "layer net.backbone (Linear(" in message
    assert "weights are float32, so the data must be too (x.to(torch.float32))" in message


def test_numbers_to_predict_for_a_metric_of_classes(told: Any) -> None:
    numbers = _tensors(y=Tensor.float)
    message = told(model=Supervised(Net(classes=1), nn.MSELoss()), data=_data(numbers, numbers), metrics=RANKED)
    assert message.startswith("metric.accuracy: error in a batch of 'val': metric.accuracy was given the")
    assert "the outputs float32 [16, 1] and the target float32 [16] and raised RuntimeError: gather" in message
    assert message.endswith("For regression targets, use metric=regression.")


def test_classes_as_floats(told: Any) -> None:
    floats = _tensors(y=Tensor.float)
    message = told(model=Supervised(Net()), data=_data(floats, floats))
    assert "Class targets must be int64" in message
    message = told(model=Supervised(Net()), data=_data(floats), before=None)
    assert "layer loss (CrossEntropyLoss())" in message
    message = told(model=Tokens(), data=_data(floats), metrics={}, objective="val/loss", before=None)
    assert message.endswith("Class targets must be int64 (target.long()).")


@pytest.mark.parametrize(("target", "also"), [(5, "num_classes=3"), (-1, "ignore_index")])
def test_a_target_that_is_no_class(told: Any, target: int, also: str) -> None:
    wrong = _tensors(y=lambda y: torch.where(y == 2, target, y))
    message = told(model=Supervised(Net()), data=_data(wrong, wrong))
    assert message.startswith(
        f"data: {target} is invalid. Expected targets from 0 to 2 in 'val': the model has 3 outputs."
    )
    assert also in message


def test_a_target_in_memory_is_found_wherever_it_is(told: Any) -> None:
    """The last of the training set would come in the middle of an epoch; on CUDA it would end the process."""
    x, y = _tensors().tensors
    late = y.clone()
    late[-1] = 7
    message = told(model=Supervised(Net()), data=ArrayData({"train": (x, late), "val": (x, y)}, FACTS))
    assert message.startswith("data: 7 is invalid. Expected targets from 0 to 2 in 'train'")


@pytest.mark.parametrize(
    ("sets", "more"),
    [
        (["train"], {}),
        (["train"], {"sanity_check": False}),
        (["train", "val"], {"metrics": {}, "objective": "val/loss"}),
    ],
    ids=["no validation", "no trial step", "validation by losses"],
)
def test_a_target_in_memory_is_found_without_predictions_of_a_validation(told: Any, sets: Any, more: Any) -> None:
    x, y = _tensors().tensors
    late = y.clone()
    late[-1] = 7
    sources = {split: (x, late if split == "train" else y) for split in sets}
    message = told(model=Supervised(Net()), data=ArrayData(sources, FACTS, batch_size=8), **more)
    assert message.startswith("data: 7 is invalid. Expected targets from 0 to 2 in 'train'")


def test_parameters_without_a_shape_are_not_given_one_by_the_check(parts: Any) -> None:
    """The step gives them their shapes, with the numbers that the training draws."""
    x, y = _tensors().tensors

    net = nn.Sequential(nn.LazyLinear(3))
    Runner(**parts | {"model": Supervised(net), "data": ArrayData({"train": (x, y)}, FACTS)}).prepare()
    assert isinstance(net[0], nn.LazyLinear)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"model": Supervised(Net())}, r"data: 5 is invalid. Expected targets from 0 to 2 in 'train'"),
        ({"model": Tokens(4)}, r"in a batch of 'train': an Embedding has rows 0 to 3, but got index"),
    ],
)
def test_the_first_step_is_checked_before_its_indices_reach_a_device(
    parts: Any, monkeypatch: pytest.MonkeyPatch, more: Any, told: str
) -> None:
    """As on CUDA, where torch's own error would end the process: this one is no explanation of it."""
    monkeypatch.setattr("trainyard.runner.training_check.in_range", IndexRanges)
    data = Loaders(DataLoader(_tensors(y=lambda y: torch.where(y == 2, 5, y)), 16), spec=FACTS)
    with pytest.raises(TrainyardError, match=told) as error:
        Runner(**parts | {"data": data} | more).train()
    assert error.value.__cause__ is None


@pytest.mark.gpu
@pytest.mark.parametrize("model", [Supervised(Net()), Tokens(4)])
def test_an_index_out_of_range_does_not_end_the_process(parts: Any, model: Any) -> None:
    data = Loaders(DataLoader(_tensors(y=lambda y: torch.where(y == 2, 5, y)), 16), spec=FACTS)
    with pytest.raises(TrainyardError, match=r"5 is invalid|rows 0 to 3"):
        Runner(**parts | {"data": data, "model": model, "device": "cuda"}).train()
    assert torch.ones(1, device="cuda").item() == 1


def test_indices_are_checked_before_they_reach_a_device(parts: Any) -> None:
    runner = Runner(**parts | {"data": _data()})
    logits = torch.zeros(4, 3)
    with IndexRanges(runner, "val"):
        F.cross_entropy(logits, torch.tensor([0, 2, -100, 1]))
        nn.Embedding(3, 2)(torch.tensor([0, 2]))
        with pytest.raises(ConfigError, match=r"3 is invalid. Expected targets from 0 to 2"):
            nn.CrossEntropyLoss()(logits, torch.tensor([0, 1, 2, 3]))
        with pytest.raises(TrainyardError, match="rows 0 to 2, but got index 9"):
            nn.Embedding(3, 2)(torch.tensor([0, 9]))


def test_the_number_of_rows_in_the_config_is_named_before_its_indices_reach_a_device(parts: Any) -> None:
    data = Loaders(train=DataLoader(_tensors(), 16), spec={"vocab_size": 10})
    model = {"_target_": f"{__name__}.Tokens", "vocab_size": 3}
    runner = Runner(**parts | {"data": data, "model": model})
    with IndexRanges(runner, "train"), pytest.raises(ConfigError) as error:
        nn.Embedding(3, 2)(torch.tensor([0, 9]))
    assert str(error.value) == "model.vocab_size: 3 is invalid. Expected auto, or 10, as in the data."


def test_an_index_that_an_embedding_does_not_have(told: Any) -> None:
    message = told(model=Tokens(4))
    assert message.startswith("model and data do not match, in a batch of 'val': layer rows (Embedding(4, 3)) has ")
    assert "rows 0 to 3, but got index 7" in message


class Points(IterableDataset[Any]):
    """A stream of points without a length."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Any:
        return iter([(torch.rand(4), 1)] * self.count)


def test_a_last_batch_of_one_under_batch_norm(told: Any) -> None:
    model = Supervised(Net(norm=nn.BatchNorm1d(8)))
    message = told(model=model, data=_data(_tensors(33)))
    assert (
        "data: the batch size is 16. Expected a batch size that does not leave a single sample; drop_last=True"
        in message
    )
    assert (
        "Layer net.norm (BatchNorm1d) needs several values to compute a variance, but the last batch of the 33 samples"
        in message
    )
    assert "Expected at least 2 training samples." in told(model=model, data=_data(_tensors(1)))
    node = {"_target_": "trainyard.data.Rings", "num_samples": 100, "val_fraction": 0.1, "batch_size": 1}
    mlp = {"_target_": "trainyard.models.MLP", "in_features": 2, "num_classes": 3, "batch_norm": True, "hidden": [4]}
    assert told(model=mlp, data=node).startswith("data.batch_size: 1 is invalid. Expected at least 2.")
    message = told(model=model, data=_data(Points(33)), before=False)
    assert "Layer net.norm needs several values to compute a variance, but the last batch has one sample" in message


def test_batch_norm_that_has_several_values_of_one_sample(parts: Any) -> None:
    class Wide(Net):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.norm(self.backbone(x).unsqueeze(1)).squeeze(1)
            return self.head(out)

    Runner(**parts | {"model": Supervised(Wide(norm=nn.BatchNorm1d(1))), "data": _data(_tensors(33))}).train()
    frozen = Supervised(Net(norm=nn.BatchNorm1d(8)))
    Runner(**parts | {"model": frozen, "data": _data(_tensors(33)), "freeze": ["*norm"]}).train()


def test_a_loss_without_a_graph(told: Any) -> None:
    message = told(model=Tokens(detached=True), before=None)
    assert message.startswith("model: the loss does not depend on a trained parameter")
    assert "or all parameters that the loss depends on are frozen" in message


@pytest.mark.parametrize(
    ("net", "why"), [(Net().requires_grad_(False), "Every parameter"), (nn.Flatten(), "The module has no parameters")]
)
def test_a_model_of_which_nothing_is_trained(told: Any, net: nn.Module, why: str) -> None:
    message = told(model=Supervised(net))
    assert message.startswith(
        "model: 'Supervised' is invalid. Expected a module with at least one trainable parameter."
    )
    assert why in message


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"clip_grad_norm": 1.0}, "clip_grad_norm: 1.0 is invalid. Expected null, because the gradients are sparse."),
        ({"clip_grad_value": 1.0}, "clip_grad_value: 1.0 is invalid. Expected null"),
        ({"optim": "Adam"}, "optim: 'Adam' is invalid. Expected an optimizer for sparse gradients: SGD or Adagrad"),
        ({"optim": "RMSprop"}, "optim: 'RMSprop' is invalid"),
        ({"hooks": {"guard": NaNGuard(action="skip")}}, "model: the gradient of rows.weight is sparse"),
        ({"precision": "fp16"}, "optim.fused: True is invalid. Expected false, because the gradients are sparse"),
    ],
)
def test_sparse_gradients(told: Any, more: Any, said: str) -> None:
    name = more.pop("optim", "SGD")
    fused = {"fused": True} if name == "SGD" else {}
    optim = {"_target_": f"torch.optim.{name}", "_partial_": True, "lr": 0.1, **fused}
    message = told(model=Tokens(sparse=True), optim=optim, **more, before=None)
    assert message.startswith(said)
    assert "parse" in message
    if name != "SGD":
        assert "The gradient of rows.weight is sparse" in message
        assert "or torch.optim.SparseAdam if all gradients are sparse" in message


def test_dense_gradients_of_sparse_adam(told: Any) -> None:
    optim = {"_target_": "torch.optim.SparseAdam", "_partial_": True, "lr": 0.1}
    message = told(model=Supervised(Net()), optim=optim, before=None)
    assert message.startswith(
        "optim: 'SparseAdam' is invalid. Expected an optimizer for dense and sparse gradients: SGD or Adagrad without "
        "weight decay. SparseAdam says: SparseAdam does not support dense gradients"
    )


def test_sparse_gradients_with_momentum(parts: Any) -> None:
    optim = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1, "momentum": 0.9}
    Runner(**parts | {"data": _data(), "model": Tokens(sparse=True), "optim": optim}).train()


class TwoTokens(Tokens):
    """Sparse rows with an optimizer of their own, next to another part."""

    optimizer_groups = {"rows": "rows", "rest": "rest"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__(sparse=True)
        self.rest = nn.Linear(4, 3)

    def train_steps(self, batch: Any) -> Iterator[tuple[str, Any]]:
        x, y = batch
        yield "rest", {"loss": F.cross_entropy(self.rest(x), y)}
        yield "rows", self(x, y, mode="loss")


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("Adam", {}, "optim.rows: 'Adam' is invalid. Expected an optimizer for sparse gradients"),
        ("SGD", {"precision": "fp16"}, "optim.rows.fused: True is invalid. Expected false, because the gradients"),
    ],
)
def test_sparse_gradients_of_one_of_several_optimizers(told: Any, name: str, more: Any, said: str) -> None:
    optim = {"_target_": f"torch.optim.{name}", "_partial_": True, "lr": 0.1, "fused": name == "SGD"}
    message = told(model=TwoTokens(), optim={"rest": optim, "rows": optim}, **more, before=None)
    assert message.startswith(said)
    assert "OptimizerDict" not in message


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_set(told: Any, split: str) -> None:
    data = _data()
    data.loaders[split] = DataLoader(_tensors(0), 4)
    message = told(data=data)
    assert message.startswith(f"data: {split!r} has no batches. The data set is empty, or drop_last drops every batch")
    assert ("is optional: omit the split" in message) == (split != "train")
