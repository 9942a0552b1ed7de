"""Radial Attention as published: bands along the raster order that narrow with the distance between frames."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch

from vidsparse.block_map import BlockMap
from vidsparse.grid import VideoGrid
from vidsparse.patterns.base import Context, Pattern
from vidsparse.patterns.fields import check_choice, check_flag, check_number, check_whole

Adjacent = Literal["full", "half"]


@dataclass(frozen=True)
class RadialRaster(Pattern):
    """The published mask, block for block.

    Between frames i and j with d = |i - j| and s tokens a frame, tokens k and l see each other when |k - l| <= w(d):
    w(0) = s, w(1) = s ("full") or s // 2 ("half"), then w(d) = max(block, decay * P / 2^g), with P the power of two
    above s and g the bit length of d. Once P / 2^g falls under 128, only every (128 * 2^g / P)-th distance is kept.
    A block of block x block tokens is kept when more than 0.6 of its touched columns are over a third full.

    Paper: Li et al., Radial Attention, arXiv 2506.19852. Code: mit-han-lab/radial-attention at 72788d4, `attn_mask.py`
    (the code's rule, which differs from the paper's equation 4). Differences: the diagonal is always kept; a last block
    that is not full sees and is seen by all, as that code treats the tokens after the video.

    Attributes:
        decay: factor on the width of the bands from d = 2 on.
        sink: whether every token sees all of frame 0 (in the code: for Wan only).
        adjacent: width for d = 1; "half" is the code's rule for Wan before 72788d4.
        block: tokens of a tile.
    """

    decay: float = 0.2
    sink: bool = True
    adjacent: Adjacent = "full"
    block: int = 128

    def __post_init__(self) -> None:
        check_number(self, "decay")
        check_flag(self, "sink")
        check_choice(self, "adjacent", get_args(Adjacent))
        check_whole(self, "block", least=1)

    def plan(self, grid: VideoGrid, context: Context | None = None) -> BlockMap:
        return _plan(self, grid)

    def _half_width(self, distance: int, frame_tokens: int) -> int:
        if distance == 0 or (distance == 1 and self.adjacent == "full"):
            return frame_tokens
        if distance == 1:
            return frame_tokens // 2
        band: float = 2 ** (frame_tokens.bit_length() - distance.bit_length())
        return math.floor(max(self.block, self.decay * band))

    @staticmethod
    def _keeps_distance(distance: int, frame_tokens: int) -> bool:
        band = 2 ** (frame_tokens.bit_length() - distance.bit_length())
        return band >= 128 or distance % int(128 / band) == 0


@lru_cache(maxsize=32)
def _plan(pattern: RadialRaster, grid: VideoGrid) -> BlockMap:
    size, frame_tokens, tokens = pattern.block, grid.height * grid.width, grid.video_tokens
    blocks, whole = math.ceil(tokens / size), tokens // size
    kept = torch.eye(blocks, dtype=torch.bool)
    for i in range(grid.frames):
        row, row_offset = divmod(i * frame_tokens, size)
        for j in range(grid.frames):
            sink = pattern.sink and j == 0
            if not sink and not pattern._keeps_distance(abs(i - j), frame_tokens):
                continue
            width = frame_tokens if sink else pattern._half_width(abs(i - j), frame_tokens)
            column, column_offset = divmod(j * frame_tokens, size)
            band = _band_blocks(frame_tokens, width, size, row_offset, column_offset)
            target = kept[row : row + len(band), column : column + len(band)]
            target |= band[: target.shape[0], : target.shape[1]]
    kept[whole:], kept[:, whole:] = True, True
    return BlockMap.from_dense(kept, grid.raster, (1, 1, size))


@lru_cache(maxsize=4096)
def _band_blocks(frame_tokens: int, width: int, size: int, row_offset: int, column_offset: int) -> torch.Tensor:
    """Which blocks of a frame pair the band |k - l| <= width fills enough: bool [ceil(s / size), ceil(s / size)]."""
    blocks = math.ceil(frame_tokens / size)
    first = (torch.arange(blocks) * size - row_offset)[:, None]
    k = torch.arange(blocks * size) - column_offset
    low = torch.maximum(first.clamp(min=0), k - width)
    high = torch.minimum((first + size - 1).clamp(max=frame_tokens - 1), k + width)
    # The rows of the band in each column, for each row of blocks.
    rows = (high - low + 1).clamp(min=0) * ((k >= 0) & (k < frame_tokens))
    rows = rows.view(blocks, blocks, size)
    full = (rows * 3 > size).sum(dim=-1)
    touched = (rows > 0).sum(dim=-1)
    return full / (touched + 1e-9) > 0.6
