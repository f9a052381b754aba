"""Two ranks train what one process does; killed and resumed they end with the same bits, whoever takes them up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

RANKS = 2
SEVERAL = ("ddp", "fsdp")
CASES = ("adamw", "accumulated", "items")

pytestmark = pytest.mark.xdist_group("ranks that train")  # one worker starts them


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, start_ranks: Any) -> Path:
    """All trainings, each kind in processes of its own."""
    folder = tmp_path_factory.mktemp("trainings")
    for part in ("whole", "resumed"):
        for kind in ("single", *SEVERAL):
            start_ranks("trainings.py", [kind, part, str(folder)], ranks=1 if kind == "single" else RANKS)
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    files = {file.stem: file for file in folder.glob("*.pt")}
    return {name: torch.load(file, weights_only=True) for name, file in files.items()}


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of a tensor, in shares of its norm."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).norm() / other[name].norm().clamp(min=1e-9)) for name in one)


@pytest.mark.parametrize("kind", SEVERAL)
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_follow_one_process(found: dict[str, Any], kind: str, case: str) -> None:
    alone, together = found["single_whole"][case], found[f"{kind}_whole"][case]
    assert together["iter"] == alone["iter"] == 56
    for part in ("model", "eval_model"):
        assert difference(together[part], alone[part]) < 1e-10
    assert together["metrics"]["val/accuracy"] == alone["metrics"]["val/accuracy"]
    names = [name for name in alone["metrics"] if name.startswith(("train/loss", "train/grad_norm", "val/"))]
    assert {name: together["metrics"][name] for name in names} == pytest.approx(
        {name: alone["metrics"][name] for name in names}, rel=1e-9
    )


@pytest.mark.parametrize("kind", ["single", *SEVERAL])
@pytest.mark.parametrize("case", [*CASES, "dropout"])
def test_a_run_that_was_ended_and_resumed_has_the_same_bits(found: dict[str, Any], kind: str, case: str) -> None:
    half, whole = found[f"{kind}_whole"][f"{case}, half"], found[f"{kind}_whole"][case]
    assert half["iter"] == 50  # one rank was asked; all ended
    resumed = found[f"{kind}_resumed"][f"{case} of {kind}"]
    for part in ("model", "eval_model"):
        assert all(torch.equal(resumed[part][name], value) for name, value in whole[part].items())


@pytest.mark.parametrize("kind", ["single", *SEVERAL])
@pytest.mark.parametrize("origin", ["single", *SEVERAL])
@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_is_taken_up_by_any_strategy(found: dict[str, Any], origin: str, kind: str, case: str) -> None:
    resumed = found[f"{kind}_resumed"][f"{case} of {origin}"]
    for part in ("model", "eval_model"):
        assert difference(resumed[part], found["single_whole"][case][part]) < 1e-10


def test_the_ranks_of_a_run_draw_dropout_of_their_own(found: dict[str, Any]) -> None:
    assert difference(found["ddp_whole"]["dropout"]["model"], found["single_whole"]["dropout"]["model"]) > 1e-6


def test_the_journals_tell_the_same(folder: Path) -> None:
    def curve(kind: str) -> list[tuple[int, float]]:
        lines = (folder / kind / "whole" / "accumulated" / "metrics.jsonl").read_text().splitlines()
        points = [json.loads(line) for line in lines]
        points = [point for point in points if "train/loss" in point.get("values", {})]
        return [(point["step"], point["values"]["train/loss"]) for point in points]

    alone = curve("single")
    assert len(alone) == 12
    for kind in SEVERAL:
        assert [step for step, _ in curve(kind)] == [step for step, _ in alone]
        assert [value for _, value in curve(kind)] == pytest.approx([value for _, value in alone], rel=1e-9)


def test_every_rank_wrote_its_share(folder: Path) -> None:
    saved = folder / "fsdp" / "whole" / "adamw" / "checkpoints"
    for name in ("epoch_0004.pt", "best.pt"):
        assert {"__0_0.distcp", "__1_0.distcp", ".metadata", "rest.pt"} == {
            file.name for file in (saved / name).iterdir()
        }
    sizes = [
        sum(file.stat().st_size for file in (saved / "epoch_0004.pt").glob(f"__{rank}_*")) for rank in range(RANKS)
    ]
    assert 0.5 < sizes[0] / sizes[1] < 2
