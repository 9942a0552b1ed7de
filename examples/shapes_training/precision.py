"""The dtype that a device multiplies fastest."""

from __future__ import annotations

import torch

from vidsparse_kernels.cpu.attention import multiplies_bfloat16


def precision(device: str) -> torch.dtype:
    """bfloat16; float32 on a CPU without fast products of bfloat16."""
    return torch.bfloat16 if device != "cpu" or multiplies_bfloat16() else torch.float32


def lower_precision(device: str) -> torch.autocast:
    """Autocast to `precision`."""
    return torch.autocast(device, torch.bfloat16, enabled=precision(device) == torch.bfloat16)
