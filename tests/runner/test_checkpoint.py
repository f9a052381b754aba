import logging
import os
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.errors import ConfigError, TrainyardError
from trainyard.runner import checkpoint

STATE: dict[str, Any] = {
    **{name: {} for name in ("optimizer", "schedule", "step", "loop", "member")},
    "model": {"weight": torch.arange(2000, dtype=torch.float32)},
    "seed": 0,
    "epoch": 3,
    "iter": 30,
    "hooks": {"x": [1, 2.5, None]},
}


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


@pytest.mark.parametrize("written", ["by Trainyard", "by torch"])
def test_one_changed_byte_is_noticed_wherever_it_is(tmp_path: Path, written: str) -> None:
    path = tmp_path / "changed.pt"
    small = STATE | {"model": {"weight": torch.arange(3.0)}}
    torch.save(small, path) if written == "by torch" else checkpoint.save(path, small)
    content = path.read_bytes()
    random = Random(0)
    for at in range(len(content)):
        changed = content[at] ^ random.randint(1, 255)
        with path.open("r+b") as file:
            file.seek(at)
            file.write(bytes([changed]))
        with suppress(checkpoint.DamagedCheckpointError):
            state = checkpoint.load(path)
            assert written == "by torch", f"byte {at} of {len(content)}"
            assert torch.equal(state["model"]["weight"], small["model"]["weight"])
        with path.open("r+b") as file:
            file.seek(at)
            file.write(content[at : at + 1])


@settings(max_examples=40)
@given(st.floats(0, 0.999))
def test_a_file_cut_short_is_noticed(whole: Any, tmp_path: Path, share: float) -> None:
    content = whole.read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(checkpoint.DamagedCheckpointError):
        checkpoint.load(path)


def test_torch_and_zipfile_read_what_has_a_checksum(whole: Any) -> None:
    for mapped in (False, True):
        assert _equal(torch.load(whole, weights_only=True, mmap=mapped))
    with zipfile.ZipFile(whole) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"trainyard crc32 ")


def _text(path: Path) -> None:
    path.write_text("epoch 3\n" * 40)


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def _run(path: Path) -> None:
    path.mkdir()
    checkpoint.save(path / "checkpoints" / "epoch_0001.pt", STATE)


STRANGE: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "a text": _text,
    "a pickle": lambda path: path.write_bytes(pickle.dumps({"model": {}})),
    "the beginning of a pickle": lambda path: path.write_bytes(b"\x80\x02c"),
    "zeros": lambda path: path.write_bytes(bytes(4000)),
    "an archive of something else": lambda path: _archive(path),
    "a pipe": lambda path: os.mkfifo(path),
    "a folder": lambda path: path.mkdir(),
    "a link to itself": _link_to_itself,
    "a run": _run,
    "other tensors": lambda path: torch.save({"net": {"weight": torch.ones(2)}}, path),
    "weights": lambda path: torch.save(STATE["model"], path),
    "published weights": lambda path: checkpoint.save(path, {"model": STATE["model"]}),
    "another version": lambda path: checkpoint.save(path, STATE | {"version": 99}),
    "no version": lambda path: checkpoint.save(path, STATE | {"version": None}),
    "a list": lambda path: checkpoint.save(path, [STATE]),
    "half of it": lambda path: checkpoint.save(path, {key: STATE[key] for key in ("model", "epoch", "iter")}),
    "an epoch that is a text": lambda path: checkpoint.save(path, STATE | {"epoch": "3"}),
    "a model that is a list": lambda path: checkpoint.save(path, STATE | {"model": [1.0]}),
}


def _archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "text" * 100, zipfile.ZIP_DEFLATED)


@pytest.mark.parametrize("kind", STRANGE)
def test_a_strange_file_is_skipped_where_it_is_found_and_explained_where_it_is_named(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint.save(tmp_path / "epoch_0001.pt", STATE | {"epoch": 1})
    strange = tmp_path / "epoch_0002.pt"
    STRANGE[kind](strange)
    checkpoint.write_last(tmp_path, ["epoch_0001.pt", "epoch_0002.pt"])
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found[1]["epoch"] == 1
    assert kind == "a link to itself" or "epoch_0002.pt" in caplog.text
    with pytest.raises(ConfigError) as error:
        checkpoint.given("resume", strange)
    assert str(error.value).startswith(f"resume: '{strange}' is invalid. Expected ")
    assert str(error.value).count("\n") == 0
    assert ("weights" in kind or kind == "half of it") == (f"load_from={strange}" in str(error.value))
    if kind == "a run":
        assert f"Specify a checkpoint in it, such as {strange}/checkpoints/epoch_0001.pt." in str(error.value)


def test_a_file_that_cannot_be_read_is_not_called_incomplete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    path = tmp_path / "epoch_0001.pt"
    checkpoint.save(path, STATE)
    monkeypatch.setattr(checkpoint, "holds", refuse)
    with pytest.raises(checkpoint.DamagedCheckpointError, match=r"epoch_0001\.pt cannot be read \(.*Permission denied"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"history": "ab"}', '{"history": [1, {}]}', '{"history": ["../x"]}', "[" * 10**5, "\0\xff"]
)
def test_a_strange_record_of_checkpoints(tmp_path: Path, text: str) -> None:
    checkpoint.save(tmp_path / "epoch_0001.pt", STATE)
    (tmp_path / "gone.pt").symlink_to("nowhere.pt")
    (tmp_path / checkpoint.LAST).write_bytes(text.encode("latin-1"))
    assert checkpoint.read_last(tmp_path) == ["epoch_0001.pt"]
    assert checkpoint.newest(tmp_path) is not None


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_record_that_is_no_file(tmp_path: Path, make: Any) -> None:
    checkpoint.save(tmp_path / "epoch_0001.pt", STATE)
    make(tmp_path / checkpoint.LAST)
    with pytest.raises(TrainyardError, match=r"last\.json is not a file\. Move or delete it"):
        checkpoint.newest(tmp_path)


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


def test_an_absent_file_of_another_program_names_the_nearest_file(tmp_path: Path) -> None:
    for name in ("model.safetensors", "model.pt"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=r"Did you mean '.*/model\.safetensors'\?"):
        checkpoint.given("load_from", tmp_path / "modl.safetensors")
    with pytest.raises(ConfigError, match=r"The folder '.*/absent' does not exist\.$"):
        checkpoint.given("load_from", tmp_path / "absent" / "model.pt")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "tensor.pt"
    torch.save(torch.ones(3), path)
    with pytest.raises(ConfigError, match="not a checkpoint: it contains an object of type Tensor"):
        checkpoint.given("load_from", path)


def test_what_the_writer_failed_at_is_told() -> None:
    writer = checkpoint.Writer()
    writer.submit([lambda: 1 / 0])
    with pytest.raises(ZeroDivisionError):
        writer.wait()
    writer.wait()


def test_sequences_of_writes_keep_their_order() -> None:
    done: dict[int, list[int]] = {number: [] for number in range(50)}
    jobs = [[partial(done[number].append, index) for index in range(20)] for number in done]
    checkpoint.at_once(jobs)
    assert all(found == list(range(20)) for found in done.values())
    checkpoint.at_once([])
    with pytest.raises(ZeroDivisionError):
        checkpoint.at_once([*jobs, [lambda: 1 / 0]])
