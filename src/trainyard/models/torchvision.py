"""Image classifiers of torchvision by name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainyard.checks import integer
from trainyard.errors import ConfigError
from trainyard.models.base import Preprocessor
from trainyard.models.libraries import library, made, not_at_hand
from trainyard.models.supervised import Supervised

log = logging.getLogger(__name__)


class TorchvisionModel(Supervised):
    """A classifier of `torchvision.models`, from images `[B, in_channels, H, W]` to logits `[B, num_classes]`.

    Args:
        name: the name of the model in `torchvision.models.list_models()`.
        num_classes: logits per sample.
        in_channels: channels of the images; for another number than 3, the first convolution is replaced.
        weights: the name of pretrained weights (`DEFAULT`, `IMAGENET1K_V2`), from torch's cache or the network; tensors
            of another shape (a new head or first convolution) keep their random values. None: no weights.
        loss: see `Supervised`.
        data_preprocessor: see `BaseModel`.
        arguments: additional arguments of the model (`dropout`, …).

    Raises:
        ConfigError: torchvision is not installed, the model or the weights do not exist, the weights are not available,
            or the model does not accept an argument.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        in_channels: int = 3,
        weights: str | None = None,
        loss: Callable[[Any, Any], Tensor] | None = None,
        data_preprocessor: Preprocessor = None,
        **arguments: Any,
    ) -> None:
        models = library("torchvision.models", "vision")
        names = models.list_models(module=models)
        if name not in names:
            raise ConfigError(
                "name", name, "the name of a torchvision classifier (see torchvision.models)", options=names
            )
        num_classes = integer("num_classes", num_classes, at_least=1)
        found = None if weights is None else _weights(models, name, weights)
        settings = {"weights": None, "num_classes": num_classes, **arguments}
        net = made(models.get_model, name, settings, of="torchvision")
        if integer("in_channels", in_channels, at_least=1) != 3:
            _take_channels(net, in_channels)
        if found is not None:
            _load(net, found, weights)
        super().__init__(net, loss, data_preprocessor)


def _weights(models: Any, name: str, given: str) -> Any:
    known = models.get_model_weights(name)
    options = ["DEFAULT", *(each.name for each in known)]
    if given not in options:
        raise ConfigError("weights", given, f"null, or weights of {name}: {', '.join(options)}", options=options)
    return known[given]


def _take_channels(net: nn.Module, channels: int) -> None:
    """Replace the first convolution, for images with this number of channels."""
    name, old = next((name, each) for name, each in net.named_modules() if isinstance(each, nn.Conv2d))
    size = (channels, old.out_channels, old.kernel_size, old.stride, old.padding, old.dilation)
    new = nn.Conv2d(*size, bias=old.bias is not None)  # type: ignore[arg-type]
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    net.set_submodule(name, new)


def _load(net: nn.Module, weights: Any, given: str | None) -> None:
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:  # also that of urllib
        place = Path(torch.hub.get_dir()) / "checkpoints" / str(weights.url).rpartition("/")[2]
        instead = "remove this setting and set 'load_from={path:FILE,strict:false}'"
        raise not_at_hand("weights", given, f"place the file at {place}", error, instead) from error
    own = net.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    missing = net.load_state_dict(fitting, strict=False).missing_keys
    new = f"; initialized randomly: {', '.join(missing)}" if missing else ""
    log.info("Loaded %d of %d tensors from %s%s.", len(fitting), len(own), weights, new)
