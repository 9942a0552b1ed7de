"""Heads that see their own frames, and heads that see along time: classified by the output of a few rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from vidsparse.block_map import BlockMap, HeadGroup, Plan
from vidsparse.grid import Tile, VideoGrid, tiles_of_volume
from vidsparse.patterns.base import ContentPattern, Context
from vidsparse.patterns.fields import check_flag, check_number, check_share, check_whole


@dataclass(frozen=True)
class SpatialTemporal(ContentPattern):
    """Each head is spatial (its own and near frames) or temporal (one place in all frames): whichever errs less.

    For a few sampled query rows attention is computed densely and under either mask; a head gets the mask whose output
    has the smaller squared error, summed over the rows and the samples of a batch. A query tile of a spatial head sees
    the tiles nearest in time, and among the last frames that fit the density those nearest in place. A query tile of a
    temporal head sees those nearest in place, then in time. Spatial heads have flat tiles of one frame, temporal heads
    tiles at least as long in time as in place: of 128 tokens, or 64 for frames under 1024.

    Paper: Xi et al., Sparse VideoGen, arXiv 2502.01776. Code: svg-project/Sparse-VideoGen, `svg/models/wan`: the masks'
    comparison at fbc0772, the settings at 1a384ee. Its scripts keep 0.25 and sample 64 rows; its dense first steps (10
    of 50 in the paper) and layers are for `StepSchedule`. Differences:
    - rows are evenly spaced over the video, not random among the first 10000 tokens, and half as many: of 216 choices
      on `shapes`, 32 rows make 98 % as 512 do, 64 rows 96 % (benchmarks/NOTES.md, entry 32). A head has one class for
      the whole batch, not one for each sample;
    - the masks compared are those that run, not bands of two frames for every density;
    - places are near in two dimensions, not along the raster order, and no token moves;
    - only spatial heads have the first frame as a sink: a tile that is long in time cannot hold a single frame. In that
      code the sink of a temporal head comes after the reordering: it is the first places in all frames.

    The choice synchronises the device once per call.

    Attributes:
        density: the fraction of key tiles that each query tile keeps, under either mask.
        frames: with `radius`, instead of a density: spatial heads see frames up to this many latent frames away.
        radius: temporal heads see, in all frames, the places up to this many tokens away, measured between the corners
            of tiles.
        rows: how many query rows are sampled.
        sink: whether spatial heads see the first frame before the neighbours of the query's own frame.
    """

    density: float | None = 0.25
    frames: int | None = None
    radius: float | None = None
    rows: int = 32
    sink: bool = True

    def __post_init__(self) -> None:
        widths = (self.frames, self.radius)
        if None in widths if self.density is None else widths != (None, None):
            raise ValueError(
                f"density={self.density}, frames={self.frames}, radius={self.radius}: give a density alone, or both "
                "widths, such as SpatialTemporal(density=None, frames=2, radius=8)"
            )
        check_share(self, "density", optional=True)
        check_whole(self, "frames", optional=True)
        check_number(self, "radius", optional=True)
        check_whole(self, "rows", least=1)
        check_flag(self, "sink")

    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> Plan:
        spatial, temporal = _spatial(self, grid), _temporal(self, grid)
        if context.value is None:
            raise ValueError("SpatialTemporal compares outputs; give the values of the call, Context(value=...)")
        padding = spatial.layout.padding_mask(context.extra_valid)
        errors = _errors(query, key, context.value, *_sampled(self, grid, query.device), padding)
        along_time = (errors[1] < errors[0]).tolist()
        groups = [
            HeadGroup(tuple(head for head, is_temporal in enumerate(along_time) if is_temporal == kind), block_map)
            for kind, block_map in ((False, spatial), (True, temporal))
        ]
        used = tuple(group for group in groups if group.heads)
        return used if len(used) > 1 else used[0].block_map


@torch.no_grad()
def _errors(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: torch.Tensor,
    kept: torch.Tensor,
    padding: torch.Tensor | None,
) -> torch.Tensor:
    """Squared error of the output under each mask, summed over rows and batch: float32 [masks, heads]."""
    found = []
    # Head by head: rows x tokens of all heads would be as large as a hidden state. All heads share one buffer, because
    # page faults of new ones would take longer than the computation.
    scores = torch.empty(len(query), len(rows), query.shape[1], dtype=torch.float32, device=query.device)
    weights = scores.new_empty(len(query), 1 + len(kept), *scores.shape[1:])  # dense, then under each mask
    for head in range(query.shape[2]):
        scores.copy_(query[:, rows, head] @ key[:, :, head].mT).mul_(query.shape[-1] ** -0.5)
        if padding is not None:
            scores.masked_fill_(padding[:, None].to(scores.device), float("-inf"))
        weights[:, 0] = scores.softmax(dim=-1)
        # The softmax under a mask is the masked dense softmax divided by its sum: one exponential for all masks.
        torch.mul(weights[:, :1], kept, out=weights[:, 1:])
        sums = weights.sum(dim=-1, keepdim=True).clamp_min_(torch.finfo(weights.dtype).tiny)
        out = (weights.flatten(1, 2) @ value[:, :, head].float()).view(*sums.shape[:3], -1) / sums
        found.append((out[:, 1:] - out[:, :1]).square().sum(dim=(0, 2, 3)))
    return torch.stack(found, dim=1)


@lru_cache(maxsize=8)
def _sampled(pattern: SpatialTemporal, grid: VideoGrid, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the sampled rows in the sequence, and the tokens that both masks keep: bool [2, rows, tokens].

    Rows are spread from the first token to the last, so that their distance is seldom a multiple of the frame's width.
    """
    rows = torch.linspace(0, grid.video_tokens - 1, min(pattern.rows, grid.video_tokens), dtype=torch.float64)
    rows = rows.round().long()
    kept = []
    for block_map in (_spatial(pattern, grid), _temporal(pattern, grid)):
        owner = block_map.key_tile_of_token
        video = block_map.to_dense()[0, 0][owner[rows]][:, owner]
        kept.append(torch.nn.functional.pad(video, (grid.prefix, grid.suffix), value=True))
    return (rows + grid.prefix).to(device), torch.stack(kept).to(device)


@lru_cache(maxsize=32)
def _spatial(pattern: SpatialTemporal, grid: VideoGrid) -> BlockMap:
    tile = _tile(grid.view, long=False)
    time, place = _distances(grid, tile)
    if pattern.sink:
        # After the query's own frame and before its neighbours.
        time[:, : math.prod(grid.tiles(tile)[1:])].clamp_(max=0.5)
    return BlockMap.from_dense(_nearest(time, place, (pattern.frames or 0) + 0.5, pattern.density), grid, tile)


@lru_cache(maxsize=32)
def _temporal(pattern: SpatialTemporal, grid: VideoGrid) -> BlockMap:
    tile = _tile(grid.view, long=True)
    time, place = _distances(grid, tile)
    return BlockMap.from_dense(_nearest(place, time, pattern.radius or 0.0, pattern.density), grid, tile)


def _tile(view: tuple[int, int, int], long: bool) -> Tile:
    """A tile of one frame, or one at least as long in time as in place: little padding, few tokens of a frame."""
    grid = VideoGrid(*view)
    candidates = tiles_of_volume(grid.default_volume)
    tiles = [(f, h, w) for f, h, w in candidates if (f >= max(h, w) if long else f == 1)]
    # At equal padding, a tile that is narrow in place localises better; both terms prefer squares.
    return min(tiles, key=lambda t: grid.padding(t) + 0.1 * math.log2(max(t[1:])))


def _distances(grid: VideoGrid, tile: Tile) -> tuple[torch.Tensor, torch.Tensor]:
    """The distance between tiles in time, in frames, and in place, in tokens: two float64 [tiles, tiles]."""
    axes = (torch.arange(n, dtype=torch.float64) * side for n, side in zip(grid.tiles(tile), tile, strict=True))
    corner = torch.cartesian_prod(*axes)
    time, height, width = (corner[:, None] - corner).abs().unbind(dim=-1)
    return time, torch.hypot(height, width)


def _nearest(first: torch.Tensor, second: torch.Tensor, width: float, density: float | None) -> torch.Tensor:
    """For each row the nearest tiles by `first`, then by `second`; without a density those with `first` <= width."""
    if density is None:
        return first <= width
    number = max(1, round(density * first.shape[-1]))
    order = second.argsort(dim=-1, stable=True)
    order = order.gather(-1, first.gather(-1, order).argsort(dim=-1, stable=True))
    return torch.zeros_like(first, dtype=torch.bool).scatter_(-1, order[:, :number], True)
