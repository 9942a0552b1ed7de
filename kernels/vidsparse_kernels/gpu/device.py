"""What the device is: its compute capability, and what follows from it."""

from __future__ import annotations

import torch
import triton

# Whether kernels run in the interpreter, on the CPU (TRITON_INTERPRET=1): Triton decides it where they are defined.
INTERPRETED = bool(triton.knobs.runtime.interpret)


def capability(device: torch.device) -> int:
    """90 for a chip of compute capability 9.0; the interpreter passes for an 8.0."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def unsupported_device(device: torch.device) -> str | None:
    """Why no kernel runs on this device, in words that complete "impl='triton' ..."; None if kernels run."""
    if device.type != "cuda" and not (device.type == "cpu" and INTERPRETED):
        return f"needs tensors on a CUDA device, these are on {device}"
    if device.type == "cuda" and (found := capability(device)) < 80:
        return f"needs compute capability 8.0 or newer, {torch.cuda.get_device_name(device)} has {found / 10}"
    return None


def reads_boxes(device: torch.device) -> bool:
    """Whether a tensor memory accelerator brings the boxes that a program walks.

    Compute capabilities 11 and 12 have it, but no matrix unit that reads what it wrote (Triton knows none for 11).
    """
    return 90 <= capability(device) < 110
