"""Changes that users make to a model besides making it sparse."""

from __future__ import annotations

from typing import Any

import torch

from vidsparse.runtime.registry import adapter_for

CPU = torch.device("cpu")


def nothing(model: Any, dtype: torch.dtype) -> None:
    """Leave the model as it is. Like all changes, takes the dtype that the model computes in."""


def gradient_checkpointing(model: Any, dtype: torch.dtype) -> None:
    if dtype != torch.float64:  # the recomputed forward pass would run in float32 there
        model.enable_gradient_checkpointing()


def fused_projections(model: Any, dtype: torch.dtype) -> None:
    with torch.no_grad():
        model.fuse_qkv_projections()


def lora(model: Any, dtype: torch.dtype) -> None:
    """Add a LoRA of peft to all projections of video self-attention, with the same numbers each time."""
    from peft import LoraConfig

    names = [
        f"{name}.{part}"
        for name, attention in adapter_for(model).self_attentions(model).items()
        for part, module in attention.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model.add_adapter(LoraConfig(r=2, target_modules=names, init_lora_weights=False))


def layerwise_casting(model: Any, dtype: torch.dtype) -> None:
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)


def group_offload(model: Any, dtype: torch.dtype) -> None:
    model.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level")


def cpu_offload(model: Any, dtype: torch.dtype) -> None:
    from accelerate import cpu_offload as offload

    offload(model, execution_device=CPU)
