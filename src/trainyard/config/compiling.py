"""Settings `compile` and `capture`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from trainyard.errors import ConfigError

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
ARGUMENTS = ("fullgraph", "dynamic", "backend", "mode", "options")


def compile_arguments(given: Any) -> dict[str, Any] | None:
    """Return the arguments of `torch.compile`, or None if nothing is compiled.

    Args:
        given: True, False, the name of a mode, or a mapping of the arguments.

    Raises:
        ConfigError: anything else, or an unknown mode or argument.
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
    return arguments


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
