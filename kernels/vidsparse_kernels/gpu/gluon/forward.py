"""The launch of the forward kernel for Hopper in Gluon; import it only where `available.gluon_lacks()` is None."""

from __future__ import annotations

from typing import Any

import torch
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from vidsparse_kernels.gpu.configs import GluonConfig
from vidsparse_kernels.gpu.gluon.kernel import ROWS, gluon_forward_kernel
from vidsparse_kernels.gpu.launch import Boxes, Launch, step_box

DTYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}
HEAD_DIMS = (64, 128)


def unsupported(launch: Launch, config: GluonConfig) -> str | None:
    """Why this kernel cannot take a call, in words that complete "the forward in Gluon ..."; None if it can."""
    rows, walked = launch.query.volume, launch.key.volume
    if launch.chip // 10 != 9:
        return f"needs compute capability 9.0, not {launch.chip / 10}"
    if launch.dtype not in DTYPES:
        return f"takes {' and '.join(map(str, DTYPES))}, not {launch.dtype}"
    if launch.shape[3] not in HEAD_DIMS:
        return f"takes head_dim {' and '.join(map(str, HEAD_DIMS))}, not {launch.shape[3]}"
    if rows != 2 * ROWS.value:
        return f"takes query tiles of {2 * ROWS.value} tokens, not {launch.query.tile}"
    if config.step not in (64, 128) or config.step > walked:
        return f"reads 64 or 128 tokens of a key tile in a step, not {config.step} of {launch.key.tile}"
    if config.stages < 2:
        return f"needs 2 or more stages, not {config.stages}"
    return None


def run(launch: Launch, config: GluonConfig, key: torch.Tensor, value: torch.Tensor, arguments: dict[str, Any]) -> None:
    """Launch the kernel.

    Args:
        launch: geometry of the call.
        config: how to launch it.
        key, value: [B, key tokens, H, head_dim], `readable`.
        arguments: the arguments that the kernels in Gluon and in Triton share.

    Raises:
        NotImplementedError: a call that this kernel does not take.
    """
    reason = unsupported(launch, config)
    if reason is not None:
        raise NotImplementedError(f"the forward in Gluon {reason}")
    step = step_box(launch.key.tile, config.step)
    shared = gl.NVMMASharedLayout.get_default_for([1, *step, launch.shape[3]], DTYPES[launch.dtype])

    def descriptor(boxes: Boxes) -> TensorDescriptor:
        whole = boxes.low  # head_dim is a power of two here, so there is no high part
        assert whole is not None, "capability 9.0 reads boxes"
        return TensorDescriptor(whole.base, whole.shape, whole.strides, whole.block_shape, shared)

    keys, values = (launch.boxes(step, x, launch.key) for x in (key, value))
    gluon_forward_kernel[launch.grid(launch.query_blocks)](
        **launch.arguments,
        **config.options,
        **arguments,
        # inputs
        key_boxes=descriptor(keys),
        value_boxes=descriptor(values),
        # geometry
        STEP=step,
        EXTRA=launch.query.extra + launch.key.extra > 0,
        HEADS_FIRST=(keys.heads_first, values.heads_first),
        # pipeline
        STAGES=config.stages,
        TURNS=config.turns,
    )
