"""Image models of timm by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from trainyard.checks import existing_file, integer
from trainyard.errors import ConfigError
from trainyard.models.base import Preprocessor
from trainyard.models.libraries import copy_of_cache, library, made, not_at_hand
from trainyard.models.supervised import Supervised


class Timm(Supervised):
    """A model of `timm.create_model`, from images `[B, in_channels, H, W]` to logits `[B, num_classes]`.

    Args:
        name: the name of the model in `timm.list_models()`, with or without the tag of its weights
            (`resnet18.a1_in1k`).
        num_classes: logits per sample.
        in_channels: channels of the images.
        pretrained: true: the weights of `name`, from timm's cache or the hub; a path: the weights in this file. The
            head is initialized randomly if the weights have another number of classes.
        loss: see `Supervised`.
        data_preprocessor: see `BaseModel`.
        arguments: additional arguments of the model (`drop_rate`, `img_size`, …).

    Raises:
        ConfigError: timm is not installed, the model does not exist or does not accept an argument, or its weights are
            not available.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        in_channels: int = 3,
        pretrained: bool | str = False,
        loss: Callable[[Any, Any], Tensor] | None = None,
        data_preprocessor: Preprocessor = None,
        **arguments: Any,
    ) -> None:
        timm = library("timm", "timm")
        if not isinstance(name, str) or not timm.is_model(name.removeprefix("timm/")):
            raise ConfigError(
                "name", name, "the name of a timm model (see timm.list_models())", options=timm.list_models()
            )
        arguments |= {
            "num_classes": integer("num_classes", num_classes, at_least=0),
            "in_chans": integer("in_channels", in_channels, at_least=1),
        }
        if isinstance(pretrained, str):
            arguments["pretrained_cfg_overlay"] = {"file": str(existing_file("pretrained", pretrained))}
        elif not isinstance(pretrained, bool):
            raise ConfigError("pretrained", pretrained, "true, false or the path of a file")
        try:
            net = made(timm.create_model, name, {"pretrained": bool(pretrained), **arguments}, of="timm")
        except OSError as error:
            instead = "set `pretrained` to the path of a weights file"
            raise not_at_hand("pretrained", pretrained, _place(timm, name), error, instead) from error
        super().__init__(net, loss, data_preprocessor)


def _place(timm: Any, name: str) -> str:
    known = timm.models.get_pretrained_cfg(name.removeprefix("timm/"))
    return copy_of_cache(known.hf_hub_id) if known and known.hf_hub_id else ""
