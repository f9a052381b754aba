"""Activation checkpointing: memory saved by computing parts of the forward pass a second time."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from trainyard._torch_internals import own_buffers
from trainyard.models.patterns import fits, listed, unknown


def checkpoint_activations(model: nn.Module, patterns: Sequence[str]) -> None:
    """Let the matching modules of `model` keep no activations: the backward pass computes them anew.

    The gradients are the same bit for bit: random numbers are drawn as before, and the buffers that a forward pass
    changes (BatchNorm's statistics) are changed once. Where gradients are off a module runs as ever. Names and state
    dicts stay as they are.

    Args:
        model: changed in place.
        patterns: globs for the full name of a module (`net.blocks.*`, `*.attn`) or for its class (`TransformerBlock`).
            Of a matching module's own parts none is checkpointed once more.

    Raises:
        ConfigError: no list of texts, or a pattern that no module fits.
    """
    key = "activation_checkpointing"
    patterns = listed(key, patterns)
    modules = {name: module for name, module in model.named_modules() if name}
    for pattern in patterns:
        if not any(fits(pattern, name, module) for name, module in modules.items()):
            raise unknown(key, pattern, modules)
    chosen: list[str] = []
    for name, module in modules.items():
        inside = any(name.startswith(f"{outer}.") for outer in chosen)
        if not inside and any(fits(pattern, name, module) for pattern in patterns):
            chosen.append(name)
            # Of an instance, as torch.compile and hooks expect; a partial is copied along with its module.
            module.forward = functools.partial(_forward, module)


def _forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = functools.partial(type(module).forward, module)
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    from torch.utils.checkpoint import checkpoint  # with torch._dynamo, which takes a second: only where it is used

    if torch.compiler.is_compiling():  # it keeps buffers right by itself, and takes no contexts
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=functools.partial(_contexts, module), **kwargs)


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around the forward pass, and around its repetition."""
    return nullcontext(), _buffers_kept(module)


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """Inside the block the module has copies of its buffers: what is written to them is lost."""
    held = [(each, dict(own_buffers(each))) for each in module.modules()]
    for each, buffers in held:
        for name, buffer in buffers.items():
            own_buffers(each)[name] = None if buffer is None else buffer.clone()
    try:
        yield
    finally:
        for each, buffers in held:
            own_buffers(each).update(buffers)
