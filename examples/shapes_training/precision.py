"""The dtype that a device multiplies fastest."""

from __future__ import annotations

import torch


def precision(device: str) -> torch.dtype:
    """bfloat16; float32 on a CPU without instructions for bfloat16, where a product took 55 times as long in it."""
    native = device != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def lower_precision(device: str) -> torch.autocast:
    """Autocast to `precision`."""
    return torch.autocast(device, torch.bfloat16, enabled=precision(device) == torch.bfloat16)
