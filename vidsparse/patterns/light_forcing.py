"""Videos made chunk by chunk: few earlier frames for each query tile, then few tiles of them; less in later chunks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch

from vidsparse.block_map import BlockMap
from vidsparse.grid import Tile, VideoGrid, tiles_of_volume
from vidsparse.patterns.base import ContentPattern, Context
from vidsparse.patterns.fields import check_share, check_sides, check_whole
from vidsparse.patterns.last_frames import check_last_frames
from vidsparse_kernels.layout import tile_sizes
from vidsparse_kernels.selection.pooling import tile_means
from vidsparse_kernels.selection.rule import Rule
from vidsparse_kernels.selection.select import select_tiles


@dataclass(frozen=True)
class LightForcing(ContentPattern):
    """For videos that are made chunk by chunk: queries of a chunk of frames, keys of all frames so far.

    `Context.key_grid` says which keys there are. Without it the call is that of a first chunk, or of a whole video, and
    dense.

    * **Growth.** A chunk that sees n frames, its own included, keeps the fraction base_density + b / sqrt(n) of its key
      tiles: early chunks, which have little to look back on, keep more. b is such that all chunks but the first keep
      `density` of their pairs of tiles together, as long as none of them keeps all.
    * **Hierarchy.** Of more than `keep_frames` earlier frames, each query tile sees the tiles of `keep_frames` at most:
      the first `sink`, the last `near`, and those between whose mean key has the highest product with its mean query.
      Of the tiles of these frames and of its own chunk it keeps those whose mean key has the highest product.

    Paper: Light Forcing, arXiv 2602.04789, whose models are fine-tuned with these maps. Code: chengtao-lv/LightForcing
    at d1e6333. Differences: tiles are boxes within a frame, not runs of 64 or 128 tokens; means stay in float32; the
    mean of a frame is that of its tokens, the same where no tile is ragged; each sample of a batch selects by itself;
    where fewer tiles are left than a chunk may keep, it keeps those alone, and at least one; n counts the frames that
    are still visible, while the published growth goes on after the window is full, and fails after `frames`.

    Attributes:
        density: the fraction of the key tiles that the chunks after the first keep together. Published: 0.12 for 21
            frames, 0.15 for 60 frames with a window of 12.
        base_density: the fraction that ever later chunks approach, at most `density`; published: 0.02, and 0.05 with
            0.15. Equal to `density`, all chunks keep the same fraction.
        frames: latent frames of the whole video, over which `density` holds.
        chunk: frames of a chunk. The first one is dense.
        window: how many frames, a chunk's own included, the caller keeps at most, for the growth; by default all.
        keep_frames: earlier frames that a query tile sees tiles of.
        sink, near: how many first and last of the earlier frames are among them.
        tile: sides of the tiles, of one frame: (1, height, width). By default the grid's best of 128 tokens, or of 64
            for frames under 1024.
    """

    density: float = 0.12
    base_density: float = 0.02
    frames: int = 21
    chunk: int = 3
    window: int | None = None
    keep_frames: int = 6
    sink: int = 0
    near: int = 0
    tile: Tile | None = None

    two_grids: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_share(self, "density", "base_density")
        check_whole(self, "frames", "chunk", "keep_frames", least=1)
        check_whole(self, "sink", "near")
        check_whole(self, "window", least=1, optional=True)
        check_sides(self, "tile", optional=True)
        if self.base_density > self.density:
            raise ValueError(
                f"base_density={self.base_density} must be at most density={self.density}: later chunks keep less"
            )
        if self.frames < 2 * self.chunk:
            raise ValueError(f"frames={self.frames} must be at least two chunks of chunk={self.chunk} frames")
        if self.sink + self.near > self.keep_frames:
            raise ValueError(
                f"sink={self.sink} and near={self.near} must be at most keep_frames={self.keep_frames} together"
            )
        if self.tile is not None and self.tile[0] != 1:
            raise ValueError(f"tile={self.tile} must be (1, height, width): tiles are chosen within a frame")

    def density_of_chunk(self, frames: int) -> float:
        """The fraction of its key tiles that a chunk keeps which sees `frames` frames, its own included."""
        counts = range(2 * self.chunk, self.frames + 1, self.chunk)
        seen = [min(count, self.window or count) for count in counts]
        growth = (self.density - self.base_density) * sum(seen) / sum(math.sqrt(n) for n in seen)
        return min(1.0, self.base_density + growth / math.sqrt(frames))

    def is_dense(self, context: Context) -> bool:
        return context.key_grid is None

    def tile_for(self, grid: VideoGrid) -> Tile:
        """The tile sides used for a grid."""
        return self.tile or _tile(grid.height, grid.width)

    @torch.no_grad()
    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> BlockMap:
        keys, tile = context.key_grid or grid, self.tile_for(grid)
        check_last_frames(grid, keys)
        past = keys.frames - grid.frames
        if past == 0:
            whole = torch.ones(math.prod(grid.tiles(tile)), math.prod(keys.tiles(tile)), dtype=torch.bool)
            return BlockMap.from_dense(whole, grid, tile, key_grid=keys)
        rows, columns = tile_means(query, grid.view, tile, grid.prefix), tile_means(key, keys.view, tile, keys.prefix)
        scores = rows @ columns.mT
        if past > self.keep_frames:
            sizes = tile_sizes((1, *keys.view[1:]), tile, key.device)
            frames = (columns.unflatten(2, (keys.frames, -1)) * sizes[:, None]).sum(dim=3) / sizes.sum()
            seen = self._frames(rows @ frames.mT, past)
            scores = scores.unflatten(-1, (keys.frames, -1)).masked_fill(~seen[..., None], -math.inf).flatten(-2)
        amount = int(self.density_of_chunk(keys.frames) * scores.shape[-1])
        counts, indices = select_tiles(scores, Rule("top_k", max(1, amount)))
        return BlockMap(grid, tile, tile, counts, indices, keys)

    def _frames(self, scores: torch.Tensor, past: int) -> torch.Tensor:
        """The frames that each query tile sees: bool [B, H, query tiles, frames], like the scores of frames."""
        seen = torch.zeros_like(scores, dtype=torch.bool)
        first, after = self.sink, past - self.near
        chosen = scores[..., first:after].topk(self.keep_frames - self.sink - self.near, dim=-1).indices
        seen.scatter_(-1, chosen + first, True)
        seen[..., :first] = True
        seen[..., after:] = True
        return seen


@lru_cache(maxsize=128)
def _tile(height: int, width: int) -> Tile:
    frame = VideoGrid(1, height, width)
    flat = [tile for tile in tiles_of_volume(frame.default_volume) if tile[0] == 1]
    return min(flat, key=lambda tile: (frame.padding(tile) + 0.02 * math.log2(max(tile[1:]) / min(tile[1:])), tile))
