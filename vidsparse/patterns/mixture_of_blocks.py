"""Blocks of keys chosen by their mean: frames, columns through time and boxes alternate from layer to layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch

from vidsparse.block_map import BlockMap
from vidsparse.grid import Tile, VideoGrid, tiles_of_volume
from vidsparse.patterns.base import ContentPattern, Context
from vidsparse.patterns.fields import check_choice, check_share, check_sides, check_whole, check_wholes
from vidsparse_kernels.layout import tile_sizes
from vidsparse_kernels.selection.pooling import tile_means

Scope = Literal["query", "head", "overall"]
Routing = Literal["tile", "token"]

EPSILON = 1e-6  # the published guard of both divisions


@dataclass(frozen=True)
class MixtureOfBlocks(ContentPattern):
    """Each query sees its own block of keys, and the blocks whose mean key resembles the query most.

    Layer l cuts the video by l % 3: into runs of whole frames; into rectangles of the frame that go through all frames;
    or into boxes. The score of a query and a block is the product of the query and the block's mean key, in float32 and
    without scale. `scope` says which scores compete with each other: those of a query, of a head, or of all heads.

    * `top_k`: of R competing queries the k * R pairs with the highest scores stay; own blocks rank first.
    * `threshold`: competing scores are shifted and scaled to [0, 1]. Own blocks stay, and of the other pairs the fewest
      and highest, at least one, whose scores together with those reach `threshold` of the sum of all scores.

    Paper: Wu et al., VMoBA, arXiv 2506.23858; its training runs used `trained()`, its results without training
    `training_free()`, both after a quarter of dense steps (`StepSchedule`). Code: KwaiVGI/VMoBA at 4da72ff.

    Differences: tiles of queries are routed, by their mean (`routing="token"` is the published rule). A tile belongs to
    the block that holds its middle token, so the borders of blocks move to those of tiles, and no block is smaller than
    a tile. Blocks may be ragged along every axis. Each sample of a batch selects independently. top_k = 1 is attention
    within the query's own block, while the published code becomes dense; scores that are all equal weigh the same,
    while the published code keeps every block.

    Attributes:
        top_k: blocks for each query in the three kinds of layer; a number beyond the blocks means all. Or instead:
        threshold: the fraction of the scores to keep, in (0, 1]; 1 is dense.
        scope: "query", "head" or "overall".
        routing: "tile" for speed, or "token" for parity with the paper: each token is a tile, which only small grids
            can afford, and which the Triton kernels do not take.
        temporal: frames of a run; by default three, or all if there are fewer.
        spatial: (height, width) of a rectangle; by default a fifth of the frame's shorter side by an eighth of the
            longer.
        box: (frames, height, width); by default a third of the frames and of the shorter side by a quarter of the
            longer. The defaults are the published sizes for 21 x 45 x 80 tokens: 7, 40 and 36 blocks. Sizes that are
            given must not exceed the video.
        tile: sides of the tiles; by default 128 tokens, 64 for frames under 1024, chosen for each kind of layer so that
            there is little padding and blocks can keep their borders.
    """

    top_k: tuple[int, int, int] | None = None
    threshold: float | None = None
    scope: Scope = "head"
    routing: Routing = "tile"
    temporal: int | None = None
    spatial: tuple[int, int] | None = None
    box: Tile | None = None
    tile: Tile | None = None

    named_defaults: ClassVar[dict[str, Any]] = {"top_k": (2, 10, 9), "scope": "query"}
    named_alternatives = ("threshold",)

    def __post_init__(self) -> None:
        if (self.top_k is None) == (self.threshold is None):
            raise ValueError(
                f"give one of top_k={self.top_k} and threshold={self.threshold}, such as MixtureOfBlocks.trained()"
            )
        check_wholes(self, "top_k", "three numbers of blocks", length=3, least=1, optional=True)
        check_share(self, "threshold", optional=True)
        check_choice(self, "scope", get_args(Scope))
        check_choice(self, "routing", get_args(Routing))
        check_whole(self, "temporal", least=1, optional=True)
        check_wholes(self, "spatial", "two sides (height, width)", length=2, least=1, optional=True)
        check_sides(self, "box", "tile", optional=True)
        if self.routing == "token" and self.tile is not None:
            raise ValueError(f"tile={self.tile} is for routing='tile'; with routing='token' each token is a tile")

    @classmethod
    def training_free(cls, top_k: tuple[int, int, int] = (2, 10, 9), **fields: Any) -> MixtureOfBlocks:
        """The rule of the paper's results without training; each query selects independently.

        It keeps a quarter of the blocks of 21 x 45 x 80 tokens, more with fewer frames and less with more frames.
        """
        return cls(top_k=top_k, **{"scope": "query", **fields})

    @classmethod
    def trained(cls, threshold: float = 0.25, **fields: Any) -> MixtureOfBlocks:
        """The rule that the paper trains with: the queries of a head compete for a quarter of the scores."""
        return cls(threshold=threshold, **fields)

    def check_grid(self, grid: VideoGrid) -> None:
        frames, height, width = grid.view
        largest = {"temporal": (frames,), "spatial": (height, width), "box": grid.view}
        for name, sides in largest.items():
            given = getattr(self, name)
            given = (given,) if isinstance(given, int) else given
            if given is not None and any(side > most for side, most in zip(given, sides, strict=True)):
                raise ValueError(
                    f"{name}={getattr(self, name)} is larger than the video of {frames} x {height} x {width} tokens: "
                    f"use {name}={sides if len(sides) > 1 else frames} at most, or None for a size that fits"
                )

    @torch.no_grad()
    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> BlockMap:
        self.check_grid(grid)
        blocks = _blocks(self, grid.view, context.layer % 3, query.device)
        rows, columns = (tile_means(x, grid.view, blocks.tile, grid.prefix) for x in (query, key))
        scores = rows @ (blocks.shares @ columns).mT
        top_k = 0 if self.top_k is None else self.top_k[context.layer % 3]
        together = self.scope == "overall"
        kept = _kept(context.gather(scores) if together else scores, blocks.own, self.scope, top_k, self.threshold)
        if together and context.local_heads is not None:
            kept = kept[:, list(context.local_heads)]
        return BlockMap.from_dense(kept[..., blocks.owner], grid, blocks.tile)

    def block_for(self, grid: VideoGrid, layer: int) -> Tile:
        """The sides of a block in a layer, in tokens, before its borders move to the borders of tiles."""
        frames, height, width = grid.view
        if layer % 3 == 0:
            return self.temporal or min(3, frames), height, width
        # The parts into which the frame is cut: fewer along its shorter side.
        rectangles, boxes = ((5, 8), (3, 4)) if height <= width else ((8, 5), (4, 3))
        if layer % 3 == 1:
            return frames, *(self.spatial or (math.ceil(height / rectangles[0]), math.ceil(width / rectangles[1])))
        return self.box or (math.ceil(frames / 3), math.ceil(height / boxes[0]), math.ceil(width / boxes[1]))

    def tile_for(self, grid: VideoGrid, layer: int) -> Tile:
        """The tile sides used for a grid in a layer."""
        if self.routing == "token":
            return 1, 1, 1
        return self.tile or _tile(grid.view, self.block_for(grid, layer))


class _Blocks(NamedTuple):
    """The blocks of a layer as groups of tiles."""

    tile: Tile
    owner: torch.Tensor  # int64 [tiles], the block of each tile
    own: torch.Tensor  # bool [tiles, blocks], whether a tile belongs to a block
    shares: torch.Tensor  # float32 [blocks, tiles], each tile's fraction of the tokens of its block


@lru_cache(maxsize=32)
def _blocks(pattern: MixtureOfBlocks, view: Tile, layer: int, device: torch.device) -> _Blocks:
    grid = VideoGrid(*view)
    tile, block = pattern.tile_for(grid, layer), pattern.block_for(grid, layer)
    frames, height, width = (_block_of_tile(*axis) for axis in zip(view, tile, block, strict=True))
    rows, columns = int(height[-1]) + 1, int(width[-1]) + 1
    owner = ((frames[:, None, None] * rows + height[:, None]) * columns + width).flatten()
    own = torch.nn.functional.one_hot(owner)
    tokens = own * tile_sizes(view, tile)[:, None]
    shares = (tokens.double() / tokens.sum(dim=0)).T.float()
    return _Blocks(tile, owner.to(device), own.bool().to(device), shares.contiguous().to(device))


def _block_of_tile(size: int, side: int, block: int) -> torch.Tensor:
    """The block of each tile along one axis, int64 [tiles]: that of its middle. Blocks without a tile are skipped."""
    first = torch.arange(0, size, side)
    middle = (first + (first + side).clamp(max=size) - 1) // 2
    blocks: torch.Tensor = (middle // block).unique_consecutive(return_inverse=True)[1]
    return blocks


@lru_cache(maxsize=128)
def _tile(view: Tile, block: Tile) -> Tile:
    grid = VideoGrid(*view)

    def cost(tile: Tile) -> float:
        # A border moves by up to half a tile, unless whole tiles fill the block or the block spans the grid.
        moved = sum((t / b) ** 2 for n, t, b in zip(view, tile, block, strict=True) if b < n and b % t)
        return grid.padding(tile) + 0.02 * math.log2(max(tile) / min(tile)) + 0.05 * moved

    return min(tiles_of_volume(grid.default_volume), key=cost)


def _kept(scores: torch.Tensor, own: torch.Tensor, scope: Scope, top_k: int, threshold: float | None) -> torch.Tensor:
    """The pairs of a query and a block to keep: bool [B, H, queries, blocks], like `scores`; `own` lacks B and H."""
    batch, heads, rows, blocks = scores.shape
    pools = {"query": heads * rows, "head": heads, "overall": 1}[scope]
    pool = scores.reshape(batch, pools, -1)
    own = own.expand_as(scores).reshape(pool.shape)
    queries = pool.shape[-1] // blocks  # also the number of pairs of a query and its own block, which come first
    order = pool.masked_fill(own, float("inf")).argsort(dim=-1, descending=True, stable=True)
    place = torch.arange(pool.shape[-1], device=pool.device)
    if threshold is None:
        chosen = place < top_k * queries
    else:
        low, high = pool.aminmax(dim=-1, keepdim=True)
        weights = torch.where(high - low > EPSILON, (pool - low) / (high - low), 1.0).gather(-1, order)
        # Millions of weights are summed: in float32 a threshold of 1 would drop some of them.
        total = weights.cumsum(dim=-1, dtype=torch.float64)
        missing = total - weights < threshold * (total[..., -1:] + EPSILON)
        chosen = missing | (place <= queries)
    kept: torch.Tensor = torch.zeros_like(own).scatter(-1, order, chosen.expand_as(own))
    return kept.view_as(scores)
