"""For videos longer than those of training: each query attends within a clip of that length."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, cast

import torch

from vidsparse.block_map import BlockMap, Plan, head_groups
from vidsparse.grid import VideoGrid
from vidsparse.patterns.base import Context, Pattern, patterns_in
from vidsparse.patterns.dense import Dense
from vidsparse.patterns.fields import check_pattern, check_whole
from vidsparse.patterns.radial_raster import RadialRaster
from vidsparse.patterns.spatial_temporal import SpatialTemporal

LEAST = 3  # tiles along a clip where they are chosen here: the query's own, and one on each side
# RadialRaster sees the tokens as a line, and the tiles of SpatialTemporal are as long as the clip.
REFUSED = RadialRaster, SpatialTemporal


@dataclass(frozen=True)
class SlidingClip(Pattern):
    """Gives each query the map that `pattern` has in a clip as long as the model's training, with the query in it.

        SlidingClip(Radial(density=0.3), frames=21)  # 161 frames with Wan 2.1, which was trained on 81

    The clip of a query is the `frames` latent frames around its own, moved inward at both ends of the video, and the
    query sees of it what it would see in a video of that length. So no query meets a distance in time that training
    lacked, the model's positions stay as they are, and the cost grows with the length of the video instead of its
    square. Frames further apart agree through the clips between them, from layer to layer.

    No paper has it in this form: FreeNoise (Qiu et al., arXiv 2310.15169) averages the outputs of overlapping windows
    in temporal attention and reorders noise; Neighborhood Attention (see `SlidingTile`) has the rule for the border.

    A video of at most `frames` latent frames has the map of `pattern`. Where `pattern` is dense, by itself or by a
    schedule, a query sees its whole clip; a schedule around this pattern has dense steps that see the whole video.
    For a pattern that reads content, queries and keys are copied for each position of the clip: 33 latent frames with
    clips of 9 take 7 times the memory of both while a layer chooses.

    Attributes:
        pattern: for a clip; not `RadialRaster` or `SpatialTemporal`, whose tiles do not fit one. `Reuse` belongs around
            this pattern, not inside, where it would spread its map anew in each step.
        frames: latent frames of training, by default those of 81 video frames at a stride of 4; rounded down to whole
            tiles, at least one.
    """

    pattern: Pattern
    frames: int = 21

    named_defaults: ClassVar[dict[str, Any]] = {"pattern": "dense"}

    def __post_init__(self) -> None:
        check_pattern(self, "pattern")
        if refused := [type(inner).__name__ for inner in patterns_in(self.pattern) if isinstance(inner, REFUSED)]:
            raise ValueError(
                f"pattern holds a {refused[0]}, whose tiles do not fit a clip; give it Radial or TopBlocks"
            )
        check_whole(self, "frames", least=1)

    def plan(self, grid: VideoGrid, context: Context | None = None) -> Plan:
        context = Context() if context is None else context
        pattern = self.at(context).pattern
        if grid.frames <= self.frames:
            return pattern.plan(grid, context)
        pattern, clips = _clips(pattern, self.frames, grid, _place(context))
        return clips.joined(pattern.plan(clips.grid, context))

    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> Plan:
        pattern = self.at(context).pattern
        if not pattern.reads_content:
            return super().select(query, key, grid, context)
        if context.key_grid is not None:
            raise NotImplementedError(
                f"SlidingClip cannot choose among kept frames with {pattern!r}; take one of shapes"
            )
        if grid.frames <= self.frames:
            return pattern.select(query, key, grid, context)
        pattern, clips = _clips(pattern, self.frames, grid, _place(context))
        # All clips are one batch, so that a pattern whose heads choose a kind of map choose one for the whole video.
        valid = context.extra_valid
        valid = None if valid is None else valid.repeat_interleave(clips.count)
        context = replace(context, value=None, extra_valid=valid)
        return clips.joined(pattern.select(clips.cut(query), clips.cut(key), clips.grid, context))

    @property
    def reads_content(self) -> bool:
        return self.pattern.reads_content

    def check_model(self, layers: int, heads: int | None) -> None:
        self.pattern.check_model(layers, heads)

    def check_grid(self, grid: VideoGrid) -> None:
        self.pattern.check_grid(replace(grid, frames=min(grid.frames, self.frames)))

    def at(self, context: Context) -> SlidingClip:
        pattern = self.pattern.at(context)
        if self.pattern.is_dense(context):
            pattern = Dense(getattr(pattern, "tile", None))
        return replace(self, pattern=pattern)

    def is_dense(self, context: Context) -> bool:
        is_long = context.grid is not None and context.grid.frames > self.frames
        return not is_long and self.pattern.is_dense(context)


@dataclass(frozen=True)
class _Clips:
    """The clips of a video: where they begin, and how their maps become one.

    Attributes:
        video: the tokens of the whole video. grid: those of a clip, whose frames are whole units.
        unit: latent frames by which clips move, a multiple of the tiles' frames.
    """

    video: VideoGrid
    grid: VideoGrid
    unit: int

    @property
    def units(self) -> int:
        """Units of the video; the last one may be ragged."""
        return math.ceil(self.video.frames / self.unit)

    @property
    def length(self) -> int:
        """Units of a clip."""
        return self.grid.frames // self.unit

    @property
    def count(self) -> int:
        """Positions of the clip."""
        return self.units - self.length + 1

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        """The clips of [batch, tokens, ...] as [batch * clips, tokens of a clip, ...]."""
        return x[:, _tokens(self, x.device)].flatten(0, 1)

    def joined(self, plan: Plan) -> Plan:
        """The plan of the video from that of a clip, or from those of all clips in its batch."""
        if isinstance(plan, BlockMap):
            return self._once(plan)
        return tuple(group._replace(block_map=self._once(group.block_map)) for group in plan)

    def _once(self, clip: BlockMap) -> BlockMap:
        """`_spread`, once for the same map object, which layers share."""
        return clip.derived(("clips", self), lambda: self._spread(clip))

    def _spread(self, clip: BlockMap) -> BlockMap:
        """The map of the video from that of a clip, or from those of all clips in its batch."""
        if clip.query_grid != self.grid or clip.key_grid != self.grid:
            raise ValueError(
                f"SlidingClip needs maps of {self.grid}, but its pattern gives one of {clip.query_grid}; take a "
                "pattern whose tiles have frames, rows and columns"
            )
        if uneven := [tile for tile in (clip.query_tile, clip.key_tile) if self.unit % tile[0]]:
            raise ValueError(
                f"SlidingClip moves clips of {self.grid.frames} latent frames by {self.unit}, but a tile of its "
                f"pattern is {uneven[0]}, longer in time; take another pattern, or give it a tile"
            )
        device, n, units = clip.counts.device, self.length, self.units
        sides = clip.query_tile, clip.key_tile
        rows, columns = (self.unit // tile[0] * math.prod(self.grid.tiles(tile)[1:]) for tile in sides)
        kept = clip.to_dense()
        kept = kept.unflatten(0, (-1, self.count if len(kept) > 1 else 1))
        kept = kept.unflatten(4, (n, columns)).unflatten(3, (n, rows))  # [B, clips|1, H, n, rows, n, columns]
        kept = torch.nn.functional.pad(kept, (0, 0, 0, 1))  # what lies beyond the clip
        unit = torch.arange(units, device=device)
        start = (unit - n // 2).clamp(min=0, max=units - n)
        column = unit - start[:, None]
        column = torch.where((column >= 0) & (column < n), column, n)
        which = start if kept.shape[1] > 1 else torch.zeros_like(start)
        found = kept.permute(1, 3, 5, 0, 2, 4, 6)[which[:, None], (unit - start)[:, None], column]
        found = found.permute(2, 3, 0, 4, 1, 5).flatten(4, 5).flatten(2, 3)
        tiles = [math.prod(self.video.tiles(tile)) for tile in sides]
        return BlockMap.from_dense(found[..., : tiles[0], : tiles[1]], self.video, *sides)


@lru_cache(maxsize=256)
def _clips(pattern: Pattern, frames: int, grid: VideoGrid, place: Context) -> tuple[Pattern, _Clips]:
    """The clips of `frames` latent frames, rounded to whole tiles of the pattern; and the pattern, with tiles to suit.

    Raises:
        ValueError: tiles that leave no overlap between clips.
    """
    for _ in range(8):  # a tile that suits one length need not suit a shorter one; two tries are the usual
        clip = replace(grid, frames=frames)
        maps = [group.block_map for group in head_groups(pattern.plan(clip, place), place.heads)]
        tiles = {tile for found in maps for tile in (found.query_tile, found.key_tile)}
        unit = math.lcm(*(tile[0] for tile in tiles))
        if frames < LEAST * unit and getattr(pattern, "tile", ()) is None:
            flat = replace(grid, frames=1).best_tile(math.prod(max(tiles)))
            pattern = cast("Pattern", replace(cast("Any", pattern), tile=flat))
        elif frames % unit:
            frames = max(unit, frames // unit * unit)
        elif frames == unit < grid.frames and unit > 1:
            break
        else:
            return pattern, _Clips(grid, clip, unit)
    raise ValueError(
        f"clips of {frames} latent frames do not overlap where the tiles of {pattern!r} have {unit} frames; give it a "
        "tile with fewer, such as (1, 8, 16)"
    )


def _place(context: Context) -> Context:
    """Where in the model a call is: what may decide the tiles of a pattern."""
    return Context(context.layer, context.layers, heads=context.heads, transformer=context.transformer)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _tokens(clips: _Clips, device: torch.device) -> torch.Tensor:
    """The tokens of each clip: int64 [clips, tokens of a clip]; the last frame stands for those beyond the video."""
    video, grid = clips.video, clips.grid
    frame = torch.arange(clips.count)[:, None] * clips.unit + torch.arange(grid.frames)
    frame = frame.clamp(max=video.frames - 1)
    size = video.height * video.width
    inside = (video.prefix + frame[..., None] * size + torch.arange(size)).flatten(1)
    before, after = torch.arange(video.prefix), video.prefix + video.video_tokens + torch.arange(video.suffix)
    parts = before.expand(clips.count, -1), inside, after.expand(clips.count, -1)
    return torch.cat(parts, dim=1).to(device)
