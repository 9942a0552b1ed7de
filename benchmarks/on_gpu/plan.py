"""What a run on a GPU looks at: small cases that are compared with float64, long videos that are timed."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch

from on_gpu.launches import Replacement
from vidsparse.block_map import BlockMap
from vidsparse.grid import Tile, VideoGrid
from vidsparse.patterns import Radial
from vidsparse_kernels.selection.rule import Rule
from vidsparse_kernels.selection.select import select_tiles

GRIDS = {"115k": VideoGrid(30, 48, 80), "75k": VideoGrid(21, 45, 80)}
TILES: dict[int, Tile] = {128: (2, 8, 8), 64: (1, 8, 8)}
# Cut tiles and text before and after; whole tiles alone.
SMALL = {"ragged": VideoGrid(5, 13, 17, prefix=5, suffix=70), "whole": VideoGrid(4, 16, 16)}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Case:
    """A small call with tiles of `rows` query and `columns` key tokens, on one of the grids of `SMALL`."""

    head_dim: int
    dtype: torch.dtype
    rows: int
    columns: int
    grid: str

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.grid}, head_dim {self.head_dim}, {dtype}, tiles {self.rows} x {self.columns}"


@dataclass(frozen=True)
class Problem:
    """A long video, in bfloat16."""

    name: str
    grid: VideoGrid
    heads: int
    head_dim: int

    def __str__(self) -> str:
        return f"{self.name}, {self.heads} heads of {self.head_dim}"


@dataclass(frozen=True)
class Plan:
    """What a run computes.

    Attributes:
        device: where.
        cases: small calls, what matters most first. problems: long videos, short ones first.
        tiles: tokens of a tile -> its sides, for the problems. densities: of their maps.
        flex: whether FlexAttention is timed too, where it takes the map.
        launches: rows that take the place of the table's.
        workers: processes for the small calls, whose kernels take longer to compile than to run; 0: none but this one.
        product, copied: side of the matrices and bytes of the copy that show what the chip can do.
    """

    device: torch.device
    cases: tuple[Case, ...]
    problems: tuple[Problem, ...]
    tiles: dict[int, Tile]
    densities: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0)
    flex: bool = False
    launches: tuple[Replacement, ...] = ()
    workers: int = min(14, os.cpu_count() or 1)
    product: int = 8192
    copied: int = 2**31


def small_cases() -> tuple[Case, ...]:
    """Every head_dim, dtype and pair of tiles; float32, which takes long to compile, on the ragged grid alone."""
    found = [Case(d, t, r, c, g) for t, g, d, r, c in product(DTYPES, SMALL, (128, 64, 96, 32), TILES, TILES)]
    return tuple(case for case in found if case.dtype != torch.float32 or case.grid == "ragged")


def full(device: torch.device, flex: bool, launches: tuple[Replacement, ...]) -> Plan:
    """Everything; some minutes."""
    problems = [Problem(n, GRIDS[n], h, d) for h in (3, 24) for n in ("75k", "115k") for d in (128, 64)]
    return Plan(device, small_cases(), tuple(problems), TILES, flex=flex, launches=launches)


def quick(device: torch.device, launches: tuple[Replacement, ...]) -> Plan:
    """All small cases and one problem."""
    return Plan(device, small_cases(), (Problem("75k", GRIDS["75k"], 3, 128),), TILES, launches=launches)


def random_map(grid: VideoGrid, tile: Tile, density: float, query_tile: Tile | None = None) -> BlockMap:
    """Every query tile sees as many key tiles as the density asks for, anywhere, and its own."""
    rows, columns = (math.prod(grid.tiles(t)) for t in (query_tile or tile, tile))
    number = max(1, round(density * columns))
    scores = torch.rand(1, 1, rows, columns)
    scores[..., torch.arange(rows), torch.arange(rows) * columns // rows] = 2.0
    counts, indices = select_tiles(scores, Rule("top_k", number))
    return BlockMap(grid, query_tile or tile, tile, counts, indices)


def clustered_map(grid: VideoGrid, tile: Tile, density: float) -> BlockMap:
    """Neighbours in space and time."""
    return Radial(density=density, tile=tile).plan(grid)


def maps(plan: Plan, problem: Problem) -> Iterator[tuple[int, str, BlockMap]]:
    """Tokens of a tile, kind, and map, for each map of a problem."""
    for (volume, tile), (kind, made), density in product(
        plan.tiles.items(), (("clustered", clustered_map), ("random", random_map)), plan.densities
    ):
        yield volume, kind, made(problem.grid, tile, density).to(plan.device)
