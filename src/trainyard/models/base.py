"""Model contract and its base class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from trainyard._torch_internals import own_parameters
from trainyard.batch import lies_on, to_device
from trainyard.errors import ConfigError, TrainyardError

MODES = ("loss", "predict", "tensor")
LOGGED = "logged"
"""Key under which a model returns, in addition to its losses, a mapping of numbers that are recorded but not
minimized."""

Preprocessor = nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module | None] | None


class BaseModel(nn.Module):
    """A model that the Runner can train, validate and test.

    A subclass writes `forward(*batch, mode)` (or `forward(**batch, mode)`), where `mode` is

    * `"loss"`: a dict of scalar losses. The losses whose key contains `loss` are summed, and `backward` is called on
      the sum. If the losses are means over items other than the samples (such as tokens that are not ignored),
      `num_items` is the number of these items, as a tensor. `logged` is a mapping of additional numbers, which are
      recorded but are not part of the loss, regardless of their names;
    * `"predict"`: the input of the metrics, such as logits `[B, num_classes]`;
    * `"tensor"`: the raw output of the network.

    A tuple or list is passed as `*batch`, a mapping as `**batch`, any other object as one argument. To be trained as a
    member of a stack, `forward` must support `torch.func.vmap`: no `.item()`, and no control flow that depends on the
    data.

    Args:
        data_preprocessor: a module that is called on every batch before `forward`, after the batch was moved to the
            model's device; or a list or mapping of several modules, called in order. None: batches are only moved to
            the device.

    Example:
        >>> class Linear(BaseModel):
        ...     def __init__(self, in_features: int) -> None:
        ...         super().__init__()
        ...         self.layer = nn.Linear(in_features, 1)
        ...     def forward(self, x, y=None, mode="tensor"):
        ...         output = self.layer(x).squeeze(-1)
        ...         return {"loss": (output - y).square().mean()} if mode == "loss" else output
        >>> sorted(Linear(3).train_step((torch.ones(8, 3), torch.ones(8))))
        ['loss']
    """

    capturable: bool = True
    """Whether its steps can be captured into CUDA graphs: they compute on the device, without state on the host."""

    def __init__(self, data_preprocessor: Preprocessor = None) -> None:
        super().__init__()
        self.data_preprocessor = as_module(data_preprocessor)
        self._anchor: _Anchor | None = None

    def forward(self, *args: Any, mode: str = "tensor", **kwargs: Any) -> Any:
        """Compute losses, predictions or the raw output, depending on `mode`; see the class."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(*batch, mode).")

    def train_step(self, batch: Any) -> dict[str, Tensor]:
        """Return the losses of a batch: scalars on the device, not yet summed (see `total_loss`)."""
        losses: dict[str, Tensor] = call(self, self.preprocess(batch), "loss")
        return losses

    def loss_step(self, batch: Any) -> dict[str, Tensor]:
        """Return the losses of a batch, for the validation of a run without metrics: see `total_loss`."""
        losses: dict[str, Tensor] = call(self, self.preprocess(batch), "loss")
        return losses

    def val_step(self, batch: Any) -> Any:
        """Return the predictions for a batch of the validation data, in evaluation mode and without gradients."""
        return call(self, self.preprocess(batch), "predict")

    def test_step(self, batch: Any) -> Any:
        """Return the predictions for a batch of the test data."""
        return self.val_step(batch)

    def attach(self, parts: Any) -> None:
        """Attach the model to a run with these `parts`: called once, after the run has built the model."""

    def preprocess(self, batch: Any) -> Any:
        """Move the batch to the model's device, and pass it through `data_preprocessor` if there is one."""
        device = self._device()
        if device is not None and not lies_on(batch, device):
            batch = to_device(batch, device)
        return batch if self.data_preprocessor is None else self.data_preprocessor(batch)

    def _device(self) -> torch.device | None:
        """Return the device of the first parameter; None for a model without any.

        Iterating over `parameters()` takes longer than the rest of the overhead of a step. Therefore, the place of the
        first parameter is cached: the dict of its module and its name. The entry may be replaced (`to`,
        `functional_call`, FSDP).
        """
        parameter = None if self._anchor is None else self._anchor.parameter
        if parameter is None:
            entries = ((own, name) for own in map(own_parameters, self.modules()) for name in own)
            found = (_Anchor(own, name) for own, name in entries if own[name] is not None)
            self._anchor = next(found, None)
            parameter = None if self._anchor is None else self._anchor.parameter
            if parameter is None:
                return None
        return parameter.device


@dataclass(frozen=True)
class _Anchor:
    """Place of the first parameter of a model. It is not compared as a value of the model, because equal models could
    differ in it."""

    owner: Mapping[str, nn.Parameter | None]
    name: str

    @property
    def parameter(self) -> nn.Parameter | None:
        return self.owner.get(self.name)


def call(model: nn.Module, batch: Any, mode: str) -> Any:
    """Call `model.forward` on a batch in one of the modes, for any module whose `forward` takes `mode`.

    A tuple or list is passed as `*batch`, a mapping as `**batch`, any other object as one argument.
    """
    if isinstance(batch, (tuple, list)):
        return model(*batch, mode=mode)
    if isinstance(batch, Mapping):
        return model(**batch, mode=mode)
    return model(batch, mode=mode)


def as_module(preprocessor: Preprocessor) -> nn.Module | None:
    """Return a preprocessor as one module; several modules are called one after the other.

    Raises:
        ConfigError: it is neither a module nor several modules.
    """
    if preprocessor is None or isinstance(preprocessor, nn.Module):
        return preprocessor
    named = isinstance(preprocessor, str)  # an option of the group, without the slash that selects it
    hint = "To select an option of this group, use for example +model/data_preprocessor=normalize." if named else ""
    return nn.Sequential(*modules("data_preprocessor", preprocessor, "null, a torch.nn.Module, ", hint))


def modules(key: str, given: Any, other: str = "", hint: str = "") -> list[nn.Module]:
    """Return modules from a list, or from a mapping by name, in order; names whose value is None are omitted.

    Args:
        key: the key of the value.
        given: the value.
        other: another value that the caller accepts and has already handled; for the message.
        hint: an additional sentence of the message.

    Raises:
        ConfigError: the value is something else.
    """
    found = [each for each in given.values() if each is not None] if isinstance(given, Mapping) else given
    if not isinstance(found, Sequence) or not all(isinstance(each, nn.Module) for each in found):
        accepted = f"{other}a list of torch.nn.Modules, a mapping of them by name, or the `_target_`s that build them"
        raise ConfigError(key, given, accepted, hint=hint)
    return list(found)


def uncapturable(model: nn.Module) -> str | None:
    """Return the class of the first part of a model that is marked as not capturable; None if there is none."""
    return next((type(part).__name__ for part in model.modules() if getattr(part, "capturable", True) is False), None)


def total_loss(losses: Mapping[str, Any], *, stacked: bool = False) -> Tensor:
    """Sum the entries whose key contains `loss`; a list of tensors counts as the sum of its elements.

    Other entries (such as an accuracy of the training batch) are ignored.

    Args:
        losses: scalars; for a stack of K members, tensors `[K]`.
        stacked: whether the losses belong to a stack.

    Returns:
        A scalar, or `[K]`.

    Raises:
        TrainyardError: `losses` is not a mapping, a key is not a string, none of the keys contains `loss`, none of
            these entries is a tensor, one of them is neither a tensor nor a number, or a loss is not one number per
            member.
    """
    if not isinstance(losses, (dict, Mapping)):  # a dict is recognized faster
        raise TrainyardError(
            f"The model returned losses of type {type(losses).__name__}, but the losses of a batch must be a dict such "
            "as {'loss': loss}."
        )
    total: Any = None
    for key, value in losses.items():
        if not isinstance(key, str):
            raise TrainyardError(
                f"The model returned the key {key!r} in the losses of a batch. Expected strings, such as 'loss'."
            )
        if "loss" in key:
            for term in value if isinstance(value, (list, tuple)) else (value,):
                if not isinstance(term, (Tensor, Real)):
                    raise _no_loss(repr(key) if term is value else f"an element of {key!r}", term)
                if isinstance(term, Tensor) and term.dim() > stacked:
                    term = _one_number(key, term, term.shape[:stacked])
                total = term if total is None else total + term
    if not isinstance(total, Tensor):
        named = next((key for key in losses if "loss" in key), None)
        if named is not None:
            raise _no_loss(repr(named), losses[named])
        keys = ", ".join(map(repr, losses))
        found = f"has the key{'s' if len(losses) > 1 else ''} {keys}" if keys else "is empty"
        raise TrainyardError(
            f"The model returned no loss: the key of a loss must contain 'loss', but the returned dict {found}."
        )
    return total


def _no_loss(name: str, given: object) -> TrainyardError:
    """Return the error for an entry of the losses, or for an element of one, that is not a tensor."""
    return TrainyardError(
        f"The model returned {name} of type {type(given).__name__}, but a loss must be a tensor, or a list of at least "
        "one tensor."
    )


def _one_number(key: str, loss: Tensor, shape: torch.Size) -> Tensor:
    """Return a loss of the shape `[1]`, or `[K, 1]` in a stack, without its last dimensions."""
    if loss.numel() != shape.numel():
        raise not_one_number(key, loss.shape[len(shape) :], "The sum of its elements would grow with their number")
    return loss.reshape(shape)


def not_one_number(key: str, shape: Sequence[int], why: str) -> TrainyardError:
    """Return the error for an entry of the losses that has more than one number for each member."""
    return TrainyardError(
        f"The model returned {key!r} with the shape {list(shape)}, but it must be one number. {why}. Take the mean "
        "(reduction='mean', or .mean()) or another reduction."
    )
