"""The result of a pattern: for each query tile the list of key tiles that it sees."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import torch

from vidsparse.grid import AnyGrid, Tile, VideoGrid
from vidsparse_kernels.layout import TileLayout, check_lists, lists_of
from vidsparse_kernels.providers.runs import Runs
from vidsparse_kernels.reference import token_mask

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

    from vidsparse_kernels.gpu.lists import MapLists

Derived = TypeVar("Derived")


@dataclass(frozen=True, eq=False)
class BlockMap:
    """Which key tiles each query tile sees. A pair of tiles is kept or dropped as a whole.

    Queries and keys are the same tokens unless a `key_grid` is given, such as that of a chunk of new frames and that of
    all frames so far. Tiles are numbered in raster order over the tile grid of each video. Prefix and suffix tokens are
    not listed: those of the queries see every key, and every query sees those of the keys. Maps are equal if they have
    the same grids, tiles and shape, and keep the same pairs, on whatever device; comparing maps on a GPU synchronises
    with it, hashing does not. This rebuilds the dense form:

        dense = torch.zeros(B, H, query_tiles, key_tiles, dtype=torch.bool)
        for b, h, q in every row:
            dense[b, h, q, indices[b, h, q, : counts[b, h, q]]] = True

    Attributes:
        query_grid: the tokens of the queries: a `VideoGrid`, or a `SparseVolume`, whose empty tiles have no number.
        query_tile, key_tile: tile sides (frames, height, width) in tokens.
        counts: int32 [B|1, H|1, query tiles].
        indices: int32 [B|1, H|1, query tiles, W], ascending; entries past the count are undefined. W is the longest
            row, at least 1.
        key_grid: the tokens of keys and values; default: `query_grid`.

    Raises:
        ValueError: `counts` has another number of rows than the query grid has tiles.
    """

    query_grid: AnyGrid
    query_tile: Tile
    key_tile: Tile
    counts: torch.Tensor
    indices: torch.Tensor
    key_grid: AnyGrid = None  # type: ignore[assignment]  # __post_init__ sets it
    _lists: list[MapLists] = field(default_factory=list, init=False, repr=False)
    _derived: dict[object, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.key_grid is None:
            object.__setattr__(self, "key_grid", self.query_grid)
        tiles = self.layout.query.tiles
        if self.counts.shape[-1] != tiles:
            raise ValueError(
                f"counts have shape {tuple(self.counts.shape)}, expected [B|1, H|1, {tiles}]: the query grid "
                f"{self.query_grid} has {tiles} tiles {self.query_tile}"
            )

    @classmethod
    @torch.inference_mode(False)  # patterns cache their maps, and a training may use them later
    def from_dense(
        cls,
        kept: torch.Tensor,
        query_grid: AnyGrid,
        query_tile: Tile,
        key_tile: Tile | None = None,
        key_grid: AnyGrid | None = None,
    ) -> BlockMap:
        """Build a map from a bool tensor [query tiles, key tiles] or [B|1, H|1, query tiles, key tiles].

        `key_tile` is `query_tile` and `key_grid` is `query_grid` unless given.

        Raises:
            ValueError: the tensor has another dtype, or another number of tiles than the grids.
        """
        key_tile, key_grid = key_tile or query_tile, key_grid or query_grid
        kept = kept[None, None] if kept.ndim == 2 else kept
        expected = query_grid.tiling(query_tile).tiles, key_grid.tiling(key_tile).tiles
        if kept.ndim != 4 or kept.dtype != torch.bool or kept.shape[-2:] != expected:
            raise ValueError(
                f"got {kept.dtype} {tuple(kept.shape)}, expected bool [..., {expected[0]}, {expected[1]}]: queries of "
                f"{query_grid} in tiles {query_tile} and keys of {key_grid} in tiles {key_tile} have that many tiles"
            )
        counts, indices = lists_of(kept)
        indices = indices[..., : max(1, int(counts.max()))].contiguous()
        return cls(query_grid, query_tile, key_tile, counts, indices, key_grid)

    def derived(self, key: object, make: Callable[[], Derived]) -> Derived:
        """What was made from this very map object: made once for each key, and gone with the object.

        This is for caches. A dictionary of maps would compare maps of equal hash, which synchronises with a GPU.
        """
        if key not in self._derived:
            self._derived[key] = make()
        found: Derived = self._derived[key]
        return found

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, BlockMap):
            return NotImplemented
        if self._kind != other._kind:
            return False
        device = self.counts.device if self.counts.device == other.counts.device else torch.device("cpu")
        (counts, indices), (counts2, indices2) = ((x.counts.to(device), x.indices.to(device)) for x in (self, other))
        if bool((counts != counts2).any()):
            return False
        width = min(indices.shape[-1], indices2.shape[-1])  # neither list is longer, since counts are equal
        listed = torch.arange(width, device=device) < counts[..., None]
        return not bool(((indices[..., :width] != indices2[..., :width]) & listed).any())

    def __hash__(self) -> int:
        return hash(self._kind)

    @property
    def _kind(self) -> tuple[object, ...]:
        """What equal maps share, without a look at their lists."""
        return self.query_grid, self.key_grid, self.query_tile, self.key_tile, self.counts.shape

    def __reduce__(self) -> tuple[object, ...]:
        """Copies and pickles are without what was derived from the map."""
        return type(self), (self.query_grid, self.query_tile, self.key_tile, self.counts, self.indices, self.key_grid)

    def __repr__(self) -> str:
        tiles = " -> ".join("x".join(map(str, tile)) for tile in (self.query_tile, self.key_tile))
        batch, heads = self.counts.shape[:2]
        samples = "" if batch == 1 else f"samples {batch}, "
        density = "unknown" if self.counts.is_meta else f"{self.density:.2f}"
        grids = f"grid {self.query_grid.sides}"
        if not self.square:
            grids = f"grids {self.query_grid.sides} -> {self.key_grid.sides}"
        return f"BlockMap({grids}, tiles {tiles}, {samples}heads {heads}, density {density})"

    def _repr_html_(self) -> str:
        from vidsparse.pictures.html import map_html

        return map_html(self)

    @property
    def square(self) -> bool:
        """Whether queries and keys have one grid."""
        return self.query_grid == self.key_grid

    @property
    def grid(self) -> VideoGrid:
        """The tokens of queries and of keys, where both have one grid.

        Raises:
            ValueError: they have two, or are voxels of a `SparseVolume`.
        """
        if not self.square or not isinstance(self.query_grid, VideoGrid):
            raise ValueError(
                f"the map has no single grid: its queries are {self.query_grid}, its keys {self.key_grid}; use "
                "query_grid or key_grid, or a map of one VideoGrid"
            )
        return self.query_grid

    @property
    def view(self) -> tuple[int, int, int]:
        """(frames, height, width) of `grid`."""
        return self.grid.view

    @property
    def layout(self) -> TileLayout:
        """The geometry of the map, as kernels take it."""
        return TileLayout(self.query_grid.tiling(self.query_tile), self.key_grid.tiling(self.key_tile))

    @property
    def query_tile_of_token(self) -> torch.Tensor:
        """The query tile that holds each video token of the query grid, in raster order: int64 [video tokens]."""
        return self.layout.query.tile_of_token

    @property
    def key_tile_of_token(self) -> torch.Tensor:
        """The key tile that holds each video token of the key grid, in raster order: int64 [video tokens]."""
        return self.layout.key.tile_of_token

    @property
    def key_tiles(self) -> int:
        return self.layout.key.tiles

    def to_dense(self) -> torch.Tensor:
        """The map as bool [B|1, H|1, query tiles, key tiles]."""
        width = self.indices.shape[-1]
        listed = torch.arange(width, device=self.counts.device) < self.counts[..., None]
        # Undefined entries may be any number: they go to an additional column that is cut off.
        columns = torch.where(listed, self.indices, self.key_tiles).long()
        dense = torch.zeros(*self.counts.shape, self.key_tiles + 1, dtype=torch.bool, device=self.counts.device)
        return dense.scatter_(-1, columns, True)[..., :-1]

    def check_rows(self) -> None:
        """Refuse a map in which a query tile has no key tile; maps on a GPU are not read, and pass.

        Raises:
            ValueError: names the first such tile.
        """
        if self.counts.device.type != "cpu" or self._every_row_is_seen:
            return
        _, head, row = (self.counts < 1).nonzero()[0].tolist()
        raise ValueError(
            f"query tile {row} of head {head} of the map for {self.query_grid} has no key tile; keep at least its own "
            "tile, or return HeadGroups, which say what such a query gives"
        )

    @cached_property
    def _every_row_is_seen(self) -> bool:
        return bool((self.counts > 0).all())

    def check_lists(self) -> None:
        """Refuse lists that are not those of key tiles, once for a map; maps on a GPU are not read, and pass.

        Raises:
            ValueError: a count beyond the width of the lists, a tile that the key grid lacks, or a list that does not
                ascend.
        """
        if self.counts.device.type == "cpu" and not torch.compiler.is_compiling():
            self.derived("checked lists", lambda: check_lists(self.counts, self.indices, self.key_tiles))

    def transpose(self) -> BlockMap:
        """The map that lists, for each key tile, the query tiles that see it."""
        dense = self.to_dense().mT.contiguous()
        return BlockMap.from_dense(dense, self.key_grid, self.key_tile, self.query_tile, self.query_grid)

    def of_heads(self, heads: tuple[int, ...]) -> BlockMap:
        """The map of some heads, in their order; a map that all heads share, and one object for equal arguments."""

        def select() -> BlockMap:
            index = head_indices(heads, self.counts.device)
            counts, indices = (x.index_select(1, index) for x in (self.counts, self.indices))
            return replace(self, counts=counts, indices=indices)

        return self if self.counts.shape[1] == 1 else self.derived(("heads", heads), select)

    def to(self, device: torch.device | str) -> BlockMap:
        """The same map on another device."""
        return replace(self, counts=self.counts.to(device), indices=self.indices.to(device))

    @cached_property
    def densities(self) -> torch.Tensor:
        """`density` and `token_density` as float64 [2], left on the map's device: reading them synchronises."""
        return self.head_densities.mean(dim=1)

    @cached_property
    def head_densities(self) -> torch.Tensor:
        """The same for each head of the map, float64 [2, 1 or heads]: means over its batch."""
        device, query, key = self.counts.device, self.layout.query, self.layout.key
        rows, columns = (side.tile_sizes(device).double() for side in (query, key))
        listed = torch.arange(self.indices.shape[-1], device=device) < self.counts[..., None]
        seen = (columns[torch.where(listed, self.indices, 0).long()] * listed).sum(dim=-1)  # [B, H, query tiles]
        video = (seen * rows).sum(dim=-1).mean(dim=0)
        pairs = video + query.extra * key.tokens + query.video_tokens * key.extra
        pairs /= query.tokens * key.tokens
        return torch.stack((self.counts.double().mean(dim=(0, 2)) / self.key_tiles, pairs))

    @property
    def density(self) -> float:
        """Kept pairs of video tiles / all pairs of video tiles."""
        return float(self.densities[0])

    @property
    def token_density(self) -> float:
        """Kept pairs of tokens / all pairs of tokens, text rows and columns included."""
        return float(self.densities[1])

    def token_mask(self, extra_valid: torch.Tensor | None = None) -> torch.Tensor:
        """The map expanded to tokens: bool [B|1, H|1, query tokens, key tokens], for small grids."""
        return token_mask(self.to_dense(), self.layout, extra_valid)

    @property
    def lists(self) -> MapLists:
        """The lists that Triton's kernels walk, cached with the map."""
        if not self._lists:
            from vidsparse_kernels.gpu.lists import MapLists  # needs Triton

            self._lists.append(MapLists(self.counts.contiguous(), self.indices.contiguous(), self.layout))
        return self._lists[0]

    @cached_property
    def runs(self) -> Runs:
        """The map for kernels of other packages, cached with it."""
        return Runs.of(self.counts, self.indices, self.layout)

    @cached_property
    @torch.inference_mode(False)  # a training may use it later
    def flex_mask(self) -> BlockMask:
        """The result of `to_flex()`, cached with the map."""
        return self.to_flex()

    def to_flex(self, extra_valid: torch.Tensor | None = None, block: int = 128) -> BlockMask:
        """The same mask for `torch.nn.attention.flex_attention`, without expanding it to pairs of tokens.

        FlexAttention's blocks are runs of `block` tokens of the sequence, which cut across tiles. A pair of blocks that
        touches a kept pair of tiles is computed, and masked if it also touches a dropped one.
        """
        from torch.nn.attention.flex_attention import BlockMask

        kept, query, key = self.to_dense(), self.layout.query, self.layout.key
        device, (queries, keys) = kept.device, kept.shape[-2:]
        # An additional tile for prefix and suffix tokens, which see all and are seen by all; another one for padding.
        pad = torch.nn.functional.pad
        kept = pad(pad(kept, (0, 1, 0, 1), value=True), (0, 1), value=False)
        row = pad(self.query_tile_of_token, (query.prefix, query.suffix), value=queries).to(device)
        column = pad(self.key_tile_of_token, (key.prefix, key.suffix), value=keys).to(device)
        column = column.repeat(1 if extra_valid is None else len(extra_valid), 1)
        for sample, valid in enumerate([] if extra_valid is None else extra_valid.tolist()):
            column[sample, key.extra_tokens[valid:].to(device)] = keys + 1
        batch, heads = max(kept.shape[0], column.shape[0]), kept.shape[1]

        def keeps(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
            return kept[b % kept.shape[0], h % heads, row[q], column[b % column.shape[0], kv]]

        rows = _touched(row[None], block, queries + 1)[:, None]
        columns = _touched(column, block, keys + 2)[:, None]
        seen = (rows @ kept.float() @ columns.mT > 0).expand(batch, heads, -1, -1)
        dropped = (rows @ (~kept).float() @ columns.mT > 0).expand(batch, heads, -1, -1).clone()
        if query.tokens % block:
            dropped[..., -1, :] = True
        if key.tokens % block:
            dropped[..., -1] = True
        partial, full = lists_of(seen & dropped), lists_of(seen & ~dropped)
        lengths = query.tokens, key.tokens
        return BlockMask.from_kv_blocks(*partial, *full, block, mask_mod=keeps, seq_lengths=lengths)


class HeadGroup(NamedTuple):
    """Heads of a layer that share one map, for patterns whose heads need tiles of different shapes.

    Attributes:
        heads: their indices.
        block_map: its batch is 1 or that of the query; it has one head, or as many as `heads`.
        empty: the output of a query that sees no key: zeros, or the mean of all values.
    """

    heads: tuple[int, ...]
    block_map: BlockMap
    empty: Literal["zero", "mean"] = "zero"

    def __repr__(self) -> str:
        return f"HeadGroup(heads {_ranges(self.heads)}, {self.block_map!r}, empty {self.empty})"


# The result of a pattern: one map for all heads, or one for each group of heads.
Plan = BlockMap | tuple[HeadGroup, ...]


def head_groups(plan: Plan, heads: int) -> tuple[HeadGroup, ...]:
    """Validate a plan, and return it as groups that hold each of the heads once.

    Raises:
        TypeError: neither a `BlockMap` nor a tuple of `HeadGroup`.
        ValueError: a head in no group, in two, or beyond the number of heads; a single map in which a query tile has no
            key tile. Maps on a GPU are not searched for such tiles, because reading them would synchronise.
    """
    if isinstance(plan, BlockMap):
        plan.check_rows()
        return (HeadGroup(tuple(range(heads)), plan),)
    if not isinstance(plan, tuple) or not all(isinstance(group, HeadGroup) for group in plan):
        kind = f"({', '.join(type(x).__name__ for x in plan)},)" if isinstance(plan, tuple) else type(plan).__name__
        raise TypeError(
            f"a plan must be a BlockMap or a tuple of HeadGroups, got {kind if plan is not None else None}; let the "
            "pattern return its map, such as BlockMap.from_dense(kept, grid, tile)"
        )
    found = sorted(head for group in plan for head in group.heads)
    if found != list(range(heads)):
        raise ValueError(f"the groups of a plan hold heads {found}, expected each of 0 to {heads - 1} once")
    return plan


@lru_cache(maxsize=1024)
@torch.inference_mode(False)  # for a later training too
def head_indices(heads: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Heads as a tensor on the device; cached, because copying a list to a GPU synchronises."""
    return torch.tensor(heads, device=device)


def plan_of_heads(plan: Plan, heads: tuple[int, ...]) -> Plan:
    """The part of a plan that is about some heads of a layer, which it numbers anew from 0, in their order.

    Args:
        plan: for all heads. heads: their numbers in it.

    Returns:
        The same map objects where their heads share a map, and one map object for the same map and heads: layers
        share what is computed from a map.
    """
    if isinstance(plan, BlockMap):
        return plan.of_heads(heads)
    groups = []
    for group in plan:
        places = [place for place, head in enumerate(heads) if head in group.heads]
        if places:
            rows = tuple(group.heads.index(heads[place]) for place in places)
            groups.append(HeadGroup(tuple(places), group.block_map.of_heads(rows), group.empty))
    return tuple(groups)


def _ranges(numbers: Sequence[int]) -> str:
    """Whole numbers as text, such as "0-3, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _touched(owner: torch.Tensor, block: int, tiles: int) -> torch.Tensor:
    """Which tiles have a token in each block: float32 [B, blocks, tiles], from the tiles of tokens [B, tokens]."""
    found = torch.zeros(len(owner), math.ceil(owner.shape[1] / block), tiles, device=owner.device)
    position = torch.arange(owner.shape[1], device=owner.device) // block
    found[torch.arange(len(owner), device=owner.device)[:, None], position[None], owner] = 1.0
    return found
