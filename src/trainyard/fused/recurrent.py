"""Recurrent layers (RNN, LSTM, GRU) as a loop over time, for stacks: `torch.vmap` has no rules for torch's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trainyard.errors import Unfusable

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
State = tuple[Tensor, ...]
Direction = Callable[..., State]
"""Runs a layer in one direction: see `direction`."""

KINDS = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
"""Functions of torch that run all layers of a recurrent module."""


def recurrent(func: Any, run: Callable[..., Any], dropout: Callable[[Tensor, float], Tensor], *args: Any) -> Any:
    """Return the result of a function of `KINDS` for its arguments.

    Args:
        func: the function.
        run: called with `direction` (with its fixed arguments bound) and its tensors.
        dropout: applied to the outputs of all layers but the last.
        *args: the arguments of `func`.

    Raises:
        Unfusable: the sequences are packed.
    """
    if not isinstance(args[2], list | tuple):
        raise Unfusable(
            "a recurrent layer uses packed sequences, which a stack does not support: to stack the jobs, use padded "
            "sequences"
        )
    features, begin, weights, biases, layers, share, training, bidirectional, batch_first = args
    states: Sequence[Tensor] = begin if func is torch.lstm else [begin]
    per_layer = len(weights) // (layers * (1 + bidirectional))
    ends: list[State] = []
    if batch_first:
        features = features.transpose(0, 1)
    for layer in range(layers):
        outputs = []
        for reverse in range(1 + bidirectional):
            place = len(ends)
            own = weights[place * per_layer : (place + 1) * per_layer]
            step = partial(direction, func, bool(reverse), biases)
            output, *end = run(step, *own[:2], features, *(state[place] for state in states), *own[2:])
            outputs.append(output)
            ends.append(tuple(end))
        features = torch.cat(outputs, -1) if bidirectional else outputs[0]
        if share and training and layer + 1 < layers:
            features = dropout(features, share)
    if batch_first:
        features = features.transpose(0, 1)
    return features, *(torch.stack(column) for column in zip(*ends, strict=True))


def direction(
    func: Any,
    reverse: bool,
    biases: bool,
    linear: Linear,
    of_input: Tensor,
    of_state: Tensor,
    features: Tensor,
    *rest: Tensor,
) -> State:
    """Run one layer over time in one direction; all tensors may have leading axes of members.

    The order of the gates and the arithmetic are those of torch's modules.

    Args:
        func: a function of `KINDS`.
        reverse: whether from the end to the beginning.
        biases: whether the layer has biases.
        linear: `torch.nn.functional.linear`, or a function for all members together.
        of_input, of_state: weights, `[gates * hidden, inputs]` and `[gates * hidden, outputs]`.
        features: `[time, batch, inputs]`.
        *rest: the initial state (two tensors `[batch, ...]` for an LSTM, otherwise one), two biases if there are any,
            and the weights of a projection if there is one.

    Returns:
        The outputs `[time, batch, outputs]`, and the final state.
    """
    state, more = (rest[:2], rest[2:]) if func is torch.lstm else (rest[:1], rest[1:])
    bias_of_input, bias_of_state = more[:2] if biases else (None, None)
    projection = more[2 * biases] if len(more) > 2 * biases else None
    hidden, *cell = state
    times = linear(features, of_input, bias_of_input).unbind(-3)
    outputs = []
    for own in reversed(times) if reverse else times:
        recalled = linear(hidden, of_state, bias_of_state)
        if func is torch.lstm:
            into, forget, new, out = (own + recalled).chunk(4, -1)
            cell = [forget.sigmoid() * cell[0] + into.sigmoid() * new.tanh()]
            hidden = out.sigmoid() * cell[0].tanh()
            if projection is not None:
                hidden = linear(hidden, projection, None)
        elif func is torch.gru:
            (reset, update, new), (of_reset, of_update, of_new) = own.chunk(3, -1), recalled.chunk(3, -1)
            new = (new + (reset + of_reset).sigmoid() * of_new).tanh()
            hidden = (hidden - new) * (update + of_update).sigmoid() + new
        else:
            hidden = (own + recalled).tanh() if func is torch.rnn_tanh else (own + recalled).relu()
        outputs.append(hidden)
    return torch.stack(outputs[::-1] if reverse else outputs, -3), hidden, *cell
