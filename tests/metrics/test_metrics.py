"""The built-in metrics against independent computations, and the laws that all of them keep."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trainyard.errors import ConfigError, TrainyardError
from trainyard.metrics import (
    Accuracy,
    BitsPerCharacter,
    ConfusionMatrix,
    CrossEntropy,
    MeanAbsoluteError,
    MeanSquaredError,
    Metric,
    Perplexity,
    SumMetric,
)

Data = tuple[Tensor, Tensor]  # outputs, target
few = settings(max_examples=25)
seeds = st.integers(0, 2**31)


def classes(seed: int, shape: tuple[int, ...], num_classes: int = 7) -> Data:
    """Logits that are better than chance, and classes."""
    g = torch.Generator().manual_seed(seed)
    target = torch.randint(num_classes, shape, generator=g)
    logits = torch.randn(*shape, num_classes, generator=g, dtype=torch.float64)
    return logits + torch.nn.functional.one_hot(target, num_classes), target


def numbers(seed: int, shape: tuple[int, ...]) -> Data:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g), torch.randn(*shape, generator=g)


CASES: dict[str, tuple[Callable[[], SumMetric], Callable[[int, tuple[int, ...]], Data]]] = {
    "accuracy": (Accuracy, classes),
    "accuracy_topk": (lambda: Accuracy([1, 3, 20]), classes),
    "cross_entropy": (CrossEntropy, classes),
    "perplexity": (Perplexity, classes),
    "bits": (BitsPerCharacter, classes),
    "confusion": (ConfusionMatrix, classes),
    "mse": (MeanSquaredError, numbers),
    "mae": (MeanAbsoluteError, numbers),
}
every = pytest.mark.parametrize("name", CASES)


def measure(metric: Metric, *batches: Data) -> Any:
    metric.reset()
    for outputs, target in batches:
        metric.process((outputs, target), outputs)
    return metric.compute()


def same(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


# --- values


@few
@given(seed=seeds, n=st.integers(1, 60), k=st.integers(1, 9))
def test_accuracy(seed: int, n: int, k: int) -> None:
    logits, target = classes(seed, (n,))
    order = np.argsort(-logits.numpy(), axis=-1, kind="stable")[:, :k]
    want = (order == target.numpy()[:, None]).any(-1).mean()
    assert measure(Accuracy(k), (logits, target)).item() == pytest.approx(want, abs=1e-12)
    if k < 7:
        want = sk.top_k_accuracy_score(target, logits, k=k, labels=range(7))
        assert measure(Accuracy(k), (logits, target)).item() == pytest.approx(want, abs=1e-12)


@few
@given(seed=seeds, n=st.integers(1, 40), size=st.integers(1, 5))
def test_equal_outputs_rank_by_their_index(seed: int, n: int, size: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randint(3, (n, size), generator=g).float()  # nearly all ties
    target = torch.randint(size, (n,), generator=g)
    assert measure(Accuracy(), (logits, target)) == (logits.argmax(-1) == target).double().mean()
    matrix = measure(ConfusionMatrix(), (logits, target))
    assert matrix.diag().sum() == (logits.argmax(-1) == target).sum()


def test_topk_names() -> None:
    data = classes(0, (50,))
    several = measure(Accuracy([1, 2, 5]), data)
    assert list(several) == ["accuracy", "top2", "top5"]
    assert several["accuracy"] == measure(Accuracy(1), data)
    assert several["top5"] == measure(Accuracy(5), data)
    assert list(measure(Accuracy([3]), data)) == ["top3"]


def test_more_than_there_are_classes_is_always_right() -> None:
    assert measure(Accuracy(5), classes(0, (20,), num_classes=3)) == 1


def test_a_model_that_diverged_is_not_right() -> None:
    logits, target = classes(0, (20,))
    assert measure(Accuracy(), (torch.full_like(logits, float("nan")), target)) == 0
    one = logits.clone()
    one[:, 0] = float("nan")  # outranks every number, as it does in argmax
    assert measure(Accuracy(), (one, target.clamp(min=1))) == 0


@few
@given(seed=seeds, n=st.integers(1, 60))
def test_confusion(seed: int, n: int) -> None:
    logits, target = classes(seed, (n,))
    want = sk.confusion_matrix(target, logits.argmax(-1), labels=range(7))
    matrix = measure(ConfusionMatrix(), (logits, target))
    assert matrix.dtype == torch.int64
    assert (matrix.numpy() == want).all()


@few
@given(seed=seeds, n=st.integers(1, 20), length=st.integers(1, 6))
def test_likelihoods(seed: int, n: int, length: int) -> None:
    logits, target = classes(seed, (n, length))
    x = logits.numpy().reshape(-1, 7)
    probabilities = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    want = sk.log_loss(target.flatten(), probabilities, labels=range(7))
    logits = logits.float()
    assert measure(CrossEntropy(), (logits, target)).item() == pytest.approx(want, rel=1e-5)
    assert measure(Perplexity(), (logits, target)).item() == pytest.approx(np.exp(want), rel=1e-5)
    assert measure(BitsPerCharacter(), (logits, target)).item() == pytest.approx(want / np.log(2), rel=1e-5)


def test_a_uniform_guess() -> None:
    data = (torch.zeros(4, 5, 32), torch.randint(32, (4, 5)))
    assert measure(Perplexity(), data).item() == pytest.approx(32, rel=1e-6)
    assert measure(BitsPerCharacter(), data).item() == pytest.approx(5, rel=1e-6)
    assert measure(CrossEntropy(), data).item() == pytest.approx(math.log(32), rel=1e-6)


@few
@given(seed=seeds, shape=st.sampled_from([(1,), (17,), (17, 1), (6, 3), (2, 3, 4)]))
def test_regression(seed: int, shape: tuple[int, ...]) -> None:
    outputs, target = numbers(seed, shape)
    a, b = outputs.double().numpy().ravel(), target.double().numpy().ravel()
    mse, mae = measure(MeanSquaredError(), (outputs, target)), measure(MeanAbsoluteError(), (outputs, target))
    assert mse.item() == pytest.approx(sk.mean_squared_error(b, a), rel=1e-12)
    assert mae.item() == pytest.approx(sk.mean_absolute_error(b, a), rel=1e-12)


@pytest.mark.parametrize("metric", [Accuracy(), Accuracy([1, 2]), CrossEntropy(), Perplexity(), ConfusionMatrix()])
def test_padding_counts_for_nothing(metric: Metric) -> None:
    logits, target = classes(0, (5, 4))
    target[1, 2:] = -100
    target[4] = -100
    kept = target != -100
    same(measure(metric, (logits, target)), measure(copy.deepcopy(metric), (logits[kept], target[kept])))


def test_another_index_may_be_ignored() -> None:
    logits, target = classes(0, (40,))
    kept = target != 0
    for kind in (Accuracy, CrossEntropy):
        same(measure(kind(ignore_index=0), (logits, target)), measure(kind(), (logits[kept], target[kept])))


def test_low_precision_outputs_are_summed_in_high() -> None:
    logits = torch.zeros(4096, 10, dtype=torch.bfloat16)
    target = torch.randint(10, (4096,))
    result = measure(CrossEntropy(), *[(logits, target)] * 3)
    assert result.dtype == torch.float64
    assert result.item() == pytest.approx(math.log(10), rel=1e-6)
    assert measure(MeanSquaredError(), (logits.half(), torch.ones(4096, 10))).item() == 1


# --- laws


@every
@few
@given(seed=seeds, sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), data=st.data())
def test_batches_do_not_matter(name: str, seed: int, sizes: list[int], data: st.DataObject) -> None:
    """However the samples are cut into batches, in whatever order, and on however many ranks: one result."""
    build, make = CASES[name]
    outputs, target = make(seed, (sum(sizes), 3))
    whole = measure(build(), (outputs, target))
    batches = list(zip(outputs.split(sizes), target.split(sizes), strict=True))
    order = data.draw(st.permutations(range(len(batches))))
    same(measure(build(), *[batches[i] for i in order]), whole)

    cut = data.draw(st.integers(0, len(batches)))
    ranks = [build(), build()]
    for rank, part in zip(ranks, (batches[:cut], batches[cut:]), strict=True):
        for o, t in part:
            rank.process((o, t), o)
    ranks[0].merge(ranks[1])
    same(ranks[0].compute(), whole)


@every
@few
@given(
    seed=seeds,
    members=st.integers(1, 4),
    shape=st.sampled_from([(1,), (4,), (5, 3)]),
    shared=st.booleans(),
    told=st.booleans(),
)
def test_a_member_axis_gives_each_members_result(
    name: str, seed: int, members: int, shape: tuple[int, ...], shared: bool, told: bool
) -> None:
    """Outputs [K, B, ...] with targets [K, B, ...] or [B, ...]; K may go unsaid where the shapes show it."""
    assume(told or not shared or members > 1 or shape != (1,))  # [1, 1] and [1] show no members
    build, make = CASES[name]
    outputs, targets = make(seed, (members, *shape))
    if shared:
        targets = targets[0]
    metric = build()
    metric.members = members if told or not shared else None
    for _ in range(2):
        metric.process((outputs, targets), outputs)
    got = metric.compute()
    for k in range(members):
        data = (outputs[k], targets if shared else targets[k])
        want = measure(build(), data, data)
        same({key: v[k] for key, v in got.items()} if isinstance(got, dict) else got[k], want)

    twin = build()
    twin.merge(metric)
    same(twin.compute(), got)


@every
def test_a_target_of_two_axes_is_a_sequence_unless_members_are_told(name: str) -> None:
    build, make = CASES[name]
    data = make(0, (4, 5))
    alone = measure(build(), data)
    stacked = build()
    stacked.members = 4
    told = measure(stacked, data)
    for key, value in (alone if isinstance(alone, dict) else {"": alone}).items():
        assert (told[key] if key else told).shape == (4, *value.shape)


@every
def test_reset_forgets_and_an_empty_metric_says_so(name: str) -> None:
    build, make = CASES[name]
    metric = build()
    first = measure(metric, make(0, (6,)))
    metric.reset()
    assert metric.state == {}
    with pytest.raises(TrainyardError, match="no batch"):
        metric.compute()
    metric.merge(build())
    with pytest.raises(TrainyardError, match="no batch"):
        metric.compute()
    same(measure(metric, make(0, (6,))), first)


@every
def test_copies_are_apart(name: str) -> None:
    build, make = CASES[name]
    metric = build()
    before = measure(metric, make(0, (6,)))
    twin = copy.deepcopy(metric)
    outputs, target = make(1, (6,))
    twin.process((outputs, target), outputs)
    merged = build()
    merged.merge(metric)
    merged.process((outputs, target), outputs)
    same(metric.compute(), before)
    same(merged.compute(), twin.compute())


@every
def test_every_kind_of_batch_is_read(name: str) -> None:
    build, make = CASES[name]
    outputs, target = make(0, (6,))
    want = measure(build(), (outputs, target))
    for batch in ([outputs, target], {"x": outputs, "label": target}, {"y": target}, (0, 1, target)):
        metric = build()
        metric.process(batch, outputs)
        same(metric.compute(), want)


class Watch(TorchDispatchMode):
    """Collects the operations that make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "is_nonzero", "bincount", "unique"):
            self.waits.append(str(func))
        return func(*args, **(kwargs or {}))


@every
def test_processing_never_waits_for_the_device_and_keeps_no_graph(name: str) -> None:
    build, make = CASES[name]
    for members in (None, 3):
        metric = build()
        metric.members = members
        outputs, target = make(0, (3, 5))
        outputs.requires_grad_()
        with Watch() as watch:
            metric.process((outputs, target), outputs)
            metric.process((outputs, target), outputs)
        assert watch.waits == []
        assert not any(value.requires_grad for value in metric.state.values())


@every
def test_under_inference_mode(name: str) -> None:
    build, make = CASES[name]
    data = make(0, (6,))
    metric = build()
    with torch.inference_mode():
        metric.process(data, data[0])
    metric.process((data[0], data[1]), data[0])
    same(metric.compute(), measure(build(), data, data))


@every
def test_state_is_made_where_the_outputs_are(name: str) -> None:
    build, make = CASES[name]
    outputs, target = make(0, (6,))
    metric = build()
    metric.process((outputs, target), outputs.to("meta"))  # the target follows
    assert {value.device.type for value in metric.state.values()} == {"meta"}


# --- what is refused


@pytest.mark.parametrize("topk", [0, -1, [], [1, 0], "5", 2.5, None, True, [True]])
def test_wrong_topk(topk: Any) -> None:
    with pytest.raises(ConfigError) as error:
        Accuracy(topk)
    assert error.value.key == "topk"


@pytest.mark.parametrize(
    ("metric", "outputs", "target", "says"),
    [
        (Accuracy(), (6, 3), (5,), "classes last"),
        (Accuracy(), (2, 3, 4, 4), (2, 4, 4), "classes last"),  # the class axis is not the last
        (Accuracy(), (6,), (6,), "classes last"),
        (MeanSquaredError(), (6, 1), (6,), "same shape"),  # would broadcast to [6, 6]
        (MeanAbsoluteError(), (6,), (6, 1), "same shape"),
    ],
)
def test_shapes_that_do_not_go_together(
    metric: Metric, outputs: tuple[int, ...], target: tuple[int, ...], says: str
) -> None:
    with pytest.raises(TrainyardError, match=says) as error:
        metric.process((0, torch.zeros(target, dtype=torch.long)), torch.zeros(outputs))
    assert str(list(outputs)) in str(error.value)


def test_numbers_to_predict_for_a_metric_of_classes() -> None:
    with pytest.raises(TrainyardError, match=r"the classes last\. For regression targets, use metric=regression\.$"):
        Accuracy().process((0, torch.zeros(6, 3)), torch.zeros(6, 3))
    with pytest.raises(TrainyardError, match=r"the classes last\.$"):
        Accuracy().process((0, torch.zeros(6, 3, dtype=torch.long)), torch.zeros(6, 3))


def test_classes_to_predict_for_a_metric_of_numbers() -> None:
    with pytest.raises(TrainyardError, match=r"of the same shape\. For classes, use metric=classification\.$"):
        MeanSquaredError().process((0, torch.zeros(6, dtype=torch.long)), torch.zeros(6, 3))
    with pytest.raises(TrainyardError, match=r"of the same shape\.$"):
        MeanSquaredError().process((0, torch.zeros(6)), torch.zeros(6, 3))


def test_a_wrong_number_of_members() -> None:
    metric = Accuracy()
    metric.members = 3
    with pytest.raises(TrainyardError, match="3 members"):
        metric.process((0, torch.zeros(2, 5, dtype=torch.long)), torch.zeros(2, 5, 4))


def test_states_of_other_shapes_do_not_add() -> None:
    metric = ConfusionMatrix()
    metric.process((0, torch.zeros(5, dtype=torch.long)), torch.zeros(5, 3))
    with pytest.raises(TrainyardError, match="shape"):
        metric.process((0, torch.zeros(5, dtype=torch.long)), torch.zeros(5, 4))


def test_outputs_must_be_tensors() -> None:
    with pytest.raises(TrainyardError, match=r"the outputs are a dict of logits \[5, 3\]"):
        Accuracy().process((0, torch.zeros(5)), {"logits": torch.zeros(5, 3)})


def test_only_like_merges_with_like() -> None:
    with pytest.raises(TypeError, match="Perplexity"):
        CrossEntropy().merge(Perplexity())


# --- the user's own


class Bias(SumMetric):
    """The mean of output - target."""

    class_axis = False

    def sums(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        error = (outputs - target).sum()
        return {"error": error, "count": torch.full_like(error, outputs.numel())}

    def compute(self) -> Tensor:
        return self.total("error") / self.total("count")


def test_own_sums_take_members_unasked() -> None:
    metric = Bias()
    outputs, target = torch.ones(3, 4) * torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(4)
    metric.process((0, target), outputs)
    assert metric.compute().tolist() == [1, 2, 3]


class Longest(Metric):
    """Gathers in its own way."""

    def process(self, batch: Any, outputs: Any) -> None:
        self.add({"longest": outputs.abs().sum()})

    def compute(self) -> Tensor:
        return self.total("longest")


def test_own_process_is_not_stackable_unless_it_says_so() -> None:
    assert not Longest.stackable
    assert Bias.stackable
    assert measure(Longest(), (torch.ones(3), torch.ones(3))) == 3
