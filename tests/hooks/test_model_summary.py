import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainyard.data import ArrayData, Digits
from trainyard.errors import ConfigError
from trainyard.hooks import EMA, ModelSummary
from trainyard.hooks.model_summary import _short
from trainyard.models import CNN, MLP, BaseModel, Supervised
from trainyard.runner import IterBasedTrainLoop
from trainyard.track import read


@pytest.fixture
def table(make: Any, tmp_path: Path) -> Any:
    """The rows of the summary of a run, by module, and its first line."""

    def table(hook: Any, **more: Any) -> Any:
        make({"summary": hook}, loop=IterBasedTrainLoop(2), work_dir=tmp_path, **more).train()
        title, _, head, *lines = (tmp_path / "summary.txt").read_text().splitlines()
        rows = {}
        for line in lines[: lines.index("") if "" in lines else None]:
            starts = [head.index(word) for word in ("module", "type", "output")]
            name, kind = line[: starts[1]].strip(), line[starts[1] : starts[2]].strip()
            rows[name] = (kind, line[starts[2] :].split("]")[0].strip(" ["), line.split("]")[-1].split())
        return title, rows

    return table


def test_an_mlp(table: Any) -> None:
    title, rows = table(ModelSummary())
    assert title == "MLP: 42 parameters, 42 of them trained, 64 FLOPs (32 MACs) per sample"
    assert {name: row[0] for name, row in rows.items()} == {
        "(all)": "MLP",
        "net": "Sequential",
        "net.0": "Flatten",
        "net.1": "Linear",
        "net.2": "ReLU",
        "net.3": "Linear",
        "loss": "CrossEntropyLoss",
    }
    assert rows["net.1"] == ("Linear", "64, 8", ["24", "32"]), "2 x 8 weights, a multiplication and an addition each"
    assert rows["net.3"] == ("Linear", "64, 2", ["18", "32"])
    assert rows["(all)"] == ("MLP", "64, 2", ["42", "64"])


def test_a_cnn(table: Any) -> None:
    model = CNN(in_channels=1, num_classes=10, channels=[4])
    _, rows = table(ModelSummary(), model=model, data=Digits(batch_size=50))
    assert rows["net.0"] == ("Conv2d", "180, 4, 8, 8", ["36", "4.61", "k"]), "2 * 9 * 4 * 64 = 4608"
    assert rows["net.1"][2] == ["8", "0"], "normalisation is not counted"


class Attentive(BaseModel):
    """A layer of torch's transformer, which has a fast path of its own in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Any, y: Any = None, mode: str = "tensor") -> Any:
        logits = self.head(self.layer(self.embed(x.unsqueeze(-1))).mean(1))
        return {"loss": nn.functional.cross_entropy(logits, y)} if mode == "loss" else logits


def test_attention_is_counted(table: Any) -> None:
    _, rows = table(ModelSummary(), model=Attentive())
    tokens, width, inner = 2, 8, 16
    projections = 2 * tokens * width * (3 * width + width)
    attention = 2 * 2 * tokens * tokens * width
    feed_forward = 2 * 2 * tokens * width * inner
    expected = _short(projections + attention + feed_forward).split() or ["0"]
    assert rows["layer"][2][1:] == expected


@pytest.mark.parametrize(("depth", "names"), [(0, ["(all)"]), (1, ["(all)", "net", "loss"])])
def test_depth(table: Any, depth: int, names: Any) -> None:
    _, rows = table(ModelSummary(depth=depth))
    assert list(rows) == names


def test_a_deep_model_is_cut_and_null_shows_all(table: Any) -> None:
    deep = nn.Linear(2, 2)
    for _ in range(4):
        deep = nn.Sequential(deep)  # type: ignore[assignment]
    _, rows = table(ModelSummary(depth=None), model=Supervised(deep, nn.functional.cross_entropy))
    assert list(rows)[-1] == "net.0.0.0.0"


def test_it_is_logged_once_and_an_artifact(make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "trainyard"):
        make({"summary": ModelSummary(flops=False)}, work_dir=tmp_path).train()
    text = (tmp_path / "summary.txt").read_text()
    assert [message for message in caplog.messages if "net.1" in message] == [text.rstrip("\n")]
    assert "FLOPs" not in text
    uploaded = [record["path"] for record, _ in read(tmp_path / "metrics.jsonl") if record["kind"] == "artifact"]
    assert uploaded == ["summary.txt"]


def test_it_is_plain_text_of_80_columns(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("COLUMNS", "200")
    inner = nn.Sequential(nn.Linear(2, 2))
    for name in ("a_module_with_a_long_name", "another_with_a_long_name", "and_a_third_one"):
        inner = nn.Sequential(OrderedDict({name: inner}))
    model = Supervised(inner, nn.functional.cross_entropy)
    make({"summary": ModelSummary(depth=None)}, model=model, work_dir=tmp_path).train()
    text = (tmp_path / "summary.txt").read_text()
    assert "\x1b" not in text
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    first = [line[: lines[2].index("type")].strip() for line in lines[3:]]
    assert "net.and_a_third_one.another_with_a_long_name.a_module_with_a_long_name.0" in "".join(first), (
        "no letter is lost"
    )


@pytest.mark.parametrize("average", [False, True])
def test_it_changes_nothing_of_the_training(make: Any, average: bool) -> None:
    def trained(hooks: Any) -> Any:
        model = {"_target_": MLP, "in_features": 2, "num_classes": 2, "hidden": [8], "dropout": 0.5, "batch_norm": True}
        runner = make(hooks | ({"ema": EMA()} if average else {}), model=model)
        return runner, runner.train()

    summarised, results = trained({"summary": ModelSummary()})
    plain, expected = trained({})
    assert results == expected
    for ours, theirs in zip(summarised.model.state_dict().values(), plain.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert not any(module._forward_hooks for module in summarised.model.modules())


def test_without_validation_data_a_training_batch_does(make: Any, tmp_path: Path) -> None:
    data = ArrayData({"train": (torch.rand(64, 2), torch.arange(64) % 2)}, {"in_features": 2, "num_classes": 2})
    make({"summary": ModelSummary()}, data=data, metrics={}, work_dir=tmp_path, loop=IterBasedTrainLoop(2)).train()
    assert "64 FLOPs (32 MACs) per sample" in (tmp_path / "summary.txt").read_text()


@pytest.mark.parametrize(
    ("number", "told"), [(0, "0 "), (999, "999 "), (999.7, "1 k"), (12345, "12.3 k"), (5e12, "5 T"), (1e16, "1e+04 T")]
)
def test_short_numbers(number: float, told: str) -> None:
    assert _short(number) == told


@pytest.mark.parametrize(("key", "given"), [("depth", -1), ("depth", "all"), ("flops", 1)])
def test_settings_that_cannot_be(key: str, given: int | str) -> None:
    with pytest.raises(ConfigError) as error:
        ModelSummary(**{key: given})
    assert error.value.key == key
