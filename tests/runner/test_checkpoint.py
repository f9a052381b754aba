import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.errors import ConfigError
from trainyard.runner import checkpoint

STATE = {"model": {"weight": torch.arange(2000, dtype=torch.float32)}, "epoch": 3, "hooks": {"x": [1, 2.5, None]}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("whole") / "epoch_0003.pt"
    checkpoint.save(path, STATE)
    return path


def _equal(state: Any) -> Any:
    return torch.equal(state["model"]["weight"], STATE["model"]["weight"]) and state["hooks"] == STATE["hooks"]


def test_round_trip_leaves_no_temporary_file(whole: Any) -> None:
    assert _equal(checkpoint.load(whole))
    assert [file.name for file in whole.parent.iterdir()] == [whole.name]


@settings(max_examples=150)
@given(st.data())
def test_a_changed_byte_is_noticed_or_changes_nothing(whole: Any, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(whole.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "changed.pt"
    path.write_bytes(content)
    try:
        state = checkpoint.load(path)
    except checkpoint.DamagedCheckpointError:
        return
    assert _equal(state)


@settings(max_examples=40)
@given(st.floats(0, 0.999))
def test_a_file_cut_short_is_noticed(whole: Any, tmp_path: Path, share: float) -> None:
    content = whole.read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(checkpoint.DamagedCheckpointError):
        checkpoint.load(path)


class _Evil:
    def __init__(self, target: Any) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return open, (str(self.target), "w")


def test_opening_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"model": _Evil(tmp_path / "ran")}, path)
    with pytest.raises(checkpoint.DamagedCheckpointError, match="other than tensors"):
        checkpoint.load(path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(_Evil(tmp_path / "ran"))).close()
    assert (tmp_path / "ran").exists(), "the file would have run code, had it been let"


def test_the_newest_whole_checkpoint_is_found_and_damaged_ones_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for epoch in (1, 2, 3):
        checkpoint.save(tmp_path / f"epoch_{epoch:04d}.pt", STATE | {"epoch": epoch})
    checkpoint.write_last(tmp_path, ["epoch_0001.pt", "epoch_0002.pt", "epoch_0003.pt"])
    newest = tmp_path / "epoch_0003.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING):
        path, state = checkpoint.newest(tmp_path)  # type: ignore[misc]
    assert (path.name, state["epoch"]) == ("epoch_0002.pt", 2)
    assert "epoch_0003.pt" in caplog.text


def test_without_a_readable_note_the_files_times_decide(tmp_path: Path) -> None:
    for epoch in (1, 2):
        checkpoint.save(tmp_path / f"epoch_{epoch:04d}.pt", STATE | {"epoch": epoch})
    (tmp_path / checkpoint.LAST).write_text('{"history": [')
    assert checkpoint.newest(tmp_path)[1]["epoch"] == 2


def test_nothing_to_resume(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "absent") is None


def test_an_absent_checkpoint_names_the_nearest_file(whole: Any) -> None:
    with pytest.raises(ConfigError, match=r"Did you mean .*epoch_0003\.pt"):
        checkpoint.given("load_from", whole.with_name("epoch_0033.pt"))


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "tensor.pt"
    torch.save(torch.ones(3), path)
    with pytest.raises(ConfigError, match="no 'model'"):
        checkpoint.given("load_from", path)


def test_what_the_writer_failed_at_is_told() -> None:
    writer = checkpoint.Writer()
    writer.submit([lambda: 1 / 0])
    with pytest.raises(ZeroDivisionError):
        writer.wait()
    writer.wait()
