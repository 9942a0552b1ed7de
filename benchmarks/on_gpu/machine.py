"""The machine itself: versions, what it can do at best, and its clocks while something else is measured."""

from __future__ import annotations

import shutil
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton

from vidsparse import bench

CLOCKS = ("timestamp", "clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "utilization.gpu")
IN_CACHE = 2**24  # bytes: two of them fit the second-level cache of a large GPU
BUSY = 50  # percent of time with a kernel, from which on a sample of the clocks counts


def versions(device: torch.device) -> dict[str, Any]:
    """Device and software."""
    found: dict[str, Any] = {"torch": torch.__version__, "triton": triton.__version__, "device": name(device)}
    if device.type == "cuda":
        chip = torch.cuda.get_device_properties(device)
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        found |= {"multiprocessors": chip.multi_processor_count, "memory_gib": round(chip.total_memory / 2**30, 1)}
        found |= {"l2_mib": round(chip.L2_cache_size / 2**20)}
    return found


def name(device: torch.device) -> str:
    """Of the device, as its driver says it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def ceilings(device: torch.device, product: int, copied: int) -> dict[str, float]:
    """TFLOP/s of a bfloat16 product of `product` x `product` matrices, TB/s (read and written) of copying `copied`
    bytes, and of copying what stays in the second-level cache; random numbers, for zeros are faster.
    """
    a, b = (torch.randn(product, product, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randint(256, (copied,), device=device, dtype=torch.uint8)
    target, short = torch.empty_like(source), min(copied, IN_CACHE)
    took = bench.seconds(lambda: a @ b, device, 0.1)
    copy = bench.seconds(lambda: target.copy_(source), device, 0.05)
    cached = bench.seconds(lambda: target[:short].copy_(source[:short]), device, 0.05)
    figures = {"product_tflops": 2 * product**3 / took / 1e12, "copy_tbs": 2 * copied / copy / 1e12}
    return {k: float(f"{v:.4g}") for k, v in (figures | {"cached_copy_tbs": 2 * short / cached / 1e12}).items()}


@contextmanager
def clocks(path: Path) -> Iterator[dict[str, float]]:
    """Append clocks, power and temperature to a CSV file, twice a second, until the block ends; needs nvidia-smi.

    Yields what is filled in at the end: median and lowest MHz of the multiprocessors and median watts while busy.
    """
    found: dict[str, float] = {}
    if shutil.which("nvidia-smi") is None:
        yield found
        return
    start = path.stat().st_size if path.exists() else 0
    query = f"--query-gpu={','.join(CLOCKS)}"
    with path.open("a") as file:
        watching = subprocess.Popen(["nvidia-smi", query, "--format=csv,noheader,nounits", "-lms", "500"], stdout=file)
        try:
            yield found
        finally:
            watching.terminate()
            watching.wait()
    found |= summary(path.read_text()[start:])


def summary(lines: str) -> dict[str, float]:
    """What the lines of a CSV file of `clocks` say of the time in which the device was busy."""
    samples = [line.split(", ") for line in lines.splitlines()]
    numbers = [cells[1:] for cells in samples if len(cells) == len(CLOCKS) and cells[-1].isdigit()]
    busy = [(float(sm), float(watts)) for sm, _, watts, _, used in numbers if int(used) >= BUSY]
    if not busy:
        return {}
    mhz, watts = zip(*busy, strict=True)
    return {"sm_mhz": statistics.median(mhz), "lowest_sm_mhz": min(mhz), "watts": statistics.median(watts)}
