"""Private parts of torch, each with a check and, where possible, a public replacement.

Only this file, and `_torch_vmap` for those that leave `torch.vmap`, name them.

`trainyard._fast_paths` lists and switches the parts; each has a test with its name.

Parts that are used once, when a part of a run is built, are functions here. Parts that every step calls are attributes
of `foreach`, which holds torch's function or its replacement, so that a call costs the same as without this module.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

from trainyard._fast_paths import Internal, register, usable

F = TypeVar("F", bound=Callable[..., Any])
Kernel = Literal["adam", "adamw", "adagrad"]
"""Names of the optimizers whose fused kernels are called."""


# -- functions on lists of tensors -------------------------------------------------------------------------------------


class Foreach:
    """torch's `_foreach` functions: one call for a list of tensors. The replacement is a loop of public calls.

    A function whose name ends in `_` changes the tensors of the first list. A function is tested at its first use; code
    that uses a function in a step calls `resolve` first, outside of any torch mode that would record the test.
    """

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in FOREACH:
            raise AttributeError(name)
        path = f"_foreach_{name}"
        function: Callable[..., Any] = getattr(torch, path) if usable(f"torch.{path}") else partial(_each, name)
        setattr(self, name, function)
        return function

    def resolve(self) -> None:
        """Decide for every function whether it is torch's own or the replacement."""
        for name in FOREACH:
            getattr(self, name)


FOREACH: Mapping[str, Sequence[tuple[Any, ...]]] = {
    "abs": [(0, {})],
    "add_": [(0, 1, {})],
    "addcdiv_": [(0, 1, 2, {}), (0, 1, 2, {"value": -1})],
    "addcmul": [(0, 1, 2, {}), (0, 1, 2, {"value": -1})],
    "addcmul_": [(0, 1, 2, {})],
    "copy_": [(0, 1, {})],
    "lerp": [(0, 1, 2, {}), (0, 1, 0.25, {})],
    "lerp_": [(0, 1, 2, {}), (0, 1, 0.25, {})],
    "maximum_": [(0, 1, {})],
    "mul": [(0, 1, {})],
    "mul_": [(0, 1, {}), (0, 0.25, {}), (0, torch.tensor(0.25), {})],
    "neg": [(0, {})],
    "reciprocal_": [(0, {})],
    "sign_": [(0, {})],
    "sqrt": [(0, {})],
    "sqrt_": [(0, {})],
    "sub_": [(0, 1, {}), (0, 1, {"alpha": 0.25})],
    "zero_": [(0, {})],
}
"""The functions, and how each is called: an integer stands for a list of tensors."""


def _each(name: str, first: Sequence[Tensor], *others: Any, **keywords: Any) -> list[Tensor]:
    """Compute `torch._foreach_<name>` tensor by tensor."""
    if name == "maximum_":
        return [torch.maximum(tensor, other, out=tensor) for tensor, other in zip(first, others[0], strict=True)]
    method = getattr(Tensor, name)
    columns = [other if isinstance(other, list | tuple) else [other] * len(first) for other in others]
    return [method(tensor, *row, **keywords) for tensor, *row in zip(first, *columns, strict=True)]


def _check_foreach(name: str) -> bool:
    private = getattr(torch, f"_foreach_{name}")
    for *given, keywords in FOREACH[name]:
        outcomes = []
        for function in (private, partial(_each, name)):
            lists = [[torch.full((2,), 0.5 + number)] for number in range(3)]
            result = function(*[lists[item] if isinstance(item, int) else item for item in given], **keywords)
            outcomes.append(torch.stack([*lists[0], *([] if name.endswith("_") else result)]).tolist())
        if outcomes[0] != outcomes[1]:
            return False
    return True


# -- optimizers --------------------------------------------------------------------------------------------------------


def fused_kernel(name: Kernel) -> Callable[..., None] | None:
    """Return torch's fused kernel of an optimizer; None if the `step` of the optimizer must be called."""
    path = f"torch._fused_{name}_"
    return getattr(torch, f"_fused_{name}_") if usable(path) else None


def _check_fused(name: str) -> bool:
    kernel = getattr(torch, f"_fused_{name}_")
    param, grad, step = torch.tensor([2.0]), torch.tensor([-0.5]), torch.tensor(1.0)
    numbers = {"lr": 0.25, "weight_decay": 0.0, "eps": 0.5, "maximize": False}
    if name == "adagrad":
        kernel([param], [grad], [torch.zeros(1)], [step], lr_decay=0.0, **numbers)
    else:
        kernel(
            [param],
            [grad],
            [torch.zeros(1)],
            [torch.zeros(1)],
            [],
            [step],
            beta1=0.5,
            beta2=0.5,
            amsgrad=False,
            **numbers,
        )
    # The first step goes along grad / |grad|, shortened by eps.
    return torch.allclose(param, torch.tensor([2.0 + 0.25 * 0.5 / (0.5 + 0.5)]))


def unwrapped(function: F) -> F:
    """Return a method of torch's optimizers without its decorators, which import `torch._dynamo`, if possible."""
    return inspect.unwrap(function) if usable("torch.optim.Optimizer.step.__wrapped__") else function


def _check_unwrap() -> bool:
    methods = [Optimizer.state_dict, Optimizer.load_state_dict, *(kind.step for kind in (SGD, Adagrad, Adam, AdamW))]
    return all(_is_decorated(method) for method in methods)


def _is_decorated(method: Callable[..., Any]) -> bool:
    inner = inspect.unwrap(method)
    return inner is not method and inner.__name__ == method.__name__


def may_have_step_hooks(optimizer: Optimizer) -> bool:
    """Return whether hooks are registered on the optimizer; True if this is unknown."""
    if not usable("torch.optim.Optimizer._optimizer_step_pre_hooks"):
        return True
    return any(getattr(optimizer, name, None) for name in _STEP_HOOKS)


_STEP_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


class _Bare(Optimizer):
    """An optimizer without parameters, built without `torch._dynamo`."""

    def __init__(self) -> None:
        super().__init__([torch.zeros(1)], {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Ignore the group."""


def _check_step_hooks() -> bool:
    optimizer = _Bare()
    empty = [len(getattr(optimizer, name)) for name in _STEP_HOOKS]
    optimizer.register_step_pre_hook(lambda *_: None)
    optimizer.register_step_post_hook(lambda *_: None)
    return empty == [0, 0] and [len(getattr(optimizer, name)) for name in _STEP_HOOKS] == [1, 1]


# -- modules -----------------------------------------------------------------------------------------------------------


def own_parameters(module: nn.Module) -> MutableMapping[str, nn.Parameter | None]:
    """Return a module's own parameters by name, including None; writes go to the module."""
    if usable("torch.nn.Module._parameters"):
        return module._parameters
    return _Attributes(module, "named_parameters")


def own_buffers(module: nn.Module) -> MutableMapping[str, Tensor | None]:
    """Return a module's own buffers by name, including None; writes go to the module."""
    return module._buffers if usable("torch.nn.Module._buffers") else _Attributes(module, "named_buffers")


class _Attributes(MutableMapping[str, Any]):
    """A mapping of the parameters or buffers of a module that uses the attributes of the module."""

    def __init__(self, module: nn.Module, kind: str) -> None:
        self._module = module
        self._kind = kind

    def __getitem__(self, name: str) -> Any:
        value = getattr(self._module, name, self)
        if value is None or isinstance(value, Tensor):
            return value
        raise KeyError(name)

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self._module, name, value)

    def __delitem__(self, name: str) -> None:
        delattr(self._module, name)

    def __iter__(self) -> Iterator[str]:
        module = self._module
        for name, _ in getattr(module, self._kind)(recurse=False, remove_duplicate=False):
            yield name
        for name in dir(module):  # torch lists none that is None
            registered = name not in vars(module) and not hasattr(type(module), name)
            if registered and getattr(module, name, self) is None:
                yield name

    def __len__(self) -> int:
        return len(list(self))


def _check_tensors_of_modules(kind: str) -> bool:
    module = nn.Module()
    tensor = nn.Parameter(torch.zeros(1)) if kind == "_parameters" else torch.zeros(1)
    other = tensor.detach().clone() if kind == "_buffers" else nn.Parameter(torch.ones(1))
    if kind == "_parameters":
        module.register_parameter("it", nn.Parameter(tensor))
    else:
        module.register_buffer("it", tensor)
    held = getattr(module, kind)
    if list(held) != ["it"] or held["it"] is not module.it:
        return False
    held["it"] = other
    return module.it is other


# -- others ------------------------------------------------------------------------------------------------------------


def standard_gamma() -> Callable[[Tensor], Tensor]:
    """Return a sampler of Gamma(concentration, 1) that also works in `torch.vmap`."""
    return torch._standard_gamma if usable("torch._standard_gamma") else _public_gamma


def _public_gamma(concentration: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # of vmap: it draws one by one
        gamma = torch.distributions.Gamma(concentration, torch.ones_like(concentration), validate_args=False)
        return gamma.rsample()


def _check_standard_gamma() -> bool:
    drawn = torch._standard_gamma(torch.full((2,), 0.5), generator=torch.Generator().manual_seed(0))
    return drawn.shape == (2,) and bool((drawn > 0).all())


@contextmanager
def flops_without_dynamo() -> Iterator[None]:
    """Inside the block, let `FlopCounterMode` count without importing `torch._dynamo`."""
    if not usable("torch.utils.flop_counter._FlopCounterMode"):
        yield
        return
    from torch.utils import flop_counter

    counting: Any = flop_counter._FlopCounterMode
    wrapped = counting.__torch_dispatch__
    counting.__torch_dispatch__ = inspect.unwrap(wrapped)
    try:
        yield
    finally:
        counting.__torch_dispatch__ = wrapped


def _check_flop_counter() -> bool:
    from torch.utils import flop_counter

    return _is_decorated(flop_counter._FlopCounterMode.__torch_dispatch__)


@contextmanager
def without_inductor() -> Iterator[None]:
    """Hide `torch._inductor` from the profiler's `hasattr` inside the block, if nothing has been compiled.

    Otherwise the query imports it, and `torch._dynamo` with it, which takes seconds.
    """
    lazy: set[str] = getattr(torch, "_lazy_modules", set()) if usable("torch._lazy_modules") else set()
    hidden = lazy & {"_inductor"}
    lazy.difference_update(hidden)
    try:
        yield
    finally:
        lazy.update(hidden)


def _check_lazy_modules() -> bool:
    return "_inductor" in vars(torch)["_lazy_modules"] | set(vars(torch))


def compiled_from(module: nn.Module) -> nn.Module | None:
    """Return the module from which `torch.compile` made this module; None for other modules."""
    inner = getattr(module, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else None


def _check_compiled_module() -> bool:
    module = nn.Identity()
    compiled: Any = torch.compile(module)
    return compiled_from(compiled) is module


def end_allocation(device: int, pool: tuple[int, int]) -> None:
    """Let the allocator of a device end a capture whose end failed; do nothing if the capture has already ended.

    Up to torch 2.11, `CUDAGraph.capture_end` does not do this if CUDA reports an error. The allocator then defers the
    freeing of memory until the end of the capture, which never comes: `empty_cache` and blocks used by several streams
    stop working (https://github.com/pytorch/pytorch/pull/180395).
    """
    with suppress(AttributeError, RuntimeError):  # the binding is gone; the capture has ended
        torch._C._cuda_endAllocateToPool(device, pool)


def _check_end_allocation() -> bool:
    return callable(torch._C._cuda_endAllocateToPool)


_MODELS = ("fused.model", "step.cuda_graph.guards", "models.base", "models.initialize", "optim.paramwise")
_FOREACH_USERS = (
    "fused.optim",
    "optim.lion",
    "step.stacked",
    "step.cuda_graph.captured_step",
    "step.cuda_graph.captured_eval",
    "hooks.ema",
)
_KERNEL = "one call for all parameters, without collecting its arguments again in each step"

foreach = Foreach()
"""torch's `_foreach` functions, or their replacements."""

register(
    (
        *(
            Internal(
                f"torch._foreach_{name}",
                _FOREACH_USERS,
                "one call for a list of tensors",
                f"Tensor.{name} for each tensor" if name != "maximum_" else "torch.maximum for each tensor",
                partial(_check_foreach, name),
            )
            for name in FOREACH
        ),
        *(
            Internal(f"torch._fused_{name}_", users, _KERNEL, replacement, partial(_check_fused, name))
            for name, users, replacement in (
                ("adam", ("optim.fused_adam", "fused.optim.adam"), "torch.optim.Adam.step, or arithmetic on stacks"),
                ("adamw", ("optim.fused_adam", "fused.optim.adam"), "torch.optim.AdamW.step, or arithmetic on stacks"),
                ("adagrad", ("fused.optim.adagrad",), "arithmetic on stacks"),
            )
        ),
        Internal(
            "torch.optim.Optimizer.step.__wrapped__",
            ("optim.without_dynamo", "schedules.standin"),
            "the methods of optimizers without their decorators, which import torch._dynamo; saves one second "
            "at the start and a seventh of the step time of a small model",
            "the decorated methods",
            _check_unwrap,
        ),
        Internal(
            "torch.optim.Optimizer._optimizer_step_pre_hooks",
            ("optim.without_dynamo", "step.cuda_graph.graph_hyperparameters"),
            "whether an optimizer has hooks, because its unwrapped step does not call them",
            "the decorated step of the optimizer, which is never captured",
            _check_step_hooks,
        ),
        *(
            Internal(
                f"torch.nn.Module.{kind}",
                users,
                "the tensors of a module by name, without iterating over submodules and without attribute lookup",
                f"Module.named{kind}(recurse=False), getattr and setattr",
                partial(_check_tensors_of_modules, kind),
            )
            for kind, users in (
                ("_parameters", _MODELS),
                ("_buffers", (*_MODELS[:2], "models.activation_checkpointing")),
            )
        ),
        Internal(
            "torch._standard_gamma",
            ("models.mixing",),
            "numbers from a gamma distribution under torch.vmap, for all members in one operation",
            "torch.distributions.Gamma",
            _check_standard_gamma,
        ),
        Internal(
            "torch.utils.flop_counter._FlopCounterMode",
            ("hooks.model_summary",),
            "counting operations without importing torch._dynamo, which takes seconds",
            "torch.utils.flop_counter.FlopCounterMode",
            _check_flop_counter,
        ),
        Internal(
            "torch._lazy_modules",
            ("hooks.profiler",),
            "a profile without importing torch._inductor, which takes seconds",
            "the unmodified profiler",
            _check_lazy_modules,
        ),
        Internal(
            "torch._dynamo.OptimizedModule._orig_mod",
            ("models.supervised",),
            "the module inside a compiled one; also read when fast paths are off",
            "the compiled module is treated as a module whose forward has no argument mode",
            _check_compiled_module,
        ),
        Internal(
            "torch._C._cuda_endAllocateToPool",
            ("step.cuda_graph.graph",),
            "tells the allocator that a failed capture has ended; also called when fast paths are off",
            "none; torch 2.12 and newer do this themselves",
            _check_end_allocation,
        ),
    ),
    when_switched=vars(foreach).clear,
)
