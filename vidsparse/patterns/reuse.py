"""A map that is chosen once and kept for later denoising steps, until it is old or catches too little."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from vidsparse.block_map import BlockMap, Plan, head_groups
from vidsparse.grid import VideoGrid
from vidsparse.patterns.base import Context, Pattern
from vidsparse.patterns.exact_blocks import ExactBlocks, TiledKeys
from vidsparse.patterns.schedule import StepSchedule
from vidsparse_kernels.layout import tile_of_token


@dataclass(frozen=True)
class Reuse(Pattern):
    """Asks `pattern` for a map in the first sparse step of a video, and answers with that map in later ones.

    Each layer, branch of classifier-free guidance and expert has its own map, since each has its own `context.memory`.
    A call with another batch size, number of heads, grid or device, or of an earlier step, chooses anew.

    Paper: Wang et al., SparseD, arXiv 2509.24014. Code: INV-WZQ/SparseD at 52155b4. Differences: any pattern can be
    kept (one of shapes alone gains nothing and costs memory); maps can be chosen anew on the way, as attention in video
    drifts; lists of 16-bit indices are kept, not a bool for each pair. `published` is the paper's composition.

    What is kept stands in the memory as a `KeptMap`, under the pattern itself: `memory[pattern].nbytes` is its size.

    Attributes:
        pattern: what chooses the map.
        refresh_every: after how many steps the map is chosen anew; by default never.
        min_recall: choose anew when `sampled_recall` of the kept map falls under this; by default never. A map that
            does not reach it when it is new is chosen in every step. Checking waits for the device.
    """

    pattern: Pattern
    refresh_every: int | None = None
    min_recall: float | None = None

    named_defaults: ClassVar = {"pattern": "exact-blocks"}

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, Pattern):
            raise TypeError(f"pattern={self.pattern!r} must be a pattern, such as TopBlocks(density=0.2)")
        if self.refresh_every is not None and (not isinstance(self.refresh_every, int) or self.refresh_every < 1):
            raise ValueError(
                f"refresh_every={self.refresh_every} must be a whole number of at least 1 step, or None for never"
            )
        if self.min_recall is not None and not 0 < self.min_recall <= 1:
            raise ValueError(f"min_recall={self.min_recall} must be in (0, 1], or None for no check")

    @classmethod
    def published(cls, *, steps: int = 50, skip: float = 0.2, ratio: float = 0.3) -> StepSchedule:
        """SparseD: dense first steps, then for each query tile the share `ratio` with most attention, kept to the end.

        The dense steps are int(steps * skip) + 2 as in the code, 12 of 50; the paper has steps * skip of them. Both
        choose the map in the last dense step, this in the first sparse one: dense steps are the model's own.

        Args:
            steps: how many steps the run will have.
            skip: the fraction of them that is dense, to which the rule adds up to two steps.
            ratio: see `ExactBlocks`.
        """
        if steps < 1 or not 0 <= skip <= 1:
            raise ValueError(f"steps={steps} must be at least 1 and skip={skip} in [0, 1]: the share of dense steps")
        return StepSchedule(cls(ExactBlocks(ratio)), dense_steps=int(steps * skip) + 2)

    def plan(self, grid: VideoGrid, context: Context | None = None) -> Plan:
        return self.pattern.plan(grid, context)

    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> Plan:
        call = (query.shape[0], query.shape[2], grid, query.device)
        kept: KeptMap | None = context.memory.get(self)
        if kept is not None and kept.call == call and 0 <= context.step - kept.step < (self.refresh_every or math.inf):
            plan = kept.plan()
            if self.min_recall is None or float(sampled_recall(query, key, plan)) >= self.min_recall:
                return plan
        plan = self.pattern.select(query, key, grid, context)
        context.memory[self] = KeptMap(context.step, call, plan)
        return plan

    def check_model(self, layers: int, heads: int | None) -> None:
        self.pattern.check_model(layers, heads)

    def check_grid(self, grid: VideoGrid) -> None:
        self.pattern.check_grid(grid)

    def is_dense(self, context: Context) -> bool:
        return self.pattern.is_dense(context)


class KeptMap:
    """A plan in memory, its lists as wide as the longest row and of int16 where the tiles' numbers fit, else int32.

    Attributes:
        step: when it was chosen.
        call: batch size, heads, grid and device that it was chosen for.
        packed: the plan as it is kept.
    """

    def __init__(self, step: int, call: tuple[int, int, VideoGrid, torch.device], plan: Plan):
        self.step, self.call = step, call
        self._unpacked = weakref.WeakKeyDictionary[BlockMap, weakref.ref[BlockMap]]()
        self.packed = _each_map(plan, self._pack)

    def plan(self) -> Plan:
        """The plan with lists of int32: the very maps that were answered before, while somebody holds them.

        What is made from a map, such as FlexAttention's mask, is kept for that object.
        """
        return _each_map(self.packed, self._unpack)

    @property
    def nbytes(self) -> int:
        maps = [group.block_map for group in head_groups(self.packed, self.call[1])]
        return sum(x.nbytes for block_map in maps for x in (block_map.counts, block_map.indices))

    def _pack(self, block_map: BlockMap) -> BlockMap:
        counts, longest = block_map.counts, max(1, int(block_map.counts.max()))
        dtype = torch.int16 if block_map.key_tiles <= torch.iinfo(torch.int16).max else torch.int32
        indices = block_map.indices[..., :longest].to(dtype).contiguous()
        packed = replace(block_map, counts=counts.to(dtype), indices=indices)
        self._unpacked[packed] = weakref.ref(block_map)
        return packed

    def _unpack(self, packed: BlockMap) -> BlockMap:
        reference = self._unpacked.get(packed)  # a copy of this has other maps
        block_map = None if reference is None else reference()
        if block_map is None:
            block_map = replace(packed, counts=packed.counts.int(), indices=packed.indices.int())
            self._unpacked[packed] = weakref.ref(block_map)
        return block_map


def sampled_recall(query: torch.Tensor, key: torch.Tensor, plan: Plan, samples: int = 64) -> torch.Tensor:
    """How much of the attention to video tokens a plan catches: a mean over samples, heads and some query tokens.

    Args:
        query, key: [B, tokens, H, head_dim].
        samples: how many query tokens are looked at, always the same for the same grid.

    Returns:
        float32 scalar in [0, 1] on the device of the query.
    """
    caught = []
    for group in head_groups(plan, query.shape[2]):
        block_map = group.block_map.to(query.device)
        # Multiples of the golden ratio fill the sequence evenly, and no column of the frame is preferred.
        tokens = (torch.arange(samples, dtype=torch.float64) * 0.6180339887498949).frac() * block_map.grid.video_tokens
        tokens = tokens.long()
        rows = tile_of_token(block_map.view, block_map.query_tile)[tokens].to(query.device)
        tokens = (tokens + block_map.grid.prefix).to(query.device)
        counts, indices = block_map.counts[:, :, rows], block_map.indices[:, :, rows]
        kept = replace(block_map, counts=counts, indices=indices).to_dense()
        kept = kept.expand(-1, len(group.heads), -1, -1)
        for i, head in enumerate(group.heads):
            shares = TiledKeys.of(key[:, :, head], block_map.grid, block_map.key_tile).shares(query[:, tokens, head])
            caught.append((shares * kept[:, i]).sum(dim=-1).mean())
    return torch.stack(caught).mean()


def _each_map(plan: Plan, change: Callable[[BlockMap], BlockMap]) -> Plan:
    if isinstance(plan, BlockMap):
        return change(plan)
    return tuple(group._replace(block_map=change(group.block_map)) for group in plan)
