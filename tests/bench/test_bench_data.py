"""The benchmark of data: its images, its sides that need no other environment, and what it says without that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.syspath_prepend(str(BENCH / "images"))


def session(folder: Path) -> Any:
    from measure import Session

    return Session(rounds=1, quick=True, full=False, device="cpu", folder=folder)


def test_images_are_a_function_of_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import make_images

    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        arguments = ["make_images.py", str(tmp_path / name), "--files", "6", "--classes", "3", "--seed", str(seed)]
        monkeypatch.setattr("sys.argv", arguments)
        make_images.main()
    files = {name: [file.read_bytes() for file in sorted((tmp_path / name).glob("*/*.jpg"))] for name in "abc"}
    assert len(files["a"]) == 6
    assert files["a"] == files["b"] != files["c"]
    assert sorted(entry.name for entry in (tmp_path / "a").iterdir()) == ["class0", "class1", "class2"]


def test_a_missing_environment_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cases import data

    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "models_venv.sh").write_text("echo 'ERROR: no torchvision for this Python' >&2\nexit 1\n")
    monkeypatch.setattr(data, "ROOT", tmp_path)
    table = data._images(session(tmp_path))
    assert not table.values
    assert set(table.failed) >= {data.OURS, *data.PEERS}
    assert set(table.failed.values()) == {".venv-models cannot be installed: no torchvision for this Python"}


def test_the_sides_of_tokens_take_turns(tmp_path: Path) -> None:
    import numpy as np
    from cases import data

    file = tmp_path / "tokens.bin"
    np.arange(40 * data.LENGTH, dtype=np.uint16).tofile(file)
    for side in (data.tokens, data.windows, data.copy):
        with side(file) as turn:
            assert turn() > 0
    windows = [window for x, _ in data.read(file).batches(0) for window in x]
    assert len(windows) == 39  # as many as fit at every phase
    assert all(torch.equal(window, window[0] + torch.arange(data.LENGTH)) for window in windows)
