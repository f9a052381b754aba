"""Folder of JPEG files like photographs, one folder for each class: FOLDER/CLASS/NUMBER.jpg.

    python make_images.py FOLDER --files 1200 --classes 8 --seed 0

An image is noise of all scales, whose amplitude falls with the frequency as in photographs, over a colour of its class,
with a few ellipses, whose edges are sharp. Sizes are those that are most frequent in ImageNet; a file of 500x375 pixels
has about 95 KB.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZES = ((500, 375), (375, 500), (500, 333), (500, 500))
WEIGHTS = (0.6, 0.15, 0.15, 0.1)
QUALITY = 95
LIGHT, COLOUR = 0.84, 0.5
"""Amplitudes of the noise of brightness and of colour: those of a scale by those of the next larger one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=1200)
    parser.add_argument("--classes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for index in range(options.files):
        label = index % options.classes
        folder = options.folder / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        made = image(np.random.default_rng([options.seed, index]), label / options.classes)
        made.save(folder / f"{index:05d}.jpg", quality=QUALITY)


def image(draws: np.random.Generator, hue: float) -> Image.Image:
    """Return a picture in which `hue`, in [0, 1), prevails."""
    width, height = SIZES[draws.choice(len(SIZES), p=WEIGHTS)]
    angles = 2 * np.pi * (hue + np.arange(3) / 3)
    pixels = 127 + 25 * np.cos(angles) + np.zeros((height, width, 3))
    for octave in range(1, 9):
        grid = draws.integers(0, 256, (min(height, 2**octave), min(width, 2**octave), 4), dtype=np.uint8)
        noise = (
            np.asarray(
                Image.fromarray(grid, "CMYK").resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32
            )
            - 127.5
        )
        pixels += LIGHT**octave * noise[:, :, 3:] + COLOUR**octave * noise[:, :, :3]
    made = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(made)
    for _ in range(draws.integers(3, 9)):
        x, y = draws.integers(0, width), draws.integers(0, height)
        across, down = draws.integers(5, 80, 2)
        pen.ellipse((x - across, y - down, x + across, y + down), fill=tuple(draws.integers(0, 256, 3).tolist()))
    return made


if __name__ == "__main__":
    main()
