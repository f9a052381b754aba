"""Images that are decoded on demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from trainyard.errors import TrainyardError

COLOURS = {"rgb": 3, "grey": 1}
DECODERS = ("pillow", "torchcodec")
JPEG = (".jpg", ".jpeg")
Transform = Callable[[Tensor], Tensor]


class Files(NamedTuple):
    """Images of one split: their files, their targets `[N]`, and the group of each image; None without groups."""

    paths: list[str]
    y: npt.NDArray[Any]
    groups: npt.NDArray[np.int64] | None = None


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Images that are decoded on demand.

    Args:
        files: the files of one split.
        colour, size, decoder: see `ImageFolder`.
        transforms: applied in order.
    """

    def __init__(
        self,
        files: Files,
        colour: str,
        size: int | None,
        transforms: Sequence[Transform],
        decoder: str = "pillow",
    ) -> None:
        self.decoder = decoder
        self.paths = files.paths
        self.y = torch.from_numpy(files.y)
        self.colour = colour
        self.size = size
        self.transforms = tuple(transforms)
        self.shape: torch.Size | None = None
        self.interleaved = size is None and bool(transforms) and resizes_interleaved(transforms[0])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.decoded(index)
        return image.to(torch.float32).div_(255) if image.dtype == torch.uint8 else image, self.y[index]

    def batch(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return the images at `indices`, `[B, C, H, W]`, after the transforms, and their targets `[B]`."""
        return default_collate([self.decoded(index) for index in indices]), self.y[indices]

    def decoded(self, index: int) -> Tensor:
        """Return an image after its transforms.

        Raises:
            TrainyardError: the file cannot be decoded, or its image has another shape than the first one.
        """
        path = self.paths[index]
        try:
            image = self._read(path)
        except Exception as error:
            raise TrainyardError(f"{path} cannot be read as an image: {str(error).rstrip('.')}.") from error
        if self.size is not None:
            image = resized(image, self.size)
        for transform in self.transforms:
            image = transform(image).contiguous()
        if self.shape is None:
            self.shape = image.shape
        elif image.shape != self.shape:
            advice = "set data.image_size, for example to 64"
            if self.size is not None:
                advice = "add a transform that gives them equal sizes (torchvision.transforms.v2.Resize)"
            raise TrainyardError(
                f"{path} has the shape {list(image.shape)}, but an earlier image has {list(self.shape)}. All "
                f"images need the same shape: {advice}."
            )
        return image

    def _read(self, path: str) -> Tensor:
        if self.decoder == "torchcodec" and path.lower().endswith(JPEG):
            image = decode_jpeg(path, self.colour)
            return image if self.interleaved else image.contiguous()
        return decode(path, self.colour, interleaved=self.interleaved)

    def resident(self) -> tuple[Tensor, Tensor]:
        """Return all images `[N, C, H, W]` and their targets `[N]`."""
        return torch.stack([self.decoded(index) for index in range(len(self))]), self.y


def decode(path: str, colour: str, *, interleaved: bool = False) -> Tensor:
    """Return the image of a file, uint8 `[C, H, W]`.

    Args:
        path: the file.
        colour: see `ImageFolder`.
        interleaved: keep the decoded layout, in which the channels of a pixel are adjacent in memory; otherwise each
            channel is contiguous.
    """
    from PIL import Image

    mode = "RGB" if colour == "rgb" else "L"
    with Image.open(path) as opened:
        image = opened if opened.mode == mode else opened.convert(mode)  # which copies an image of this mode too
        pixels = np.asarray(image).reshape(image.height, image.width, COLOURS[colour]).transpose(2, 0, 1)
    return torch.from_numpy(pixels.copy("K" if interleaved else "C"))


def decode_jpeg(path: str, colour: str) -> Tensor:
    """Return the image of a JPEG file, uint8 `[C, H, W]`, decoded by TorchCodec; the memory layout is unspecified."""
    from torchcodec.decoders import decode_jpeg

    image: Tensor = decode_jpeg(path, mode="RGB" if colour == "rgb" else "GRAY")
    return image


def resizes_interleaved(transform: Transform) -> bool:
    """Return whether a transform returns the same bytes for interleaved channels and is faster for them.

    This applies to the transforms of torchvision that crop or resize if torch can resize bytes: it interleaves the
    channels if necessary.
    """
    kind = type(transform)
    known = kind.__module__.startswith("torchvision.transforms.v2.") and kind.__name__ in (
        "RandomResizedCrop",
        "Resize",
    )
    return known and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def as_floats(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return a batch whose images are float32: bytes become numbers in [0, 1], bit-identical on every device."""
    images, *rest = batch
    if images.dtype != torch.uint8:
        return batch
    # On CUDA, torch divides by a number on the host by multiplying by its reciprocal: the last bit may differ.
    most = torch.full((), 255.0, device=images.device)
    return (images.to(torch.float32).div_(most), *rest)


def resized(image: Tensor, size: int) -> Tensor:
    """Return an image resized to a square, uint8 `[C, size, size]`."""
    if image.shape[1:] == (size, size):
        return image
    made = F.interpolate(image[None].float(), (size, size), mode="bilinear", antialias=True)[0]
    return made.round_().clamp_(0, 255).to(torch.uint8)
