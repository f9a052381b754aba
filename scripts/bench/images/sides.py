"""Training on a folder of images by one side; prints the microseconds for each image of the epochs after the first.

    python sides.py SIDE FOLDER --epochs 3

Runs in `.venv-models`, whose torch is the one that torchvision was built for. Every side makes float batches `[B, 3,
224, 224]` with two workers that live as long as the training, and gives them to the same model, which has next to
nothing to compute.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

SIZE, BATCH, WORKERS = 224, 32, 2


class Model(nn.Module):
    """Classifier of the mean colours of an image."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(3, classes)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(x.mean((2, 3)))
        return output


def by_hand(loader: Iterable[Any], classes: int, epochs: int) -> float:
    """Train with a plain loop, and return the seconds of the epochs after the first."""
    model = Model(classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    begin = 0.0
    for epoch in range(epochs):
        if epoch == 1:
            begin = perf_counter()
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return perf_counter() - begin


def data_loader(folder: Path, *, tensors: bool = True, pillow: bool = True) -> Any:
    """Return a DataLoader over torchvision's ImageFolder.

    Args:
        folder: the files.
        tensors: whether tensors are transformed, or PIL images.
        pillow: whether Pillow decodes, or TorchCodec.
    """
    from torch.utils.data import DataLoader
    from torchcodec.decoders import decode_image
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import default_loader
    from torchvision.transforms import v2

    crop, flip = v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip()
    to_float = v2.ToDtype(torch.float32, scale=True)
    steps = [v2.ToImage(), crop, flip, to_float] if tensors else [crop, flip, v2.ToImage(), to_float]
    read: Callable[[str], Any] = default_loader if pillow else decode_image
    dataset = ImageFolder(str(folder), v2.Compose(steps), loader=read)
    return DataLoader(dataset, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True)


def torch_on_pil(folder: Path, classes: int, epochs: int) -> float:
    return by_hand(data_loader(folder, tensors=False), classes, epochs)


def torch_on_tensors(folder: Path, classes: int, epochs: int) -> float:
    return by_hand(data_loader(folder), classes, epochs)


def torchcodec(folder: Path, classes: int, epochs: int) -> float:
    return by_hand(data_loader(folder, pillow=False), classes, epochs)


def lightning(folder: Path, classes: int, epochs: int) -> float:
    import lightning

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    ends: list[float] = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Model(classes)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            return nn.functional.cross_entropy(self.net(x), y)

        def on_train_epoch_end(self) -> None:
            ends.append(perf_counter())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), data_loader(folder))
    return ends[-1] - ends[0]


def timm(folder: Path, classes: int, epochs: int) -> float:
    from timm.data import create_dataset, create_loader

    loader = create_loader(
        create_dataset("", str(folder), is_training=True),
        input_size=(3, SIZE, SIZE),
        batch_size=BATCH,
        is_training=True,
        color_jitter=None,
        interpolation="bilinear",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        num_workers=WORKERS,
        device=torch.device("cpu"),
        persistent_workers=True,
    )
    return by_hand(loader, classes, epochs)


def trainyard(folder: Path, classes: int, epochs: int, decoder: str = "pillow") -> float:
    from torchvision.transforms import v2

    from trainyard.data import ImageFolder
    from trainyard.hooks import Hook
    from trainyard.models import Supervised
    from trainyard.runner import EpochBasedTrainLoop, Runner
    from trainyard.runner.default_hooks import default_hooks

    ends: list[float] = []

    class Clock(Hook):
        priority = "LOWEST"

        def after_train_epoch(self, runner: Runner) -> None:
            ends.append(perf_counter())

    data = ImageFolder(
        str(folder),
        transform=[v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip()],
        val_fraction=0,
        test_fraction=0,
        batch_size=BATCH,
        workers=WORKERS,
        decoder=decoder,
    )
    with tempfile.TemporaryDirectory() as work_dir:
        Runner(
            model=Supervised(Model(classes), nn.functional.cross_entropy),
            data=data,
            optim={"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
            hooks={**default_hooks(), "clock": Clock()},
            loop=EpochBasedTrainLoop(epochs),
            device="cpu",
            work_dir=work_dir,
        ).train()
    return ends[-1] - ends[0]


SIDES: dict[str, Callable[[Path, int, int], float]] = {
    "trainyard": trainyard,
    "DataLoader, transforms on PIL images": torch_on_pil,
    "DataLoader, transforms on tensors": torch_on_tensors,
    "Lightning, transforms on tensors": lightning,
    "timm": timm,
    "trainyard, TorchCodec decodes": partial(trainyard, decoder="torchcodec"),
    "DataLoader, TorchCodec decodes": torchcodec,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    classes = sum(1 for entry in options.folder.iterdir() if entry.is_dir())
    files = sum(1 for _ in options.folder.glob("*/*.jpg"))
    seconds = SIDES[options.side](options.folder, classes, options.epochs)
    print(f"{1e6 * seconds / files / (options.epochs - 1):.1f}", flush=True)


if __name__ == "__main__":
    main()
