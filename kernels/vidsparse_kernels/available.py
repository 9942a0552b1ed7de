"""Whether Triton's kernels can run on a device; imports Triton only to find out."""

from __future__ import annotations

import torch


def triton_lacks(device: torch.device) -> str | None:
    """What Triton's kernels miss on this device, in words that complete "impl='triton' ..."; None if they run."""
    try:
        from vidsparse_kernels.launch import unsupported_device
    except ImportError as error:
        return f"needs Triton, which is not here ({error})"
    return unsupported_device(device)
