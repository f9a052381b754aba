"""Models of Hugging Face transformers, by task."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainyard.batch import ITEMS
from trainyard.checks import integer
from trainyard.errors import ConfigError
from trainyard.models.base import Preprocessor
from trainyard.models.libraries import copy_of_cache, library, not_at_hand
from trainyard.models.supervised import IGNORED, OWN_TARGET, Supervised, takes

AUTO = "AutoModelFor"
ATTENTION = "sdpa_of_any_mask"
"""Name of the attention that `attention_of_any_mask` registers."""


class Transformers(Supervised):
    """A model of one of transformers' Auto classes.

    The entries of a mapping are passed to the model by name, and with `labels` the model computes its own loss. The
    target of a tuple is passed to `loss`. Metrics use the output's `logits`.

    For `causal_lm`, `labels` are the inputs of the model, and the model shifts them itself. For a batch with `labels`,
    the predictions are shifted to the positions of `labels` too. The first position has no prediction, and its logits
    are zero. Set the label of this position to -100. A target in a tuple must already be shifted, as in `data=text`.

    With torch's `scaled_dot_product_attention`, masks are created without reading tensor values
    (`attention_of_any_mask`), so that the model can be stacked.

    Args:
        task: the Auto class: `sequence_classification` is `AutoModelForSequenceClassification`. Other tasks are
            `causal_lm`, `masked_lm`, `seq2seq_lm`, `token_classification`, `image_classification` and so on.
        name: a folder written by `save_pretrained`, or a model on the Hugging Face Hub: its config and weights. None:
            random weights of the model that `config` describes.
        config: entries of the model's config. Without `name`, the entry `model_type` (`bert`, `gpt2`, …) is required.
        num_classes: `num_labels` of the config, if it is known.
        vocab_size: `vocab_size` of the config, if it is known and there is no `name`.
        loss: `loss(logits, target)`. None: the model's own loss for `labels`, otherwise cross-entropy over the last
            axis.
        data_preprocessor: see `BaseModel`.

    Raises:
        ConfigError: transformers is not installed, the task or an entry of the config does not exist, or the weights
            are not available.
    """

    def __init__(
        self,
        task: str,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        num_classes: int | None = None,
        vocab_size: int | None = None,
        loss: Callable[[Any, Any], Tensor] | None = None,
        data_preprocessor: Preprocessor = None,
    ) -> None:
        transformers = library("transformers", "transformers")
        auto = _auto_class(transformers, task)
        if name is not None and name.startswith("~"):
            name = str(Path(name).expanduser())
        entries = dict(config or {})
        if num_classes is not None:
            entries.setdefault("num_labels", integer("num_classes", num_classes, at_least=1))
        if name is None and vocab_size is not None:
            entries.setdefault("vocab_size", integer("vocab_size", vocab_size, at_least=1))
        full = _config(transformers, name, entries)
        _check_task(transformers, task, full)
        drawn = partial(auto.from_config, full)
        net = _made(drawn, type(full).__name__, entries) if name is None else _pretrained(auto, name, full)
        if getattr(net.config, "_attn_implementation", None) == "sdpa":
            attention_of_any_mask(transformers)
            net.set_attn_implementation(ATTENTION)
        super().__init__(net, cross_entropy if loss is None else loss, data_preprocessor)
        self.has_own_loss = loss is None and takes(net, OWN_TARGET)
        self.shifts = auto.__name__ == f"{AUTO}CausalLM"

    def by_own_loss(self, batch: Mapping[str, Any], mode: str) -> Any:
        """Return the losses or predictions of a model that accepts `labels`."""
        found = super().by_own_loss(batch, mode)
        if not self.shifts:
            return found
        if mode == "loss" and ITEMS in found:
            return found | {ITEMS: (batch["labels"][:, 1:] != IGNORED).sum()}
        if mode == "predict":
            return torch.cat([torch.zeros_like(found[:, :1]), found[:, :-1]], 1)
        return found

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled model, whose attention may be unknown in this process."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        attention_of_any_mask(library("transformers", "transformers"))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config and weights for `from_pretrained`, with the names that transformers uses."""
        self.net.save_pretrained(folder)  # type: ignore[operator]


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits `[..., C]` and classes `[...]`, in which -100 is ignored."""
    return F.cross_entropy(logits.flatten(0, -2), target.flatten(), ignore_index=IGNORED)


def attention_of_any_mask(transformers: Any) -> None:
    """Register the attention `sdpa` of transformers under `ATTENTION`, with masks that are created regardless of their
    values.

    `sdpa` omits a mask in which nothing is masked, for which it reads the mask on the host. With `torch.func.vmap` this
    is impossible if each member has its own mask, and on CUDA the host would wait.
    """
    make_mask = transformers.masking_utils.sdpa_mask

    def mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
        if attention_mask is not None:
            kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        made: Tensor | None = make_mask(*args, attention_mask=attention_mask, **kwargs)
        return made

    attend = transformers.AttentionInterface()["sdpa"]
    transformers.AttentionInterface.register(ATTENTION, attend)
    transformers.AttentionMaskInterface.register(ATTENTION, mask)


def _auto_class(transformers: Any, task: str) -> Any:
    tasks = _tasks(transformers)
    found = tasks.get(task)
    if found is None:
        accepted = f"a task with an Auto class in transformers, such as causal_lm for {AUTO}CausalLM"
        raise ConfigError("task", task, accepted, options=tasks)
    return getattr(transformers.models.auto.modeling_auto, found)


def _tasks(transformers: Any) -> dict[str, str]:
    """Return the names of the Auto classes by task."""
    names = [name for name in vars(transformers.models.auto.modeling_auto) if name.startswith(AUTO)]
    return {re.sub("(?<=[a-z])(?=[A-Z])", "_", name.removeprefix(AUTO)).lower(): name for name in names}


def _check_task(transformers: Any, task: str, config: Any) -> None:
    """Check that transformers has a model of this type for the task."""
    auto = transformers.models.auto.modeling_auto
    fitting = [each for each, name in _tasks(transformers).items() if _has_model(getattr(auto, name), config)]
    if task not in fitting:
        accepted = f"a task for models of the type {config.model_type}: {', '.join(fitting)}"
        raise ConfigError("task", task, accepted, options=fitting)


def _has_model(auto: Any, config: Any) -> bool:
    return type(config) in auto._model_mapping


def _config(transformers: Any, name: str | None, entries: dict[str, Any]) -> Any:
    """Return the model's config: the one of a pretrained model, or the defaults of a model type, with these entries."""
    if name is None:
        kinds = transformers.models.auto.configuration_auto.CONFIG_MAPPING
        kind = entries.pop("model_type", None)
        if not isinstance(kind, str) or kind not in kinds:
            accepted = "a model type, such as bert or gpt2, because `name` is null"
            raise ConfigError("config.model_type", kind, accepted, options=() if kind is None else list(kinds))
        default = kinds[kind]()
    else:
        try:
            default = transformers.AutoConfig.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise _absent(name, error) from error
        entries.pop("model_type", None)
    for key in entries:
        if not hasattr(default, key):
            options = [*default.to_dict(), *default.attribute_map]
            raise ConfigError("config", key, f"an entry of {type(default).__name__}", options=options)
    make: Callable[..., Any] = type(default) if name is None else partial(transformers.AutoConfig.from_pretrained, name)
    return _made(partial(make, **entries), type(default).__name__, entries)


def _made(make: Callable[[], Any], kind: str, entries: dict[str, Any]) -> Any:
    """Return the result of `make()`, which gets these entries of a config of a kind."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        return make()
    except (ValueError, StrictDataclassError) as error:  # as sizes that do not go together, or a string for a number
        said = " ".join(str(error).split()).rstrip(".")
        accepted = f"entries of {kind} that define a model"
        raise ConfigError("config", entries, accepted, hint=f"transformers says: {said}.") from error


def _pretrained(auto: Any, name: str, config: Any) -> Any:
    try:
        return auto.from_pretrained(name, config=config, ignore_mismatched_sizes=True)
    except OSError as error:
        raise _absent(name, error) from error


def _absent(name: str, error: Exception) -> ConfigError:
    if name.startswith((".", "/")) or Path(name).is_dir():
        accepted = "a folder written by save_pretrained, or a model on the Hugging Face Hub"
        said = str(error).strip().split("\n")[0].rstrip(".")
        hint = f"transformers says: {said}." if Path(name).is_dir() else "The folder does not exist."
        return ConfigError("name", name, accepted, hint=hint)
    instead = "set model.name to a folder written by save_pretrained"
    return not_at_hand("name", name, copy_of_cache(name), error, instead)
