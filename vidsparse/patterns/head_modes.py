"""A mode for each head from a table: full, skipped, window of frames, window of positions, or stripes."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch

from vidsparse.atomic import replacing
from vidsparse.block_map import BlockMap, HeadGroup
from vidsparse.grid import Tile, VideoGrid
from vidsparse.patterns.base import Context, Pattern
from vidsparse.patterns.fields import check_sides, check_whole, check_wholes, is_number
from vidsparse.patterns.gridded import cheapest_tile, tile_gaps

Mode = Literal["full", "skip-zero", "skip-mean", "diagonal", "temporal", "stripe"]
Table = tuple[tuple[tuple[str, ...], ...], ...]


@dataclass(frozen=True)
class HeadModes(Pattern):
    """Every head of every layer runs the mode that a table gives it for the current phase of the denoising.

    full        sees all tokens
    skip-zero   sees no token and outputs zeros
    skip-mean   sees no token and outputs the mean of all values, which is attention that is the same everywhere
    diagonal    sees the frames up to `window` away
    temporal    sees the positions up to `radius` away, in all frames
    stripe      sees the frames `stripe`, and its own tile

    A pair of tiles is kept as a whole if it holds such a pair of tokens. Heads with tiles of one shape run in one
    launch, together with the skipped heads that output zeros; those that output the mean run in another. A layer whose
    heads are all full runs the model's own attention. Prefix and suffix tokens stay exact: with text in the sequence, a
    skipped head still sees the text, and its output is attention to the text alone.

    Paper: Chen et al., Sparse-vDiT, arXiv 2506.03065; no code is published. Differences: the paper does not say how
    wide its windows are and where its stripes are, so these are fields with our own defaults; a head can be skipped to
    the mean; phases are ranges of noise instead of single steps, so that one table serves any number of steps. The
    paper fills the table by a search; here it is written by hand or read from a file.

    Attributes:
        table: `mode[phase][layer][head]`, tuples of names; the first phase is the noisiest.
        bounds: the falling noise levels in (0, 1) at which phases end, one fewer than phases; None: equal parts.
        window: for diagonal: latent frames to each side of the query's own.
        radius: for temporal: rows and columns to each side of the query's own.
        stripe: for stripe: the latent frames that all queries see. Negative ones count from the last; those that a
            video does not have are ignored.
        tile: sides of the tiles for all modes but temporal; by default the 128 tokens for which diagonal computes
            least.
        long_tile: sides of the tiles for temporal; by default the 128 tokens for which it computes least.

    Raises:
        ValueError: a table with gaps, an unknown mode, or a value out of range.
    """

    table: Table = field(repr=False)
    bounds: tuple[float, ...] | None = None
    window: int = 2
    radius: int = 8
    stripe: tuple[int, ...] = (0,)
    tile: Tile | None = None
    long_tile: Tile | None = None

    named_defaults: ClassVar[dict[str, Any]] = {"table": "FILE.json"}

    def __post_init__(self) -> None:
        _check_table(self.table)
        check_sides(self, "tile", "long_tile", optional=True)
        check_whole(self, "window", "radius")
        check_wholes(self, "stripe", "latent frames, such as (0,) or (0, -1)")
        levels = self._levels
        numbers = isinstance(levels, tuple) and all(map(is_number, levels))
        falling = numbers and all(a > b for a, b in zip((1, *levels), (*levels, 0), strict=True))
        if not falling or len(levels) != len(self.table) - 1:
            raise ValueError(
                f"bounds={self.bounds!r} must be a tuple of {len(self.table) - 1} noise levels that fall from below 1 "
                f"to above 0: one between each two of the table's {len(self.table)} phases"
            )

    def __repr__(self) -> str:
        """Show the size and hash of the table instead of its entries."""
        found = hashlib.sha256(repr(self.table).encode()).hexdigest()[:8]
        table = f"table=<{len(self.table)} x {self.layers} x {self.heads}, {found}>"
        others = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.repr)
        return f"HeadModes({', '.join((table, *others))})"

    @classmethod
    def from_json(cls, path: str | Path) -> HeadModes:
        """Read what `to_json` wrote: an object of the fields; all but "table" may be left out.

        Raises:
            ValueError: no JSON, an unknown field, or a value that the pattern refuses; names the file.
            OSError: the file cannot be read.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            if isinstance(found, dict) and found.get("class") == cls.__name__:  # older files name no class
                del found["class"]
            known = [f.name for f in fields(cls)]
            if not isinstance(found, dict) or "table" not in found or not set(found) <= set(known):
                given = sorted(found) if isinstance(found, dict) else type(found).__name__
                raise ValueError(f"got {given}, expected an object with 'table' and any of {', '.join(known[1:])}")
            return cls(**{name: _tuples(value) for name, value in found.items()})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no table of head modes: {error}") from error

    def to_json(self, path: str | Path) -> None:
        """Write all fields as `vidsparse.serialize.to_data` does. The file appears whole or not at all."""
        with replacing(Path(path)) as temporary:
            temporary.write_text(json.dumps({"class": type(self).__name__, **asdict(self)}) + "\n", encoding="utf-8")

    @classmethod
    def named(cls, **settings: Any) -> HeadModes:
        """Build the pattern from words, which give the table as the name of a file that `to_json` wrote."""
        table = settings.pop("table")
        if not isinstance(table, str):
            raise ValueError(f"table={table!r} must name a file of head modes, such as table=FILE.json")
        try:
            return replace(cls.from_json(table), **settings)
        except OSError as error:
            raise ValueError(f"table={table} cannot be read: {error.strerror}; give table=FILE.json") from None

    @property
    def layers(self) -> int:
        return len(self.table[0])

    @property
    def heads(self) -> int:
        return len(self.table[0][0])

    def check_model(self, layers: int, heads: int | None) -> None:
        heads = self.heads if heads is None else heads
        if (layers, heads) != (self.layers, self.heads):
            raise ValueError(
                f"the table is for {self.layers} layers of {self.heads} heads, "
                f"the model has {layers} layers of {heads} heads; use a table that was made for it"
            )

    def phase(self, sigma: float) -> int:
        """The phase of a noise level; a bound belongs to the later phase."""
        return sum(sigma <= level for level in self._levels)

    def plan(self, grid: VideoGrid, context: Context | None = None) -> tuple[HeadGroup, ...]:
        return _plan(replace(self, table=((self._row(context or Context()),),), bounds=None), grid)

    def is_dense(self, context: Context) -> bool:
        return set(self._row(context)) == {"full"}

    @property
    def _levels(self) -> tuple[float, ...]:
        phases = len(self.table)
        return tuple(1 - i / phases for i in range(1, phases)) if self.bounds is None else self.bounds

    def _row(self, context: Context) -> tuple[str, ...]:
        """The modes of a layer's heads. A context with one layer or one head says nothing about the model's numbers."""
        layers = context.layers if context.layers > 1 else max(self.layers, context.layer + 1)
        self.check_model(layers, context.heads if context.heads > 1 else None)
        return self.table[self.phase(context.sigma)][context.layer]


def _check_table(table: Any) -> None:
    layers = {len(phase) if isinstance(phase, tuple) else 0 for phase in table} if isinstance(table, tuple) else {0}
    rows = [row for phase in table for row in phase] if 0 not in layers else []
    heads = {len(row) if isinstance(row, tuple) else 0 for row in rows}
    if len(layers) != 1 or len(heads) != 1 or 0 in heads:
        raise ValueError(
            "table must be mode[phase][layer][head] in tuples, with as many layers in each phase and as many heads in "
            f"each layer; got {sorted(layers)} layers and {sorted(heads)} heads"
        )
    unknown = sorted({repr(mode) for row in rows for mode in row if mode not in get_args(Mode)})
    if unknown:
        raise ValueError(f"unknown mode {', '.join(unknown)} in the table; choose from {', '.join(get_args(Mode))}")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


@lru_cache(maxsize=128)
def _plan(pattern: HeadModes, grid: VideoGrid) -> tuple[HeadGroup, ...]:
    """The groups of a pattern whose table has one layer: layers and phases with the same modes share them."""
    row = pattern.table[0][0]
    maps = {mode: _map(pattern, grid, mode) for mode in dict.fromkeys(row)}
    groups: dict[tuple[bool, Tile], list[int]] = {}
    for head, mode in enumerate(row):
        groups.setdefault((mode == "skip-mean", maps[mode].query_tile), []).append(head)
    return tuple(
        HeadGroup(tuple(heads), _stack([maps[row[head]] for head in heads]), "mean" if mean else "zero")
        for (mean, _), heads in groups.items()
    )


def _map(pattern: HeadModes, grid: VideoGrid, mode: str) -> BlockMap:
    """The map of one head."""
    long, shaped = mode == "temporal", pattern.long_tile if mode == "temporal" else pattern.tile
    decisive = _reach(pattern, "temporal" if long else "diagonal")
    tile = shaped or cheapest_tile(grid, lambda tile: math.prod(int(w.sum()) for w in _windows(grid, tile, decisive)))
    windows = (window.byte() for window in _windows(grid, tile, _reach(pattern, mode)))
    kept = torch.einsum("ad,be,cf->abcdef", *windows).bool()
    if mode == "stripe":
        present = [frame % grid.frames for frame in pattern.stripe if -grid.frames <= frame < grid.frames]
        kept[:, :, :, [frame // tile[0] for frame in present]] = True
    return BlockMap.from_dense(kept.reshape(math.prod(grid.tiles(tile)), -1), grid, tile)


def _reach(pattern: HeadModes, mode: str) -> tuple[float, float, float]:
    """How far a mode sees along each axis, in tokens: 0 means its own tile, less means no tile."""
    if mode == "full":
        return math.inf, math.inf, math.inf
    if mode == "diagonal":
        return pattern.window, math.inf, math.inf
    if mode == "temporal":
        return math.inf, pattern.radius, pattern.radius
    return (0, 0, 0) if mode == "stripe" else (-1, -1, -1)


def _windows(grid: VideoGrid, tile: Tile, reach: tuple[float, float, float]) -> list[torch.Tensor]:
    """For each axis, which tiles have tokens within reach of one another: bool [tiles, tiles]."""
    return [tile_gaps(*axis) <= limit for *axis, limit in zip(grid.tiles(tile), tile, reach, strict=True)]


def _stack(maps: list[BlockMap]) -> BlockMap:
    """Join maps of one head each into one map; maps that are all the same object stay a map of one head."""
    if all(block_map is maps[0] for block_map in maps):
        return maps[0]
    width = max(block_map.indices.shape[-1] for block_map in maps)
    indices = [torch.nn.functional.pad(m.indices, (0, width - m.indices.shape[-1])) for m in maps]
    return replace(maps[0], counts=torch.cat([m.counts for m in maps], dim=1), indices=torch.cat(indices, dim=1))
