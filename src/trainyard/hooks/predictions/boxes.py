"""Pictures with boxes and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from trainyard.hooks.predictions.figures import PALETTE, Array, canvas, colours, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INCHES = 3.0


@dataclass(frozen=True)
class Instances:
    """Objects in one picture, on the CPU.

    Attributes:
        boxes: `[n, 4]`, `x1, y1, x2, y2` in pixels; None if there are only masks.
        masks: bool `[n, H, W]`; None if there are only boxes.
        labels: int `[n]`.
        scores: `[n]`; None for true objects.
    """

    boxes: Array | None
    masks: Array | None
    labels: Array
    scores: Array | None

    @classmethod
    def of(cls, given: Any, score_thr: float = 0.0) -> Instances:
        """Read a mapping of `boxes`, `labels`, `scores`, `masks`, or classes `[H, W]`, or their scores `[C, H, W]`.

        Raises:
            TypeError: the value is none of these.
            KeyError: a mapping has neither boxes nor masks.
        """
        if isinstance(given, Tensor) and given.ndim in (2, 3):
            classes = given.detach().argmax(0) if given.ndim == 3 else given.detach()
            present = np.unique(array := classes.cpu().numpy())
            return cls(None, np.stack([array == label for label in present]), present, None)
        if not isinstance(given, Mapping):
            found = f"a tensor {list(given.shape)}" if isinstance(given, Tensor) else f"of type {type(given).__name__}"
            expected = "a mapping with boxes or masks, a tensor of scores [C, H, W] or a tensor of classes [H, W]"
            raise TypeError(f"the value for an image is {found}, not {expected}")
        known = [name for name in ("boxes", "masks", "labels", "scores") if name in given]
        held = {name: given[name].detach().cpu().numpy() for name in known}
        if "boxes" not in held and "masks" not in held:
            raise KeyError(
                f"the mapping for an image has neither boxes nor masks, but these keys: {', '.join(map(str, given))}"
            )
        count = len(next(iter(held.values())))
        scores = held.get("scores")
        chosen = np.ones(count, dtype=bool) if scores is None else scores >= score_thr
        masks = held.get("masks")
        if masks is not None:
            masks = masks.reshape(count, *masks.shape[-2:])[chosen] > 0.5
        return cls(
            None if "boxes" not in held else held["boxes"].reshape(count, 4)[chosen],
            masks,
            held.get("labels", np.zeros(count, dtype=np.int64))[chosen],
            None if scores is None else scores[chosen],
        )


def figure(
    pictures: Sequence[Array],
    predicted: Sequence[Instances],
    true: Sequence[Instances | None],
    names: Sequence[Any],
    title: str,
) -> Figure:
    """Return a figure with a row for each picture: the predicted objects, and the true ones next to them.

    Args:
        pictures: each `[C, H, W]`, of any size.
        predicted, true: the objects of each picture; None if unknown.
        names: the names of the classes; without names, numbers are shown.
        title: the title of the figure.
    """
    tall = [_INCHES * picture.shape[1] / picture.shape[2] for picture in pictures]
    drawn, axes = canvas(2 * _INCHES + 0.1, sum(tall) + 0.1 * (len(tall) - 1), title)
    axes.set_axis_off()
    axes.set(xlim=(0, 2 * _INCHES + 0.1), ylim=(sum(tall) + 0.1 * (len(tall) - 1), 0))
    top = 0.0
    for picture, height, own, other in zip(pictures, tall, predicted, true, strict=True):
        shown = colours(picture[None])[0]
        for left, instances in ((0.0, own), (_INCHES + 0.1, other)):
            inches = _INCHES / picture.shape[2]
            axes.imshow(shown, extent=(left, left + _INCHES, top + height, top), zorder=1, aspect="auto")
            if instances is not None:
                _draw(axes, instances, names, left, top, inches, height)
        top += height + 0.1
    return drawn


def _draw(
    axes: Any, instances: Instances, names: Sequence[Any], left: float, top: float, inches: float, height: float
) -> None:
    """Draw on a picture with this upper left corner and this pixel size in inches."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    for index, label in enumerate(instances.labels):
        colour = PALETTE[int(label) % len(PALETTE)]
        if instances.masks is not None:
            layer = instances.masks[index][..., None] * np.array(to_rgba(colour, 0.45))
            axes.imshow(layer, extent=(left, left + _INCHES, top + height, top), zorder=2, aspect="auto")
        if instances.boxes is not None:
            x1, y1, x2, y2 = (float(value) * inches for value in instances.boxes[index])
            corner = left + x1, top + y1
            axes.add_patch(Rectangle(corner, x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.5, zorder=3))
            name = str(names[int(label)]) if 0 <= int(label) < len(names) else str(int(label))
            text = name if instances.scores is None else f"{name} {instances.scores[index]:.2f}"
            box = {"facecolor": colour, "edgecolor": "none", "pad": 0.8}
            write(axes, corner, text, ha="left", va="bottom", fontsize=7, color="white", bbox=box, zorder=4)
