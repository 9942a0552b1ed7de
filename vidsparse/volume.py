"""Tokens at some voxels of a grid: a sparse 3-D object, or the part of a video that is to be painted anew."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from vidsparse.block_map import BlockMap
from vidsparse.grid import Tile, VideoGrid, check_tile
from vidsparse_kernels.volume import VolumeTiling


@dataclass(frozen=True, eq=False)
class SparseVolume:
    """The token layout of attention among some voxels of a grid.

    The sequence is the grid's prefix tokens, then one token for each voxel, then the grid's suffix tokens. A tile holds
    those voxels of its box that have a token. A tile without any does not exist. Make one with `from_mask` or
    `from_coordinates`:

        volume = SparseVolume.from_mask(grid, valid)
        block_map = volume.restrict(Radial(density=0.3).plan(grid))
        out = sparse_attention(query, key, value, block_map)  # [batch, volume.tokens, heads, head_dim] each

    Volumes are equal if they have the same grid and the same voxels in the same order.

    Paper: Wu et al., Direct3D-S2 (Spatial Sparse Attention), arXiv 2505.17412, whose blocks are boxes of the grid with
    their valid tokens only. Differences: here any pattern chooses the pairs of boxes; its compressed branch, its window
    of each token and the gates that weigh its three branches are not part of this.

    Attributes:
        grid: all voxels, and the tokens before and after them.
        positions: int64 [voxels], on the CPU: the place of each token's voxel in the raster order of the grid.

    Raises:
        TypeError: positions that are not integers.
        ValueError: no position, one outside of the grid, or one that occurs twice.
    """

    grid: VideoGrid
    positions: torch.Tensor
    _tilings: dict[Tile, VolumeTiling] = field(default_factory=dict, init=False, repr=False)
    _sequences: dict[torch.device, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        positions = _integers(self.positions, "positions")
        if positions.ndim != 1 or not len(positions):
            raise ValueError(f"positions have shape {list(positions.shape)}, expected [voxels] with one voxel or more")
        if int(positions.min()) < 0 or int(positions.max()) >= self.grid.video_tokens:
            raise ValueError(
                f"positions are {int(positions.min())} to {int(positions.max())}, but {self.grid} has voxels 0 to "
                f"{self.grid.video_tokens - 1}; give the place in raster order"
            )
        if len(positions.unique()) < len(positions):
            raise ValueError("a position occurs twice: give each voxel one token")
        object.__setattr__(self, "positions", positions)

    @classmethod
    def from_mask(cls, grid: VideoGrid, valid: torch.Tensor) -> SparseVolume:
        """The voxels where a mask is true, in raster order. A mask on a GPU is copied once, which synchronises.

        Args:
            grid: all voxels. valid: bool [frames, height, width], which of them have a token.

        Raises:
            TypeError: a mask of another dtype.
            ValueError: a mask of another shape, or without a true voxel.
        """
        if not isinstance(valid, torch.Tensor) or valid.dtype != torch.bool:
            raise TypeError(
                f"valid must be a bool tensor, got {getattr(valid, 'dtype', type(valid).__name__)}; compare it first, "
                "such as occupancy > 0"
            )
        if tuple(valid.shape) != grid.view:
            raise ValueError(
                f"valid has shape {list(valid.shape)}, expected {list(grid.view)}: frames, height and width of {grid}"
            )
        if not bool(valid.any()):
            raise ValueError(f"no voxel of {grid} is valid; a volume needs at least one")
        return cls(grid, valid.flatten().nonzero().squeeze(1))

    @classmethod
    def from_coordinates(cls, grid: VideoGrid, coordinates: torch.Tensor) -> SparseVolume:
        """The voxels at these places, in this order.

        Args:
            grid: all voxels. coordinates: integers [voxels, 3]: frame, row and column of each token.

        Raises:
            TypeError: coordinates that are not integers.
            ValueError: another shape, a place outside of the grid, or one that occurs twice.
        """
        coordinates = _integers(coordinates, "coordinates")
        if coordinates.ndim != 2 or coordinates.shape[1] != 3 or not len(coordinates):
            raise ValueError(f"coordinates have shape {list(coordinates.shape)}, expected [voxels, 3], one or more")
        outside = ((coordinates < 0) | (coordinates >= torch.tensor(grid.view))).any(dim=1)
        if bool(outside.any()):
            raise ValueError(
                f"{tuple(coordinates[outside][0].tolist())} is outside of {grid}; coordinates are (frame, row, column)"
            )
        return cls(grid, coordinates @ torch.tensor([grid.height * grid.width, grid.width, 1]))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SparseVolume):
            return NotImplemented
        return self is other or (self.grid == other.grid and torch.equal(self.positions, other.positions))

    def __hash__(self) -> int:
        return hash((self.grid, len(self.positions)))

    def __repr__(self) -> str:
        return f"SparseVolume({self.grid}, {len(self.positions)} voxels)"

    if not TYPE_CHECKING:  # a type checker shall find unknown names

        def __getattr__(self, name: str) -> None:
            raise AttributeError(
                f"a SparseVolume has no {name!r}, because it is no whole grid; plan the pattern for volume.grid, and "
                "pass its map to volume.restrict",
                name=name,
                obj=self,
            )

    @property
    def prefix(self) -> int:
        """The tokens before those of the voxels."""
        return self.grid.prefix

    @property
    def suffix(self) -> int:
        """The tokens after those of the voxels."""
        return self.grid.suffix

    @property
    def tokens(self) -> int:
        """All tokens of the sequence, prefix and suffix included."""
        return self.prefix + len(self.positions) + self.suffix

    @property
    def sides(self) -> str:
        """The sides as text, such as "700 of 16x16x16"."""
        return f"{len(self.positions)} of {self.grid.sides}"

    @torch.inference_mode(False)  # cached, and a training may use it later
    def tiling(self, tile: Tile) -> VolumeTiling:
        """The sequence in tiles, as kernels take it. Tiles with a voxel are numbered in raster order."""
        if tile not in self._tilings:
            owner = torch.searchsorted(self.held_tiles(tile), self._box_of_token(tile))
            view = 1, 1, len(self.positions)
            self._tilings[tile] = VolumeTiling(view, tile, self.prefix, self.suffix, owner=owner)
        return self._tilings[tile]

    def held_tiles(self, tile: Tile) -> torch.Tensor:
        """The tiles of the whole grid that hold a voxel: their numbers in that grid, int64, ascending, on the CPU."""
        held: torch.Tensor = self._box_of_token(tile).unique()
        return held

    def restrict(self, block_map: BlockMap) -> BlockMap:
        """The map among the voxels of this volume: a pair of tiles that both hold a voxel stays as it is.

        Keep the result for all layers, because what is computed from a map is kept with it.

        Args:
            block_map: of `volume.grid`, for queries and for keys, such as `pattern.plan(volume.grid)`.

        Returns:
            A map whose grids are this volume. A query tile whose key tiles are all empty keeps none: its queries see
            prefix and suffix alone, and without these their output is 0. Its `density` counts pairs of tiles with
            voxels, its `token_density` pairs of tokens.

        Raises:
            TypeError: no `BlockMap`.
            ValueError: a map of another grid.
        """
        if not isinstance(block_map, BlockMap):
            raise TypeError(
                f"restrict takes a BlockMap, got {type(block_map).__name__}; of HeadGroups, restrict the block_map of "
                "each"
            )
        if not block_map.query_grid == block_map.key_grid == self.grid:
            raise ValueError(f"{block_map} is not a map of {self.grid}; plan the pattern for volume.grid")
        query_tile, key_tile = block_map.query_tile, block_map.key_tile
        device = block_map.counts.device
        rows, columns = (self.held_tiles(tile).to(device) for tile in (query_tile, key_tile))
        kept = block_map.to_dense()[:, :, rows][..., columns]
        return BlockMap.from_dense(kept, self, query_tile, key_tile)

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """The tokens of this volume from those of the whole grid. Gradients flow.

        Args:
            x: [batch, grid.tokens, ...], prefix and suffix included.

        Returns:
            [batch, volume.tokens, ...].

        Raises:
            ValueError: another number of tokens.
        """
        self._check(x, self.grid.tokens, f"the whole {self.grid}")
        return x.index_select(1, self._sequence(x.device))

    def scatter(self, x: torch.Tensor) -> torch.Tensor:
        """The tokens of the whole grid from those of this volume, with zeros elsewhere. Gradients flow.

        Args:
            x: [batch, volume.tokens, ...], prefix and suffix included.

        Returns:
            [batch, grid.tokens, ...].

        Raises:
            ValueError: another number of tokens.
        """
        self._check(x, self.tokens, f"{self}")
        return x.new_zeros(len(x), self.grid.tokens, *x.shape[2:]).index_copy(1, self._sequence(x.device), x)

    def _box_of_token(self, tile: Tile) -> torch.Tensor:
        """The tile of the whole grid in which each voxel is: int64 [voxels]."""
        return self.grid.tiling(check_tile(tile)).tile_of_token[self.positions]

    def _sequence(self, device: torch.device) -> torch.Tensor:
        """Positions of all tokens in the sequence of the whole grid; cached, because a copy to a GPU synchronises."""
        if device not in self._sequences:
            with torch.inference_mode(False):  # a training may use it later
                end = torch.arange(self.grid.tokens - self.suffix, self.grid.tokens)
                parts = torch.arange(self.prefix), self.positions + self.prefix, end
                self._sequences[device] = torch.cat(parts).to(device)
        return self._sequences[device]

    def _check(self, x: torch.Tensor, tokens: int, of: str) -> None:
        if x.ndim < 2 or x.shape[1] != tokens:
            raise ValueError(f"x has shape {list(x.shape)}, expected [batch, {tokens}, ...]: the tokens of {of}")


def _integers(x: torch.Tensor, name: str) -> torch.Tensor:
    """A copy as int64 on the CPU."""
    if not isinstance(x, torch.Tensor) or x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(
            f"{name} must be a tensor of integers, got {getattr(x, 'dtype', type(x).__name__)}; a mask of voxels goes "
            "to SparseVolume.from_mask"
        )
    with torch.inference_mode(False):
        return x.to("cpu", torch.int64, copy=True)
