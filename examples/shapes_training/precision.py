"""The dtype that a device multiplies fastest."""

from __future__ import annotations

import time
from functools import cache

import torch


@cache
def precision(device: str) -> torch.dtype:
    """bfloat16 on a GPU; on a CPU it or float32, whichever multiplies faster there.

    The instructions alone do not tell: without any, bfloat16 is forty times slower, and an Intel Xeon with those of
    AVX-512 but without matrix units (AMX) had 87 GFLOP/s a core in bfloat16 and 135 in float32.
    """
    if device != "cpu":
        return torch.bfloat16
    return min((torch.float32, torch.bfloat16), key=_seconds)


def _seconds(dtype: torch.dtype) -> float:
    """Processor time of the fastest of some products: other processes are in the way of the rest."""
    left, right = torch.ones(512, 192, dtype=dtype), torch.ones(192, 512, dtype=dtype)
    found = []
    for _ in range(30):
        started = time.process_time()
        left @ right
        found.append(time.process_time() - started)
    return min(found)


def lower_precision(device: str) -> torch.autocast:
    """Autocast to `precision`."""
    return torch.autocast(device, torch.bfloat16, enabled=precision(device) == torch.bfloat16)
