"""What a result was made with: versions, device and dtype."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

PACKAGES = "vidsparse", "torch", "diffusers", "transformers", "peft", "triton"


def versions() -> dict[str, str | None]:
    """The installed version of each package that decides a result; None: it is not installed."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def machine(device: str, dtype: str) -> dict[str, Any]:
    """Versions, device, its name, and dtype, as plain data."""
    import torch

    on_gpu = torch.device(device).type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine()
    return {"versions": versions(), "device": device, "device_name": name, "dtype": dtype}
