"""A bias between frames as extra channels of queries and keys, so that every kernel adds it to its logits.

A bias of (query frame, key frame) alone is a symmetric matrix B [frames, frames] whose eigenvalues are not negative. So
B = phi @ phi.T, and a query with phi[i] in extra channels and a key with phi[j] in the same ones have B[i, j] in their
product. Tokens that are not video have zeros there, and values have zeros too.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.nn.functional import pad

from vidsparse.grid import VideoGrid
from vidsparse.patterns import TemporalBias
from vidsparse.patterns.temporal_bias import frame_bias
from vidsparse.runtime.heads import Operands

KERNEL_CHANNELS = (32, 64, 96, 128)  # of a head, that the Triton kernels take
MULTIPLE = 16  # of the channels of a head, for other implementations on a GPU


def widen(operands: Operands, bias: TemporalBias, grid: VideoGrid, key_grid: VideoGrid | None = None) -> Operands:
    """The operands with extra channels, for attention whose scale is that of all channels.

    Queries are multiplied by the root of the ratio of channels, which cancels in the scale: in a dtype of few bits this
    rounds them once.

    Args:
        operands: of the call. bias: between its frames.
        grid: of the queries; their last frame is that of the keys. key_grid: of the keys, None where it is the same.

    Returns:
        The operands with `widened` channels; the output of their attention has zeros in the extra ones.
    """
    query, keys = operands.query, key_grid or grid
    head_dim = query.shape[-1]
    eps = torch.finfo(query.dtype).eps
    channels = widened(head_dim, features(bias.strength, bias.width, keys.frames, eps).shape[1], query.device)

    def extra(of: VideoGrid) -> torch.Tensor:
        return _of_tokens(bias.strength, bias.width, keys.frames, of, channels, head_dim, query.dtype, query.device)

    return Operands(
        _joined(query * (channels / head_dim) ** 0.5, extra(grid)),
        _joined(operands.key, extra(keys)),
        pad(operands.value, (0, channels - head_dim)),
        operands.extra_valid,
        None if operands.gate is None else pad(operands.gate, (0, channels - head_dim)),
    )


def widened(head_dim: int, rank: int, device: torch.device) -> int:
    """Channels of a head with at least `rank` extra ones: on a GPU as many as the Triton kernels take, if they can."""
    least = head_dim + rank
    if device.type == "cpu":
        return least
    return next((size for size in KERNEL_CHANNELS if size >= least), -(-least // MULTIPLE) * MULTIPLE)


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # a training may use it later
def features(strength: float, width: float, frames: int, eps: float) -> torch.Tensor:
    """phi, float64 [frames, rank], the largest first: no entry of phi @ phi.T is off by more than strength * eps / 4.

    What is left out has no eigenvalue above that bound, and no entry of such a matrix exceeds its largest eigenvalue.
    """
    values, vectors = torch.linalg.eigh(frame_bias(strength, width, frames))
    values, vectors = values.flip(0), vectors.flip(1)
    rank = max(1, int((values > strength * eps / 4).sum()))
    phi: torch.Tensor = vectors[:, :rank] * values[:rank].sqrt()
    return phi


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _of_tokens(
    strength: float,
    width: float,
    frames: int,
    grid: VideoGrid,
    channels: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    """The extra channels of the tokens of a grid, the last of so many frames: [tokens, channels - head_dim]."""
    phi = features(strength, width, frames, torch.finfo(dtype).eps)[frames - grid.frames :]
    extra = torch.zeros(grid.tokens, channels - head_dim, dtype=torch.float64, device="cpu")
    video = phi.repeat_interleave(grid.height * grid.width, dim=0)
    # The fourth root, on both sides, is what the scale of all channels takes away.
    extra[grid.prefix : grid.prefix + grid.video_tokens, : phi.shape[1]] = video * channels**0.25
    return extra.to(device, dtype)


def _joined(x: torch.Tensor, extra: torch.Tensor) -> torch.Tensor:
    """x [batch, tokens, heads, head_dim] and the same extra channels [tokens, extra] for all samples and heads."""
    return torch.cat((x, extra[:, None].expand(*x.shape[:3], -1)), dim=-1)
