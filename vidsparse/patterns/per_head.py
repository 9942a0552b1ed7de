"""A pattern for each head of a layer, in one launch for each shape of tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn, cast

import torch

from vidsparse.block_map import HeadGroup, Plan, head_groups, head_indices
from vidsparse.grid import Tile, VideoGrid
from vidsparse.patterns.base import Context, Pattern
from vidsparse.patterns.choice import counted
from vidsparse.patterns.dense import Dense
from vidsparse.patterns.fields import check_indices, check_patterns
from vidsparse.patterns.last_frames import of_last_frames
from vidsparse.patterns.schedule import bare

Groups = tuple[HeadGroup, ...]


@dataclass(frozen=True, repr=False)
class PerHead(Pattern):
    """Gives each head of a layer a pattern of its own.

        PerHead((Dense(), SlidingTile(), Radial(density=0.1)), heads=(0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2))

    Each pattern sees its own heads, and no others. Heads whose maps have tiles of one shape share a map, and so one
    launch of the kernel. A head whose pattern is dense sees all tiles; where all heads are dense, the layer runs the
    model's own attention.

    No paper; see `PerLayer`.

    Attributes:
        patterns: to choose from. A `StepBudget` is refused, as by `PerLayer`.
        heads: for each head of the layer, the index of its pattern in `patterns`.
    """

    patterns: tuple[Pattern, ...]
    heads: tuple[int, ...]

    def __post_init__(self) -> None:
        check_patterns(self, "patterns")
        check_indices(self, "heads", "patterns")

    def __repr__(self) -> str:
        return f"PerHead({counted(self.patterns, self.heads)})"

    def plan(self, grid: VideoGrid, context: Context | None = None) -> Groups:
        context = replace(Context() if context is None else context, heads=len(self.heads), local_heads=None)
        parts = [
            (heads, None if pattern.is_dense(own) else pattern.plan(grid, own))
            for heads, pattern, own in self._parts(context)
        ]
        return _merged(_grouped(parts, grid, self._dense_tile(grid, context)))

    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> Plan:
        if not self.reads_content:
            return super().select(query, key, grid, context)
        parts: list[tuple[tuple[int, ...], Plan | None]] = []
        for heads, pattern, own in self._parts(context):
            plan = None
            if not pattern.is_dense(own):
                index = head_indices(heads, query.device)
                value = None if context.value is None else context.value.index_select(2, index)
                own = replace(own, value=value)
                plan = pattern.select(query.index_select(2, index), key.index_select(2, index), grid, own)
            parts.append((heads, plan))
        groups = _grouped(parts, grid, self._dense_tile(grid, context), context.key_grid)
        return _merge(groups)  # not cached: these maps are of this call

    @property
    def reads_content(self) -> bool:
        return any(pattern.reads_content for pattern in self.patterns)

    def check_model(self, layers: int, heads: int | None) -> None:
        if heads not in (None, len(self.heads)):
            raise ValueError(
                f"heads names patterns for {len(self.heads)} heads, but a layer has {heads}; give one for each"
            )
        for index, pattern in enumerate(self.patterns):
            if count := self.heads.count(index):
                pattern.check_model(layers, count)

    def check_grid(self, grid: VideoGrid) -> None:
        for pattern in self.patterns:
            pattern.check_grid(grid)

    def is_dense(self, context: Context) -> bool:
        return all(self.patterns[index].is_dense(context) for index in set(self.heads))

    def _dense_tile(self, grid: VideoGrid, context: Context) -> Tile | None:
        """The tile of dense heads: that of other heads, to share their launch; the same on all GPUs."""
        own = replace(context, heads=1, local_heads=None, memory={})
        for pattern in (self.patterns[index] for index in sorted(set(self.heads))):
            if (tile := getattr(bare(pattern), "tile", None)) is not None:
                return cast("Tile", tile)
            if not pattern.reads_content and not pattern.is_dense(own):
                return head_groups(pattern.plan(grid, own), 1)[0].block_map.query_tile
        return None

    def _parts(self, context: Context) -> Iterator[tuple[tuple[int, ...], Pattern, Context]]:
        """For each pattern with heads here: their places among the heads of the call, and the context it sees."""
        here = tuple(range(len(self.heads))) if context.local_heads is None else context.local_heads
        for index, pattern in enumerate(self.patterns):
            places = tuple(place for place, head in enumerate(here) if self.heads[head] == index)
            if places:
                own = [head for head, chosen in enumerate(self.heads) if chosen == index]
                shared = context.local_heads is not None
                yield (
                    places,
                    pattern,
                    replace(
                        context,
                        heads=len(own),
                        local_heads=tuple(own.index(here[place]) for place in places) if shared else None,
                        gather=_refused if shared else context.gather,
                        memory=context.memory.setdefault((self, index), Memory()),
                    ),
                )


class Memory(dict[Any, Any]):
    """What one of the patterns keeps from step to step."""

    @property
    def nbytes(self) -> int:
        """Bytes of all values that say their `nbytes`."""
        return sum(getattr(value, "nbytes", 0) for value in self.values())


def _refused(x: torch.Tensor) -> NoReturn:
    # A GPU without a head of this pattern would not take part, and the others would wait for it.
    raise NotImplementedError(
        "inside PerHead, a pattern whose heads choose together cannot run where several GPUs share a video; set it to "
        "choose for each head, or run on one GPU"
    )


def _grouped(
    parts: list[tuple[tuple[int, ...], Plan | None]],
    grid: VideoGrid,
    dense_tile: Tile | None,
    key_grid: VideoGrid | None = None,
) -> Groups:
    """The groups of all parts, their heads numbered as in the call. None is a dense part."""
    groups = [
        group._replace(heads=tuple(heads[head] for head in group.heads))
        for heads, plan in parts
        if plan is not None
        for group in head_groups(plan, len(heads))
    ]
    for heads in (heads for heads, plan in parts if plan is None):
        whole = Dense(dense_tile).plan(key_grid or grid)
        plan = whole if key_grid is None else of_last_frames(whole, grid, key_grid)
        groups += [group._replace(heads=heads) for group in head_groups(plan, len(heads))]
    return tuple(groups)


def _merge(groups: Groups) -> Groups:
    """The same maps, those with tiles of one shape as one."""
    kinds: dict[Any, list[HeadGroup]] = {}
    for group in groups:
        kinds.setdefault((group.block_map.query_tile, group.block_map.key_tile, group.empty), []).append(group)
    return tuple(found[0] if len(found) == 1 else _joined(found) for found in kinds.values())


@torch.inference_mode(False)  # a training may use it later
def _merged(groups: Groups) -> Groups:
    """The same, once for the same map objects: layers share the maps of shapes alone."""
    key = "merged", *((id(group.block_map), group.heads, group.empty) for group in groups)
    # Kept with the groups, so that no other map gets one of the identities while they are a key.
    _, merged = groups[0].block_map.derived(key, lambda: (groups, _merge(groups)))
    return merged


def _joined(groups: list[HeadGroup]) -> HeadGroup:
    """One group of the heads of several, in rising order."""
    maps = [group.block_map for group in groups]
    device = next((m.counts.device for m in maps if m.counts.device.type != "cpu"), maps[0].counts.device)
    batch, width = (max(m.indices.shape[axis] for m in maps) for axis in (0, -1))
    counts, indices = [], []
    for group in groups:
        shape = batch, len(group.heads), -1
        listed = torch.nn.functional.pad(group.block_map.indices, (0, width - group.block_map.indices.shape[-1]))
        counts.append(group.block_map.counts.to(device).expand(*shape))
        indices.append(listed.to(device).expand(*shape, -1))
    heads = [head for group in groups for head in group.heads]
    order = head_indices(tuple(sorted(range(len(heads)), key=heads.__getitem__)), device)
    joined = replace(
        maps[0],
        counts=torch.cat(counts, dim=1).index_select(1, order),
        indices=torch.cat(indices, dim=1).index_select(1, order),
    )
    return HeadGroup(tuple(sorted(heads)), joined, groups[0].empty)
