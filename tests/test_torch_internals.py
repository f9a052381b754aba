"""Private parts of torch: each is there, each has a replacement that gives the same, and one switch turns all off."""

import ast
import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import trainyard
from trainyard import _fast_paths, _torch_autograd, _torch_internals, _torch_vmap
from trainyard._fast_paths import INTERNALS, Internal, usable, use_fast_paths
from trainyard._torch_internals import FOREACH, foreach
from trainyard.data import Rings
from trainyard.errors import ConfigError
from trainyard.hooks import EMA
from trainyard.metrics import CrossEntropy
from trainyard.models import MLP, BaseModel, Mixup
from trainyard.models.activation_checkpointing import checkpoint_activations
from trainyard.models.initialize import initialize
from trainyard.optim import Lion, Paramwise
from trainyard.optim.fused_adam import FusedAdam
from trainyard.runner import Env, EpochBasedTrainLoop, Runner
from trainyard.step.cuda_graph.guards import ModuleGuards

SRC = Path(trainyard.__file__).parent
FILES = sorted(Path(module.__file__).name for module in (_torch_autograd, _torch_internals, _torch_vmap))


@pytest.fixture(autouse=True)
def _on() -> Iterator[Any]:
    yield
    use_fast_paths(True)


@pytest.mark.parametrize("name", INTERNALS)
def test_torch_has_it(name: Any) -> None:
    assert INTERNALS[name].check(), f"torch {torch.__version__} has changed {name}: {INTERNALS[name].gain}"


@pytest.mark.parametrize("name", INTERNALS)
def test_the_list_says_who_uses_it(name: Any) -> None:
    for module in INTERNALS[name].used_by:
        places = [SRC / f"{module.replace('.', '/')}.py", *(SRC / module.replace(".", "/")).glob("*.py")]
        texts = [place.read_text() for place in places if place.exists()]
        assert any(f"trainyard.{Path(file).stem}" in text for text in texts for file in FILES), module


def private_names(path: Any) -> Iterator[Any]:
    """What a file takes from torch under a private name."""
    dicts = ("_parameters", "_buffers", "_orig_mod")
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.ImportFrom(module=str(module), names=names) if module.split(".")[0] == "torch":
                yield from (part for part in [*module.split("."), *(each.name for each in names)] if part[0] == "_")
            case ast.Attribute(value=value, attr=attr) if attr.startswith("_") and not attr.startswith("__"):
                if ast.unparse(value).split(".")[0] == "torch" or attr in dicts:
                    yield ast.unparse(node)
            case ast.Constant(value=str(text)) if text.startswith("_optimizer_step") or text in dicts:
                yield text


def test_no_other_file_takes_private_parts_of_torch() -> None:
    found = {str(path.relative_to(SRC)): list(private_names(path)) for path in SRC.rglob("*.py")}
    ours = ("self._parameters", "self._buffers", "self._modules")  # attributes of our own under these names
    found = {path: [name for name in names if name not in ours] for path, names in found.items()}
    assert sorted(path for path, names in found.items() if names) == FILES


# -- absent, changed, or off -------------------------------------------------------------------------------------------


@pytest.fixture
def fresh() -> Iterator[Any]:
    """As in a process that has not asked for anything yet."""
    _fast_paths._works.cache_clear()
    vars(foreach).clear()
    yield
    _fast_paths._works.cache_clear()
    vars(foreach).clear()


def _gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "_foreach_lerp_")


def _changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_foreach_lerp_", lambda weights, tensors: None)


def _other_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_foreach_lerp_", lambda tensors, others, weight: None)


@pytest.mark.parametrize("change", [_gone, _changed, _other_result])
def test_a_function_that_torch_has_changed_is_replaced_and_the_log_says_it(
    change: Any, fresh: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    change(monkeypatch)
    tensors = [torch.zeros(2), torch.ones(3)]
    with caplog.at_level(logging.WARNING, "trainyard"):
        for _ in range(2):
            foreach.lerp_(tensors, [torch.ones(2), torch.zeros(3)], 0.5)
    assert [tensor.tolist() for tensor in tensors] == [[0.75] * 2, [0.25] * 3]
    assert caplog.messages == [
        "torch._foreach_lerp_ is missing or has changed. Fallback: Tensor.lerp_ for each tensor."
    ]


def test_adam_without_its_kernel_steps_by_itself(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(3))], lr=0.1, fused=True)
    assert FusedAdam.takes(optimizer)
    _fast_paths._works.cache_clear()
    monkeypatch.setattr(torch, "_fused_adam_", lambda *args: None)
    assert not FusedAdam.takes(optimizer)


@pytest.mark.parametrize("name", FOREACH)
def test_a_replacement_gives_the_same_bits(name: Any) -> None:
    for *given, keywords in FOREACH[name]:
        results = []
        for on in (True, False):
            use_fast_paths(on)
            generator = torch.Generator().manual_seed(0)
            lists = [[torch.rand(n, 4, generator=generator) for n in (1, 3)] for _ in range(3)]
            result = getattr(foreach, name)(*[lists[g] if isinstance(g, int) else g for g in given], **keywords)
            results.append(lists[0] if name.endswith("_") else result)
        for private, public in zip(*results, strict=True):
            assert torch.equal(private, public)


def test_a_name_that_is_none_of_the_functions() -> None:
    with pytest.raises(AttributeError, match="lerb"):
        _ = foreach.lerb


class Layers(nn.Module):
    """Every kind of what a module registers, and plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_parameter("bias", None)
        self.register_buffer("count", torch.zeros(()))
        self.layer = nn.Linear(2, 2)
        self.size = 2


@pytest.mark.parametrize("on", [True, False])
def test_the_tensors_of_a_module(on: bool) -> None:
    use_fast_paths(on)
    module = Layers()
    own = _torch_internals.own_parameters(module)
    assert own["weight"] is module.weight
    assert own["bias"] is None
    assert {"weight", "bias"} <= set(own)
    assert not {"count", "layer", "size"} & set(own)
    assert own.get("size") is None
    assert own.get("nothing") is None
    buffers = _torch_internals.own_buffers(module)
    buffers["count"] = torch.ones(())
    assert module.count.item() == 1
    assert "count" in module.state_dict()


def test_guards_see_the_same_without_fast_paths() -> None:
    changes = {
        "weight": lambda module: setattr(module, "weight", nn.Parameter(torch.ones(2))),
        "count": lambda module: setattr(module, "count", torch.ones(())),
        "size": lambda module: setattr(module, "size", 3),
        "the set of attributes and tensors of the model": lambda module: delattr(module, "count"),
    }
    for on in (True, False):
        use_fast_paths(on)
        for said, change in changes.items():
            module = Layers()
            guards = ModuleGuards({"": module}, torch.device("cpu"))
            assert guards.changed() is None
            change(module)
            assert guards.changed() == said


def test_gamma_draws_the_same_numbers_for_every_member() -> None:
    drawn = []
    for on in (True, False):
        use_fast_paths(on)
        torch.manual_seed(0)
        mixup = Mixup(num_classes=3, alpha=0.4)
        batch = torch.rand(2, 4, 5), torch.randint(3, (2, 4))
        drawn.append(torch.vmap(mixup, randomness="different")(batch))
    for private, public in zip(*drawn, strict=True):
        assert torch.equal(private, public)


def test_parts_of_models_are_found_without_fast_paths() -> None:
    found = []
    for on in (True, False):
        use_fast_paths(on)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False))
        initialize(model, {"Linear": {"weight": "xavier_uniform", "bias": 0}})
        groups = Paramwise(norm_decay_mult=0.0).groups(model, model.parameters(), {"lr": 1.0, "weight_decay": 1.0})
        found.append([(group["name"], [param.tolist() for param in group["params"]]) for group in groups])
    assert found[0] == found[1]


def test_checkpointed_activations_change_buffers_once_without_fast_paths() -> None:
    use_fast_paths(False)
    plain = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    checkpointed = copy.deepcopy(plain)
    checkpoint_activations(checkpointed, ["BatchNorm1d"])
    for model in (plain, checkpointed):
        model(torch.arange(12.0).view(3, 4)).square().sum().backward()
    for (name, expected), found in zip(plain.state_dict().items(), checkpointed.state_dict().values(), strict=True):
        assert torch.equal(expected, found), name


# -- whole trainings ---------------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "adam": lambda params: torch.optim.Adam(params, lr=0.01, fused=True),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01, fused=True),
    "adagrad": lambda params: torch.optim.Adagrad(params, lr=0.01, fused=True),
    "sgd": lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9),
    "lion": lambda params: Lion(params, lr=0.01, weight_decay=0.1, foreach=True),
}


class BatchNormMLP(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))

    def forward(self, x: Any, y: Any = None, mode: str = "tensor") -> Any:
        return {"loss": nn.functional.cross_entropy(self.net(x), y)} if mode == "loss" else self.net(x)


def trained(folder: Any, optimizer: Any, *, fast_paths: Any) -> Any:
    runner = Runner(
        {"_target_": BatchNormMLP},
        Rings(num_samples=200),
        optimizer,
        hooks={"ema": EMA(decay=0.9)},
        metrics={"loss": CrossEntropy()},
        loop=EpochBasedTrainLoop(max_epochs=2),
        env=Env(fast_paths=fast_paths),
        work_dir=folder,
        device="cpu",
    )
    objective = runner.train()
    average = [tensor.clone() for tensor in runner.eval_model.state_dict().values()]
    state = runner.optimizer.state_dict()["state"]
    numbers = [value for own in state.values() for value in own.values()]
    return objective, [*runner.model.state_dict().values(), *average, *numbers]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_training_without_fast_paths_has_the_same_bits(name: Any, tmp_path: Path) -> None:
    objective, expected = trained(tmp_path / "fast", OPTIMIZERS[name], fast_paths=True)
    again, found = trained(tmp_path / "public", OPTIMIZERS[name], fast_paths=False)
    assert not usable("torch._fused_adam_")
    assert again == objective
    assert len(found) == len(expected)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def test_a_run_after_one_without_them_has_them() -> None:
    Env(fast_paths=False).apply()
    assert not usable("torch._foreach_lerp")
    Env().apply()
    assert usable("torch._foreach_lerp")
    assert foreach.lerp is torch._foreach_lerp


@pytest.mark.parametrize("given", [None, 1, "false"])
def test_a_switch_that_is_none(given: int | str | None) -> None:
    with pytest.raises(ConfigError, match=r"fast_paths: .* true or false"):
        Env(fast_paths=given)


def test_the_list_needs_no_torch() -> None:
    """The composer of a sweep's configs reads the switch, where torch is not imported."""
    imports = ast.walk(ast.parse(Path(_fast_paths.__file__).read_text()))
    named = {node.module for node in imports if isinstance(node, ast.ImportFrom)}
    assert named == {"__future__", "collections.abc", "contextlib", "dataclasses", "functools"}


def test_a_batch_goes_to_the_models_device_without_fast_paths() -> None:
    use_fast_paths(False)
    model = MLP(2, 2, hidden=[8]).to("meta")
    assert model.preprocess(torch.zeros(1, 2)).device.type == "meta"


def test_a_check_draws_no_numbers_of_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing = Internal("torch.drawing", (), "nothing", "nothing", lambda: bool(torch.rand(1) < 2))
    monkeypatch.setitem(_fast_paths.INTERNALS, drawing.name, drawing)
    before = torch.get_rng_state()
    assert _fast_paths.works(drawing.name)
    assert torch.equal(torch.get_rng_state(), before)
