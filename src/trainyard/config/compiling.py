"""Settings `compile` and `capture`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from trainyard.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
ARGUMENTS = ("fullgraph", "dynamic", "backend", "mode", "options")


def compile_arguments(given: Any) -> dict[str, Any] | None:
    """Return the arguments of `torch.compile`, or None if nothing is compiled.

    Args:
        given: True, False, the name of a mode, or a mapping of the arguments.

    Raises:
        ConfigError: anything else, an unknown mode or argument, or an argument of another type.
    """
    if given is None or isinstance(given, bool):
        return {} if given else None
    if isinstance(given, str):
        _check_mode("compile", given)
        return {"mode": given}
    if not isinstance(given, Mapping):
        raise ConfigError("compile", given, "true, false, null, a mode, or a mapping of torch.compile's arguments")
    for name in given:
        if name not in ARGUMENTS:
            raise ConfigError(
                "compile", name, f"an argument of torch.compile: {', '.join(ARGUMENTS)}", options=ARGUMENTS
            )
    given = OmegaConf.to_container(given, resolve=True) if isinstance(given, DictConfig) else given
    arguments = {str(name): value for name, value in given.items() if value is not None}
    if "mode" in arguments:
        if "options" in arguments:
            raise ConfigError("compile.options", given["options"], "null, because mode is set")
        _check_mode("compile.mode", given["mode"])
    for name in ("fullgraph", "dynamic"):
        if not isinstance(arguments.get(name, True), bool):
            raise ConfigError(f"compile.{name}", arguments[name], "true, false or null")
    backend = arguments.get("backend", "")
    if not (isinstance(backend, str) or callable(backend)):
        raise ConfigError("compile.backend", backend, "the name of a backend of torch.compile, or null")
    options = arguments.get("options", {})
    if not (isinstance(options, Mapping) and all(isinstance(name, str) for name in options)):
        raise ConfigError(
            "compile.options", options, "a mapping from names of options of the backend to values, or null"
        )
    return arguments


def compile_in_place(module: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Compile a module with `torch.compile`.

    Args:
        module: the module, which is changed.
        arguments: the arguments of `torch.compile` (`compile_arguments`).

    Raises:
        ConfigError: PyTorch refuses an argument, such as a backend or an option that does not exist.
    """
    try:
        module.compile(**arguments)
    except RuntimeError as error:
        import torch  # imported here because the checks of a config need no torch

        backend, backends = arguments.get("backend"), torch.compiler.list_backends(exclude_tags=())
        if isinstance(backend, str) and backend not in backends:
            accepted = f"a backend of torch.compile, such as {', '.join(torch.compiler.list_backends())}"
            raise ConfigError("compile.backend", backend, accepted, options=backends) from error
        said = str(error).partition(", known options are")[0].rstrip(".")
        hint = f"PyTorch: {said}. torch._inductor.list_options() lists the options of the default backend."
        raise ConfigError("compile", dict(arguments), "arguments that torch.compile accepts", hint=hint) from error


def has_cuda_graphs(arguments: Mapping[str, Any]) -> bool:
    """Return whether `torch.compile` with these arguments creates CUDA graphs, which another graph cannot contain."""
    return (
        arguments.get("mode") in ("reduce-overhead", "max-autotune")
        or arguments.get("backend") == "cudagraphs"
        or bool((arguments.get("options") or {}).get("triton.cudagraphs"))
    )


def check_capture(given: Any, device: str = "cuda") -> None:
    """Check the setting `capture` for a device of this type.

    Raises:
        ConfigError: it is not auto, true or false; or it is true and the device is not CUDA.
    """
    if not (isinstance(given, bool) or given == "auto"):
        raise ConfigError("capture", given, "auto, true or false", options=("auto", "true", "false"))
    if given is True and device != "cuda":
        hint = f"This run uses the device {device}, which does not support CUDA graphs."
        raise ConfigError("capture", True, "auto or false", hint=hint)


def _check_mode(key: str, mode: Any) -> None:
    if mode not in MODES:
        others = "" if "." in key else "true, false, null, a mapping of torch.compile's arguments, or "
        raise ConfigError(key, mode, f"{others}a mode: {', '.join(MODES)}", options=MODES)
