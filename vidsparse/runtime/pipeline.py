"""The transformers of a pipeline, and the pipeline that calls a transformer."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch

# What diffusers pipelines name their denoising transformers; `transformer_2` is the expert for less noise.
TRANSFORMERS = ("transformer", "transformer_2", "transformer_ref")


def transformers_of(target: object) -> dict[str, torch.nn.Module]:
    """Name -> transformer, of a pipeline; a transformer alone is called "transformer".

    Raises:
        TypeError: something that has no transformer.
    """
    if isinstance(target, torch.nn.Module):
        return {TRANSFORMERS[0]: uncompiled(target)}
    found = {name: uncompiled(getattr(target, name, None)) for name in TRANSFORMERS}
    modules = {name: module for name, module in found.items() if isinstance(module, torch.nn.Module)}
    if not modules:
        raise TypeError(f"{type(target).__name__} has no transformer; pass a diffusers pipeline or a transformer")
    return modules


def compiled_of(target: object) -> dict[str, torch.nn.Module]:
    """Name -> wrapper that `torch.compile(transformer)` returned, of those transformers that have one."""
    single = isinstance(target, torch.nn.Module)
    found = {name: target if single else getattr(target, name, None) for name in TRANSFORMERS[: 1 if single else None]}
    return {name: x for name, x in found.items() if isinstance(x, torch.nn.Module) and uncompiled(x) is not x}


def uncompiled(module: Any) -> Any:
    """The model inside the wrapper that `torch.compile(model)` returns; any other object as it is."""
    return getattr(module, "_orig_mod", module)


def calling_pipeline(transformer: torch.nn.Module) -> object | None:
    """The pipeline whose `__call__` is running and calls `transformer`, or None.

    It can differ from the pipeline that was sparsified: `from_pipe` shares transformers between pipelines, each with
    its own scheduler. It is found on the call stack, as `self` or, in modular pipelines, as `components`.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        # Reading a frame's variables keeps copies of them alive, so only frames that can be a pipeline's are read.
        if code.co_name == "__call__":
            for name in {"self", "components"}.intersection(code.co_varnames[: code.co_argcount]):
                candidate = frame.f_locals.get(name)
                parts = getattr(candidate, "__dict__", {})
                if "scheduler" in parts and any(uncompiled(parts.get(n)) is transformer for n in TRANSFORMERS):
                    return candidate
        frame = frame.f_back
    return None
