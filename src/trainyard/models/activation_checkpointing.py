"""Activation checkpointing, which saves memory by computing parts of the forward pass twice."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from trainyard._torch_internals import own_buffers
from trainyard.models.patterns import fits, pattern_list, unknown


def checkpoint_activations(model: nn.Module, patterns: Sequence[str]) -> None:
    """Recompute the activations of the matching modules of `model` in the backward pass instead of keeping them.

    The gradients are bit-identical: the same random numbers are drawn, and the buffers that a forward pass changes
    (BatchNorm's statistics) are changed only once. Without gradients, a module runs as usual. Names and state dicts do
    not change.

    Args:
        model: changed in place.
        patterns: globs for the full name of a module (`net.blocks.*`, `*.attn`) or for its class (`TransformerBlock`).
            Submodules of a matching module are not checkpointed again.

    Raises:
        ConfigError: `patterns` is not a list of strings, or a pattern matches no module.
    """
    key = "activation_checkpointing"
    patterns = pattern_list(key, patterns)
    modules = {name: module for name, module in model.named_modules() if name}
    for pattern in patterns:
        if not any(fits(pattern, name, module) for name, module in modules.items()):
            raise unknown(key, pattern, modules)
    chosen: list[str] = []
    for name, module in modules.items():
        inside = any(name.startswith(f"{outer}.") for outer in chosen)
        if not inside and any(fits(pattern, name, module) for pattern in patterns):
            chosen.append(name)
            # Set on the instance, as torch.compile and hooks expect; a partial is copied along with its module.
            module.forward = functools.partial(_forward, module)


def _forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = functools.partial(type(module).forward, module)
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    from torch.utils.checkpoint import checkpoint  # imports torch._dynamo, which takes a second, so only where used

    if torch.compiler.is_compiling():  # torch.compile handles buffers itself, and takes no contexts
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=functools.partial(_contexts, module), **kwargs)


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the forward pass and of its repetition."""
    return nullcontext(), _buffers_kept(module)


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """Give the module copies of its buffers inside the block; writes to them are lost."""
    held = [(each, dict(own_buffers(each))) for each in module.modules()]
    for each, buffers in held:
        for name, buffer in buffers.items():
            own_buffers(each)[name] = None if buffer is None else buffer.clone()
    try:
        yield
    finally:
        for each, buffers in held:
            own_buffers(each).update(buffers)
