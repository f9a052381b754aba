"""The user's own loaders as data; what importing costs; the configs."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, TensorDataset
from waiting import LIMIT

import trainyard.data
from trainyard.data import Data, Loaders, TensorLoader, WorkerLoader, as_data, epoch_order
from trainyard.errors import ConfigError

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
DATASET = TensorDataset(torch.arange(10))


def test_dataloaders_and_loaders_of_the_users() -> None:
    own = TensorLoader((torch.arange(6),), 4)
    data = Loaders(train=DataLoader(DATASET, 4, shuffle=True), test=own, spec={"num_classes": 2})
    assert data.splits == ("train", "test")
    assert data.spec == {"num_classes": 2}
    train = data.loader("train", seed=3, device=CPU)
    assert isinstance(train, WorkerLoader)
    assert torch.cat([x for (x,) in train.batches(1)]).tolist() == epoch_order(10, 3, 1).tolist()
    assert data.loader("test", seed=0, device=CPU) is own


def test_a_mapping_is_data() -> None:
    data = as_data({"train": DataLoader(DATASET, 4), "val": DataLoader(DATASET, 5)})
    assert isinstance(data, Data)
    assert data.splits == ("train", "val")
    assert as_data(data) is data


def too_large() -> Loaders:
    return Loaders(val={"easy": DataLoader(DATASET, 10_000, drop_last=True)})


@pytest.mark.parametrize(
    ("key", "match", "make"),
    [
        ("train", "at least one", lambda: Loaders()),
        ("val", "a torch.utils.data.DataLoader", lambda: Loaders(val=[1, 2, 3])),
        ("", "train, val, test, spec. Did you mean 'test'", lambda: as_data({"tset": DataLoader(DATASET)})),
        ("", "mapping", lambda: as_data(DataLoader(DATASET))),
        ("split", "one of train", lambda: Loaders(train=DataLoader(DATASET)).loader("val", seed=0, device=CPU)),
        ("val.easy.batch_size", "drop_last is true", lambda: too_large().loader("val/easy", seed=0, device=CPU)),
    ],
)
def test_what_cannot_work(key: str, match: str, make: Any) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        make()
    assert caught.value.key == key


def test_importing_and_reading_digits_imports_no_heavy_package() -> None:
    code = """
import sys, json
import torch
from trainyard.data import Digits, Rings, Text
Digits(), Rings(), Text()
heavy = ("sklearn", "pandas", "pyarrow", "mlflow", "torchvision", "scipy", "matplotlib", "PIL")
print(json.dumps([name for name in heavy if name in sys.modules]))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "src", capture_output=True, text=True, check=True, timeout=LIMIT
    )
    assert json.loads(run.stdout) == []


CONFIGS = ROOT / "conf" / "data"


def node(name: Any) -> Any:
    config = OmegaConf.load(CONFIGS / f"{name}.yaml")
    return config.get("data", config)  # an option that sets other groups too holds its own under "data"


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_every_config_names_every_argument(name: Any) -> None:
    config = node(name)
    kind = getattr(trainyard.data, config["_target_"].rpartition(".")[2])
    assert [key for key in config if key != "_target_"] == list(inspect.signature(kind).parameters)
    assert (CONFIGS / f"{name}.yaml").read_text().startswith("# ")


@pytest.mark.parametrize("name", ["digits", "rings", "text"])
def test_configs_that_need_nothing_build(name: str) -> None:
    data = instantiate(node(name), _convert_="all")
    assert isinstance(data, Data)
    batch = next(data.loader("train", seed=0, device=CPU).batches())
    assert len(batch) == 2


def test_config_of_arrays_builds(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", x=np.ones((20, 2)), y=np.arange(20) % 2)
    config = node("arrays")
    config.path = str(tmp_path / "set.npz")
    assert instantiate(config, _convert_="all").spec["num_classes"] == 2


def test_config_of_loaders_builds() -> None:
    config = node("loaders")
    config.train = {
        "_target_": "torch.utils.data.DataLoader",
        "dataset": {"_target_": "trainyard.data.order.EpochBatchSampler", "n": 3, "batch_size": 1},
        "batch_size": None,
    }
    assert instantiate(config, _convert_="all").splits == ("train",)
