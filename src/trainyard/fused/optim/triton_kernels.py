"""Triton kernels: a step of stacked Adam, AdamW or SGD in one pass over memory.

A step consists of two kinds of launches. The clock, one program for all members, increments their step counts and
computes the factors that depend on a count, in float64. The update, a program for each part of each member, reads
parameter, gradient and state once and writes parameter and state once: 28 bytes per number for Adam in float32. Each
program reads the numbers of its member on the device.

A stack `[K, *shape]` of a bucket is treated as K rows of memory (`ParameterBucket.row_wise`), with any order of the
numbers in a row; gradient and state have the layout of the parameter.

Sources of the algorithms: Kingma and Ba, Adam, https://arxiv.org/abs/1412.6980; Loshchilov and Hutter, AdamW,
https://arxiv.org/abs/1711.05101; Reddi, Kale and Kumar, AMSGrad, https://arxiv.org/abs/1904.09237; Sutskever, Martens,
Dahl and Hinton, momentum, https://proceedings.mlr.press/v28/sutskever13.html. If they leave a choice, the kernels
follow `torch.optim`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from trainyard.fused.optim.bucket import ParameterBucket
from trainyard.fused.optim.stacked_hyperparameters import StackedHyperparameters

WIDTH = 1024
"""Numbers that a program updates."""
PARAMETERS = 32
"""Maximum number of parameters of a launch: a program searches them for its own."""
ALIGNED = 16
"""Triton checks whether an address (in bytes) or a size (in numbers) is a multiple of this. If all of a launch are, a
thread processes four numbers at a time; otherwise, Triton compiles other code."""


# -- kernels -----------------------------------------------------------------------------------------------------------
# No argument may be called `params`, `options` or `specialization`: Triton binds the arguments beside names of its own.


@triton.jit(do_not_specialize=["members"])
def _adam_clock(
    step: tl.tensor,
    lr: tl.tensor,
    beta1: tl.tensor,
    beta2: tl.tensor,
    eps: tl.tensor,
    rates: tl.tensor,
    floors: tl.tensor,
    members: tl.tensor,
    skip: tl.tensor,
    skips: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """Count a step of each member, and write its learning rate and its `eps`, both with bias correction.

    With s = sqrt(1 - beta2^t), lr / (1 - beta1^t) * m / (sqrt(v) / s + eps) is computed as `rate` * m / (sqrt(v) +
    `floor`), where `rate` is lr * s / (1 - beta1^t), and `floor` is eps * s.
    """
    member = tl.program_id(0) * width + tl.arange(0, width)
    mask = member < members
    if skips:
        mask = mask & (tl.load(skip + member, mask=mask, other=1) == 0)
    count = tl.load(step + member, mask=mask, other=0).to(tl.float64) + 1
    tl.store(step + member, count, mask=mask)
    power1 = tl.exp(count * tl.log(tl.load(beta1 + member, mask=mask, other=0.5)))
    power2 = tl.exp(count * tl.log(tl.load(beta2 + member, mask=mask, other=0.5)))
    scale = tl.sqrt(1 - power2)
    tl.store(rates + member, tl.load(lr + member, mask=mask, other=0) * scale / (1 - power1), mask=mask)
    tl.store(floors + member, tl.load(eps + member, mask=mask, other=0) * scale, mask=mask)


@triton.jit(do_not_specialize=["blocks"])
def _adam_update(
    parameters: tl.tuple,
    grads: tl.tuple,
    exp_avgs: tl.tuple,
    exp_avg_sqs: tl.tuple,
    max_exp_avg_sqs: tl.tuple,
    sizes: tl.tuple,
    firsts: tl.tuple,
    blocks: tl.tensor,
    lr: tl.tensor,
    beta1: tl.tensor,
    beta2: tl.tensor,
    weight_decay: tl.tensor,
    rates: tl.tensor,
    floors: tl.tensor,
    skip: tl.tensor,
    amsgrad: tl.constexpr,
    maximize: tl.constexpr,
    decoupled: tl.constexpr,
    skips: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """Update `width` numbers of a member.

    A member has `blocks` programs: those of the first parameter, then those of the next, from `firsts` on. `parameters`
    and the tuples after it hold a pointer for each parameter, `sizes` the numbers in a row of it.
    """
    member = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    at, mask = _place(member, block, sizes, firsts, skip, skips, width)
    parameters_at = _pick(parameters, firsts, block) + at
    exp_avgs_at = _pick(exp_avgs, firsts, block) + at
    exp_avg_sqs_at = _pick(exp_avg_sqs, firsts, block) + at
    param = tl.load(parameters_at, mask=mask, other=0)
    grad = tl.load(_pick(grads, firsts, block) + at, mask=mask, other=0)
    exp_avg = tl.load(exp_avgs_at, mask=mask, other=0)
    exp_avg_sq = tl.load(exp_avg_sqs_at, mask=mask, other=0)

    dtype = param.dtype
    decay = tl.load(weight_decay + member)
    if maximize:
        grad = -grad
    if decoupled:
        param = param * (1 - tl.load(lr + member) * decay).to(dtype)
    else:
        grad = tl.where(decay != 0, grad + decay.to(dtype) * param, grad)
    exp_avg = _lerp(exp_avg, grad, (1 - tl.load(beta1 + member)).to(dtype))
    exp_avg_sq = _lerp(exp_avg_sq, grad * grad, (1 - tl.load(beta2 + member)).to(dtype))
    tl.store(exp_avgs_at, exp_avg, mask=mask)
    tl.store(exp_avg_sqs_at, exp_avg_sq, mask=mask)
    if amsgrad:
        greatest_at = _pick(max_exp_avg_sqs, firsts, block) + at
        greatest = tl.load(greatest_at, mask=mask, other=0)
        larger = (exp_avg_sq > greatest) | (exp_avg_sq != exp_avg_sq)  # or not a number
        exp_avg_sq = tl.where(larger, exp_avg_sq, greatest)
        tl.store(greatest_at, exp_avg_sq, mask=mask)
    denominator = _root(exp_avg_sq) + tl.load(floors + member)
    tl.store(parameters_at, param - tl.load(rates + member) * _quotient(exp_avg, denominator), mask=mask)


@triton.jit(do_not_specialize=["members"])
def _sgd_clock(
    step: tl.tensor, momentum: tl.tensor, members: tl.tensor, skip: tl.tensor, skips: tl.constexpr, width: tl.constexpr
) -> None:
    """Count a step of each member that has a momentum."""
    member = tl.program_id(0) * width + tl.arange(0, width)
    mask = member < members
    if skips:
        mask = mask & (tl.load(skip + member, mask=mask, other=1) == 0)
    mask = mask & (tl.load(momentum + member, mask=mask, other=0) != 0)
    tl.store(step + member, tl.load(step + member, mask=mask, other=0) + 1, mask=mask)


@triton.jit(do_not_specialize=["blocks"])
def _sgd_update(
    parameters: tl.tuple,
    grads: tl.tuple,
    buffers: tl.tuple,
    sizes: tl.tuple,
    firsts: tl.tuple,
    blocks: tl.tensor,
    step: tl.tensor,
    lr: tl.tensor,
    momentum: tl.tensor,
    dampening: tl.tensor,
    weight_decay: tl.tensor,
    skip: tl.tensor,
    buffered: tl.constexpr,
    nesterov: tl.constexpr,
    maximize: tl.constexpr,
    skips: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """Update `width` numbers of a member, as `_adam_update` does; `buffered` if any member has a momentum."""
    member = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    at, mask = _place(member, block, sizes, firsts, skip, skips, width)
    parameters_at = _pick(parameters, firsts, block) + at
    param = tl.load(parameters_at, mask=mask, other=0)
    grad = tl.load(_pick(grads, firsts, block) + at, mask=mask, other=0)

    dtype = param.dtype
    decay = tl.load(weight_decay + member).to(dtype)
    if maximize:
        grad = -grad
    grad = tl.where(decay != 0, grad + decay * param, grad)
    if buffered:
        kept = tl.load(momentum + member).to(dtype)
        added = tl.where(tl.load(step + member) > 1, 1 - tl.load(dampening + member), 1.0).to(dtype)
        buffers_at = _pick(buffers, firsts, block) + at
        buffer = tl.load(buffers_at, mask=mask, other=0)
        buffer = tl.where(kept != 0, kept * buffer + added * grad, buffer)  # one without a momentum stays
        tl.store(buffers_at, buffer, mask=mask)
        grad = grad + kept * buffer if nesterov else tl.where(kept != 0, buffer, grad)
    tl.store(parameters_at, param - tl.load(lr + member).to(dtype) * grad, mask=mask)


@triton.jit
def _pick(values: tl.tuple, firsts: tl.tuple, block: tl.tensor) -> tl.tensor:
    """Return the value of the parameter to which a program belongs."""
    value = values[0]
    for index in tl.static_range(1, len(values)):
        value = tl.where(block >= firsts[index], values[index], value)
    return value


@triton.jit
def _place(
    member: tl.tensor,
    block: tl.tensor,
    sizes: tl.tuple,
    firsts: tl.tuple,
    skip: tl.tensor,
    skips: tl.constexpr,
    width: tl.constexpr,
) -> tl.tuple:
    """Return the indices of a program's numbers in their parameter, and which of them exist and must be updated."""
    size = _pick(sizes, firsts, block)
    offset = (block - _pick(firsts, firsts, block)) * width + tl.arange(0, width)
    mask = offset < size
    if skips:
        mask = mask & (tl.load(skip + member) == 0)
    return member.to(tl.int64) * size + offset, mask


@triton.jit
def _lerp(start: tl.tensor, end: tl.tensor, weight: tl.tensor) -> tl.tensor:
    """Return `torch.lerp(start, end, weight)`, which is exactly `end` at a weight of 1."""
    difference = end - start
    return tl.where(weight < 0.5, start + weight * difference, end - difference * (1 - weight))


@triton.jit
def _root(number: tl.tensor) -> tl.tensor:
    """Return the root, correctly rounded; `tl.sqrt` is approximate in float32."""
    return tl.sqrt_rn(number) if number.dtype == tl.float32 else tl.sqrt(number)


@triton.jit
def _quotient(above: tl.tensor, below: tl.tensor) -> tl.tensor:
    """Return the quotient, correctly rounded; `/` is approximate in float32."""
    return tl.div_rn(above, below) if above.dtype == tl.float32 else above / below


# -- launches ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """Parameters of a bucket that one launch updates.

    Attributes:
        place: the indices of the parameters in their bucket.
        params: the parameters.
        states: the states of each kind, in the order of the kernel's arguments.
        sizes: the number of elements in a row of each parameter.
        firsts: for each parameter, its first program of a member.
        blocks: the number of programs of a member.
    """

    place: tuple[int, ...]
    params: tuple[Tensor, ...]
    states: tuple[tuple[Tensor, ...], ...]
    sizes: tuple[int, ...]
    firsts: tuple[int, ...]
    blocks: int


class _BucketLaunch:
    """Launches for one bucket; a subclass is one family.

    Args:
        bucket: a `row_wise` bucket of float32 or float64.
        states: names of the states that the kernels of the family read.
    """

    def __init__(self, bucket: ParameterBucket, states: Sequence[str]) -> None:
        self._bucket = bucket
        self._step = bucket.clock["step"]
        self._parts = list(_parts(bucket, states))

    def _each_member(self, kernel: Any, *args: Any, **flags: Any) -> None:
        """Launch a clock: a program for `WIDTH` members."""
        with torch.cuda.device_of(self._step):  # type: ignore[no-untyped-call]
            kernel[(triton.cdiv(self._bucket.members, WIDTH),)](*args, self._bucket.members, **flags, width=WIDTH)

    def _grads(self) -> list[Tensor]:
        """Return the gradients at aligned addresses, so that a capture needs the same code as the steps before it."""
        return [grad if grad.data_ptr() % ALIGNED == 0 else grad.clone() for grad in self._bucket.whole_grads()]

    def _each_part(self, kernel: Any, *args: Any, **flags: Any) -> None:
        """Launch an update of every parameter."""
        grads = self._grads()
        with torch.cuda.device_of(self._step):  # type: ignore[no-untyped-call]
            for part in self._parts:
                own = tuple(grads[index] for index in part.place)
                given = (part.params, own, *part.states, part.sizes, part.firsts, part.blocks, *args)
                kernel[(part.blocks * self._bucket.members,)](*given, **flags, width=WIDTH)

    def _skip(self, skip: Tensor | None) -> dict[str, Any]:
        """Return the arguments `skip` and `skips`; the first is not read if there is nothing to skip."""
        return {"skip": self._step if skip is None else skip, "skips": skip is not None}


class Adam(_BucketLaunch):
    """Launches of Adam and AdamW, which differ in the flag `decoupled_weight_decay`."""

    def __init__(self, bucket: ParameterBucket) -> None:
        last = "max_exp_avg_sq" if "max_exp_avg_sq" in bucket.states[0] else "exp_avg_sq"
        super().__init__(bucket, ("exp_avg", "exp_avg_sq", last))
        self._rates, self._floors = bucket.params[0].new_empty(2, bucket.members).unbind()

    def __call__(self, group: Mapping[str, Any], numbers: StackedHyperparameters, skip: Tensor | None) -> None:
        lr, beta1, beta2, eps, decay = (numbers.device[n] for n in ("lr", "beta1", "beta2", "eps", "weight_decay"))
        given = self._skip(skip)
        self._each_member(_adam_clock, self._step, lr, beta1, beta2, eps, self._rates, self._floors, **given)
        self._each_part(
            _adam_update,
            *(lr, beta1, beta2, decay, self._rates, self._floors),
            **given,
            amsgrad=bool(group["amsgrad"]),
            maximize=bool(group["maximize"]),
            decoupled=bool(group["decoupled_weight_decay"]),
        )


class SGD(_BucketLaunch):
    """Launches of SGD. Without any momentum, neither buffers nor step counts are touched."""

    def __init__(self, bucket: ParameterBucket) -> None:
        super().__init__(bucket, ("momentum_buffer",))

    def __call__(self, group: Mapping[str, Any], numbers: StackedHyperparameters, skip: Tensor | None) -> None:
        names = ("lr", "momentum", "dampening", "weight_decay")
        lr, momentum, dampening, decay = (numbers.device[name] for name in names)
        given, buffered = self._skip(skip), numbers.some("momentum")
        if buffered:
            self._each_member(_sgd_clock, self._step, momentum, **given)
        self._each_part(
            _sgd_update,
            *(self._step, lr, momentum, dampening, decay),
            **given,
            buffered=buffered,
            nesterov=bool(group["nesterov"]),
            maximize=bool(group["maximize"]),
        )


def _parts(bucket: ParameterBucket, states: Sequence[str]) -> Iterator[_Part]:
    """Yield the parts of a bucket: parameters whose rows all begin at aligned addresses, and the others."""
    sizes = [param[0].numel() for param in bucket.params]
    aligned = [index for index, size in enumerate(sizes) if size and size % ALIGNED == 0]
    others = [index for index, size in enumerate(sizes) if size % ALIGNED]
    for kind in (aligned, others):
        for start in range(0, len(kind), PARAMETERS):
            place = tuple(kind[start : start + PARAMETERS])
            blocks = [triton.cdiv(sizes[index], WIDTH) for index in place]
            yield _Part(
                place,
                tuple(bucket.params[index].detach() for index in place),
                tuple(tuple(bucket.states[index][name] for index in place) for name in states),
                tuple(sizes[index] for index in place),
                tuple(accumulate(blocks, initial=0))[:-1],
                sum(blocks),
            )


def work_on(device: torch.device) -> bool:
    """Return whether a first step of Adam is correct; waits for the device."""
    param = nn.Parameter(torch.full((2, 1), 2.0, device=device))
    param.grad = torch.full((2, 1), -0.5, device=device)
    state = {name: torch.zeros(2, 1, device=device) for name in ("exp_avg", "exp_avg_sq")}
    bucket = ParameterBucket([param], [state], {"step": torch.zeros(2, device=device)})
    lr, half, zero = (torch.full((2,), number, dtype=torch.float64) for number in (0.25, 0.5, 0.0))
    group = {"lr": lr, "betas": (half, half), "eps": half, "weight_decay": zero}
    numbers = StackedHyperparameters(group, tuple(group), device)
    flags = {"amsgrad": False, "maximize": False, "decoupled_weight_decay": False}
    Adam(bucket)(flags, numbers, skip=torch.tensor([False, True], device=device))
    # The first step goes along grad / |grad|, shortened by eps.
    return torch.allclose(param.detach().cpu(), torch.tensor([[2.0 + 0.25 * 0.5 / (0.5 + 0.5)], [2.0]]))
