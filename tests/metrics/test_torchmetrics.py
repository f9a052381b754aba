"""Metrics of torchmetrics, as they are."""

from __future__ import annotations

import copy
import os
import sys
from typing import Any

import forked
import pytest
import torch
from hydra.utils import instantiate

from trainyard.errors import ConfigError
from trainyard.metrics import Accuracy, Metric, Perplexity, TorchMetric, as_metric

torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed (the `test` extra has it)")


def data(seed: int = 0, n: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 5, generator=g), torch.randint(5, (n,), generator=g)


def named(target: str, **arguments: Any) -> Metric:
    return as_metric(instantiate({"_target_": target, **arguments}, _convert_="all"))


def test_a_metric_named_in_the_config_gives_what_ours_gives() -> None:
    theirs = named("torchmetrics.classification.MulticlassAccuracy", num_classes=5, average="micro")
    ours = Accuracy()
    assert isinstance(theirs, TorchMetric)
    assert not theirs.stackable
    for seed, n in ((0, 50), (1, 13)):
        outputs, target = data(seed, n)
        for metric in (theirs, ours):
            metric.process((outputs, target), outputs)
    torch.testing.assert_close(theirs.compute().double(), ours.compute(), rtol=1e-6, atol=0)
    theirs.reset()
    outputs, target = data(2)
    theirs.process({"x": outputs, "label": target}, outputs)
    want = (outputs.argmax(-1) == target).float().mean()
    torch.testing.assert_close(theirs.compute(), want)


def test_perplexity_agrees() -> None:
    theirs, ours = named("torchmetrics.text.Perplexity"), Perplexity()
    logits, target = torch.randn(4, 6, 9), torch.randint(9, (4, 6))
    for metric in (theirs, ours):
        metric.process((logits, target), logits)
    torch.testing.assert_close(theirs.compute().double(), ours.compute(), rtol=1e-5, atol=0)


def test_a_collection_gives_several() -> None:
    collection = torchmetrics.MetricCollection(
        [torchmetrics.classification.MulticlassPrecision(5), torchmetrics.classification.MulticlassRecall(5)]
    )
    metric = as_metric(collection)
    outputs, target = data()
    metric.process((outputs, target), outputs)
    assert set(metric.compute()) == {"MulticlassPrecision", "MulticlassRecall"}


def test_merge_is_all_at_once() -> None:
    whole = as_metric(torchmetrics.classification.MulticlassF1Score(5))
    parts = [copy.deepcopy(whole), copy.deepcopy(whole)]
    for seed, part in enumerate(parts):
        outputs, target = data(seed)
        for metric in (part, whole):
            metric.process((outputs, target), outputs)
    parts[0].merge(parts[1])
    torch.testing.assert_close(parts[0].compute(), whole.compute())
    with pytest.raises(TypeError):
        parts[0].merge(Accuracy())


def test_it_follows_the_outputs_to_their_device() -> None:
    metric = as_metric(torchmetrics.MeanSquaredError())
    x = torch.ones(3)
    metric.process((x, x), x.to("meta"))
    assert metric.metric.device.type == "meta"  # type: ignore[attr-defined]


def test_gradients_are_not_kept() -> None:
    metric = as_metric(torchmetrics.MeanSquaredError())
    x = torch.ones(3, requires_grad=True)
    metric.process((0, torch.zeros(3)), x)
    assert not metric.compute().requires_grad


def test_ours_pass_as_they_are_and_others_are_refused() -> None:
    ours = Accuracy()
    assert as_metric(ours) is ours
    for wrong in (3, "accuracy", lambda a, b: 0, torchmetrics.MeanSquaredError):
        with pytest.raises(ConfigError):
            as_metric(wrong)


def test_our_code_does_not_import_it() -> None:
    code = "import sys, trainyard.metrics; assert 'torchmetrics' not in sys.modules"
    done = forked.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": ":".join(sys.path)})
    assert done.returncode == 0, done.stderr
