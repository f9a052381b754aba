"""What the strategies' options do, and what they refuse, on two ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

Found = list[dict[str, Any]]

pytestmark = pytest.mark.xdist_group("ranks with options")  # one worker starts them


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, start_ranks: Any) -> Found:
    """For each rank what options.py has found there."""
    folder = tmp_path_factory.mktemp("options")
    start_ranks("options.py", [str(folder)])
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def weights(state: dict[str, Any]) -> torch.Tensor:
    return torch.cat([value.flatten() for value in state["model"].values()])


def test_parameters_that_take_no_part(found: Found) -> None:
    (first, second) = (rank["unused"] for rank in found)
    assert first["metrics"]["val/accuracy"] > 0.8
    assert torch.equal(weights(first), weights(second))


def test_a_static_graph_changes_nothing(found: Found) -> None:
    # The same training, sharded by size and with activations computed anew: three ways to one result.
    ways = [found[0]["static_graph"], found[0]["activation_checkpointing"], found[0]["by_size"][0]]
    for other in ways[1:]:
        torch.testing.assert_close(weights(other), weights(ways[0]), rtol=1e-10, atol=1e-12)


def test_gradients_are_averaged_once_a_step(found: Found) -> None:
    epochs, groups = 8, 3  # of 3, 3 and 1 of the 7 batches
    assert [rank["sums"] for rank in found] == [epochs * groups] * 2


def test_a_hook_for_the_main_rank_runs_there_alone(found: Found) -> None:
    assert [rank["only_main"] for rank in found] == [True, False]


def test_a_loss_that_is_no_number_on_one_rank_ends_both(found: Found) -> None:
    assert found[0]["spoilt"] == found[1]["spoilt"]
    iteration, reason = found[0]["spoilt"]
    assert iteration == 7
    assert "nan" in reason


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_step_that_would_spoil_the_weights_is_skipped_by_both(found: Found, kind: str) -> None:
    for rank in found:
        assert rank[f"skipped_{kind}"] == (56, True, 8)  # once an epoch


def test_every_rank_evaluates_with_the_same_statistics(found: Found) -> None:
    for case in ("batch_norm", "precise_bn"):
        (metrics, mean), (others, other_mean) = (rank[case] for rank in found)
        own, others = ({key: value for key, value in each.items() if "val/" in key} for each in (metrics, others))
        assert own == others
        assert torch.equal(mean, other_mean)
    assert not torch.equal(found[0]["batch_norm"][1], found[0]["precise_bn"][1])


def test_statistics_from_a_second_loader_leave_the_weights_of_the_ranks(found: Found) -> None:
    for rank in found:
        plain, precise = rank["within"], rank["precise_within"]
        for name, value in plain.items():
            assert torch.equal(value, precise[name]) == ("running" not in name), name


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_training_data_is_evaluated_by_the_ranks_together(found: Found, kind: str) -> None:
    """The validation set is the training set, whose 7 batches are 4 of one rank and 3 of the other."""
    for rank in found:
        metrics = rank[f"train_metrics_{kind}_None"]
        assert metrics["train_eval/accuracy"] == metrics["val/accuracy"]
        assert metrics["train_eval/loss"] == pytest.approx(metrics["val/loss"], rel=1e-12)
    for batches in (1, 3):
        (first, second) = (rank[f"train_metrics_{kind}_{batches}"] for rank in found)
        own = {name: value for name, value in first.items() if name.startswith("train_eval/")}
        assert len(own) == 2
        assert own == {name: second[name] for name in own}


def test_what_is_frozen_stays(found: Found) -> None:
    ddp, fsdp = found[0]["frozen_ddp"], found[0]["frozen_fsdp"]
    torch.testing.assert_close(weights(fsdp), weights(ddp), rtol=1e-10, atol=1e-12)
    trained = found[0]["static_graph"]
    assert not torch.equal(ddp["model"]["net.1.weight"], trained["model"]["net.1.weight"])


def test_modules_are_gathered_by_size(found: Found) -> None:
    assert found[0]["by_size"][1] == ["", "net.1", "net.3"]


def test_classes_are_named_as_before_the_sharding(found: Found) -> None:
    told, every, generated = found[0]["class_names"]
    assert (told, every[0], generated) == ("MLP", "MLP", "FSDPMLP")
    assert "Linear" in every
    assert not any("FSDP" in name for name in every)


def test_mixed_precision_keeps_the_shares_whole(found: Found) -> None:
    state, dtypes, sharded = found[0]["mixed_precision"]
    assert (dtypes, sharded) == (["torch.float64"], True)
    exact = found[0]["static_graph"]
    assert not torch.equal(weights(state), weights(exact))
    assert state["metrics"]["val/loss"] == pytest.approx(exact["metrics"]["val/loss"], abs=0.02)


def test_the_average_of_sharded_weights_is_evaluated_beside_them(found: Found) -> None:
    metrics = found[0]["averaged_from_the_start"]["metrics"]
    assert metrics["val_raw/loss"] == pytest.approx(found[0]["static_graph"]["metrics"]["val/loss"], rel=1e-9)
    assert metrics["val/loss"] != pytest.approx(metrics["val_raw/loss"], rel=1e-3)


def test_norms_of_shares_are_norms_of_the_whole(found: Found) -> None:
    ddp, fsdp = found[0]["norms"]["ddp"], found[0]["norms"]["fsdp"]
    assert ddp.keys() == {"norm/grad", "norm/param"}
    assert fsdp == pytest.approx(ddp, rel=1e-9)


@pytest.mark.parametrize(
    ("case", "told"),
    [
        (
            "class",
            "strategy.wrap: 'Linaer' is invalid. Expected classes of this model's modules: CrossEntropyLoss, Flatten, ",
        ),
        (
            "size",
            "strategy.wrap: 1000000000 is invalid. Expected at most 508, the number of parameters of the largest",
        ),
        (
            "mixed_precision",
            "strategy.mixed_precision: 'bf61' is invalid. Expected one of fp32, bf16, fp16, null, or a mapping with "
            "the keys param_dtype, reduce_dtype, output_dtype. Did you mean",
        ),
        ("cpu_offload", "strategy.cpu_offload: True is invalid. Expected false, because the model is already"),
        ("sync_batchnorm", "strategy.sync_batchnorm: True is invalid. Expected false on the CPU"),
        ("bf16_compress", "strategy.bf16_compress: True is invalid. Expected false on the CPU"),
        ("batch_size", "data.batch_size: 1 is invalid. Expected at least 2: batch_size is the total over all devices"),
        (
            "several",
            "strategy: 'DDP' is invalid. Expected single. A model with several optimizers trains on one device.",
        ),
        ("one", "hook.lr_finder: 'LRFinder' is invalid. Expected strategy=single, or no such hook (~hook.lr_finder)."),
        ("devices", "strategy.devices: 0 is invalid. Expected an integer of at least 1, or auto"),
        (
            "launcher",
            "strategy.launcher: 'slrum' is invalid. Expected one of auto, none, pytorch, slurm, mpi. Did you mean",
        ),
    ],
)
def test_what_cannot_be_is_told_on_every_rank(found: Found, case: str, told: str) -> None:
    for rank in found:
        assert rank["errors"][case].startswith(told)
