"""The compute capability of a device, and what follows from it."""

from __future__ import annotations

import torch
import triton

# Whether kernels run in the interpreter, on the CPU (TRITON_INTERPRET=1). Triton decides when it defines them.
INTERPRETED = bool(triton.knobs.runtime.interpret)


def capability(device: torch.device) -> int:
    """The compute capability times 10, such as 90 for 9.0; the interpreter counts as 8.0."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def unsupported_device(device: torch.device) -> str | None:
    """Why no kernel runs on this device, in words that complete "impl='triton' ..."; None if they run."""
    if device.type != "cuda" and not (device.type == "cpu" and INTERPRETED):
        return f"needs tensors on a CUDA device, these are on {device}"
    if device.type == "cuda" and (found := capability(device)) < 80:
        return f"needs compute capability 8.0 or newer, {torch.cuda.get_device_name(device)} has {found / 10}"
    return None


def reads_boxes(device: torch.device) -> bool:
    """Whether kernels load boxes by a tensor memory accelerator.

    Compute capabilities 11 and 12 have one, but no matrix unit that reads what it wrote (for 11 Triton knows of none).
    """
    return 90 <= capability(device) < 110
