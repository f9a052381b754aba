"""A digest changes with what is in the data, and with nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from trainyard.data import ArrayData, Digits, Loaders
from trainyard.data import digest as module
from trainyard.data.digest import digests


def data(*tensors: torch.Tensor, **others: Any) -> ArrayData:
    return ArrayData({"train": tensors, **others}, {})


def of(found: Any, split: str = "train") -> str:
    (digest,) = [each.digest for each in digests(found) if each.name == split]
    return str(digest)


def test_each_set_has_one_whatever_the_batch_size() -> None:
    found = digests(Digits(batch_size=7))
    assert [each.name for each in found] == ["train", "val", "test"]
    assert len({each.digest for each in found}) == 3
    assert found == digests(Digits(batch_size=64))
    assert of(Digits(split_seed=1)) != found[0].digest


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.int64])
def test_one_number_or_its_type_changes_it(kind: torch.dtype) -> None:
    x, y = torch.arange(12, dtype=kind).view(4, 3), torch.arange(4)
    changed = x.clone()
    changed[3, 2] = 0
    assert of(data(x, y)) == of(data(x.clone(), y.clone()))
    assert len({of(data(*given)) for given in ((x, y), (changed, y), (x.view(4, 1, 3), y), (x, y.int()))}) == 4


def test_of_a_large_array_blocks_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WHOLE", 64), ("BLOCKS", 3), ("BLOCK", 8)):
        monkeypatch.setattr(module, name, value)
    x = torch.arange(100, dtype=torch.uint8)
    first, last = x.clone(), x.clone()
    first[0], last[99] = 9, 9
    assert len({of(data(given)) for given in (x, first, last, x[:99])}) == 4


def test_files_by_names_sizes_and_targets(tmp_path: Path) -> None:
    class Files(Dataset[Any]):
        def __init__(self, root: Path, target: int) -> None:
            self.samples = [(str(root / "cat" / "1.png"), target)]

        def __len__(self) -> int:
            return 1

    def made(folder: str, content: bytes, target: int = 0) -> Any:
        file = tmp_path / folder / "cat" / "1.png"
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
        return ArrayData({"train": Files(tmp_path / folder, target)}, {})

    found = [of(made("a", b"1")), of(made("b", b"2")), of(made("c", b"33")), of(made("d", b"1", target=1))]
    assert found[0] == found[1]  # in another folder, and of the same size
    assert len(set(found)) == 3
    (digest,) = digests(made("e", b"1"))
    assert (digest.covers, digest.rows) == ("files", 1)


def test_the_data_set_of_a_loader_and_a_part_of_it() -> None:
    whole = TensorDataset(torch.arange(6.0), torch.arange(6))
    loaders = {
        "train": DataLoader(whole),
        "val": DataLoader(Subset(whole, [1, 2])),
        "test": DataLoader(Subset(whole, [2])),
    }
    found = digests(Loaders(**loaders))
    assert [each.rows for each in found] == [6, 2, 1]
    assert len({each.digest for each in found}) == 3


def test_what_computes_its_samples_has_none() -> None:
    class Computed(Dataset[Any]):
        data = (np.zeros(3), "a mixture")

        def __len__(self) -> int:
            return 3

    assert digests(ArrayData({"train": Computed()}, {})) == []
    assert digests(None) == []
