"""Which kernels can run on a device, and when; imports Triton only to find out."""

from __future__ import annotations

from functools import lru_cache

import torch


def triton_lacks(device: torch.device) -> str | None:
    """Why Triton's kernels cannot run on this device, in words that complete "impl='triton' ..."; None if they can."""
    try:
        from vidsparse_kernels.gpu.device import unsupported_device
    except ImportError as error:
        return f"needs Triton, which is not installed ({error})"
    return unsupported_device(device)


def recording(query: torch.Tensor) -> bool:
    """Whether a CUDA graph is being recorded: copies from the CPU and synchronisation are impossible then."""
    return query.is_cuda and not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing()


@lru_cache(maxsize=1)
def gluon_lacks() -> str | None:
    """Why the forward in Gluon cannot run, in words that complete "the forward in Gluon ..."; None if it can."""
    try:
        import triton

        found = triton.__version__
        if tuple(map(int, found.split(".")[:2])) < (3, 6):  # older versions have Gluon with other signatures
            return f"needs Triton 3.6 or newer, not {found}"
        if triton.knobs.runtime.interpret:
            return "does not run in Triton's interpreter: unset TRITON_INTERPRET"
        from vidsparse_kernels.gpu.gluon import kernel  # noqa: F401
    except (ImportError, AttributeError) as error:
        return f"needs a Triton with the Gluon of 3.6 to 3.9 ({error})"
    return None
