"""A map that is chosen once and reused in later denoising steps, until it is too old or misses too much attention."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch

from vidsparse.block_map import BlockMap, Plan, head_groups
from vidsparse.grid import VideoGrid
from vidsparse.patterns.base import Context, Pattern
from vidsparse.patterns.exact_blocks import ExactBlocks, TiledKeys
from vidsparse.patterns.fields import check_share, check_whole
from vidsparse.patterns.schedule import StepSchedule
from vidsparse_kernels.layout import tile_of_token

Call = tuple[int, int, VideoGrid, VideoGrid | None, torch.device, tuple[int, ...] | None]


@dataclass(frozen=True)
class Reuse(Pattern):
    """Asks `pattern` for a map in the first sparse step of a video, and reuses that map in later steps.

    Each layer, branch of classifier-free guidance and expert has its own map, since each has its own `context.memory`.
    A call with another batch size, number of heads, grid or device, or of an earlier step, makes a new choice.

    Paper: Wang et al., SparseD, arXiv 2509.24014. Code: INV-WZQ/SparseD at 52155b4. Differences: any pattern can be
    reused (one of shapes alone gains nothing and costs memory); maps can be refreshed, as attention in video drifts;
    the map is stored as lists of 16-bit indices, not as a bool for each pair. `published` is the paper's composition.

    The memory holds the map as a `KeptMap` under the pattern itself: `memory[pattern].nbytes` is its size.

    Attributes:
        pattern: the pattern that chooses the map.
        refresh_every: steps after which a new map is chosen; by default never.
        min_recall: choose a new map when `sampled_recall` of the old one falls below this; by default never. A map that
            is below it when it is new is replaced in every step. The check synchronises the device.
    """

    pattern: Pattern
    refresh_every: int | None = None
    min_recall: float | None = None

    named_defaults: ClassVar[dict[str, Any]] = {"pattern": "exact-blocks"}

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, Pattern):
            raise TypeError(f"pattern={self.pattern!r} must be a pattern, such as TopBlocks(density=0.2)")
        check_whole(self, "refresh_every", least=1, optional=True)
        check_share(self, "min_recall", optional=True)

    @classmethod
    def published(cls, *, steps: int = 50, skip: float = 0.2, ratio: float = 0.3) -> StepSchedule:
        """SparseD: dense first steps, then for each query tile the fraction `ratio` with most attention, to the end.

        The dense steps are int(steps * skip) + 2 as in the code, 12 of 50; the paper has steps * skip of them. Both
        choose the map in the last dense step; here it is chosen in the first sparse one, because dense steps run the
        model's own attention.

        Args:
            steps: how many steps the run will have.
            skip: the fraction of them that is dense, to which the rule adds up to two steps.
            ratio: see `ExactBlocks`.
        """
        if steps < 1 or not 0 <= skip <= 1:
            raise ValueError(f"steps={steps} must be at least 1 and skip={skip} in [0, 1]: the fraction of dense steps")
        return StepSchedule(cls(ExactBlocks(ratio)), dense_steps=int(steps * skip) + 2)

    def plan(self, grid: VideoGrid, context: Context | None = None) -> Plan:
        return self.pattern.plan(grid, context)

    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> Plan:
        call = (query.shape[0], query.shape[2], grid, context.key_grid, query.device, context.local_heads)
        kept: KeptMap | None = context.memory.get(self)
        if kept is not None and kept.call == call and 0 <= context.step - kept.step < (self.refresh_every or math.inf):
            plan = kept.plan()
            if self.min_recall is None:
                return plan
            recalls = context.gather(head_recalls(query, key, plan)[None])  # so that all GPUs decide alike
            if float(recalls.mean()) >= self.min_recall:
                return plan
        plan = self.pattern.select(query, key, grid, context)
        context.memory[self] = KeptMap(context.step, call, plan)
        return plan

    @property
    def reads_content(self) -> bool:
        return self.pattern.reads_content

    def check_model(self, layers: int, heads: int | None) -> None:
        self.pattern.check_model(layers, heads)

    def check_grid(self, grid: VideoGrid) -> None:
        self.pattern.check_grid(grid)

    def is_dense(self, context: Context) -> bool:
        return self.pattern.is_dense(context)

    def skips(self, context: Context) -> bool:
        return self.pattern.skips(context)


class KeptMap:
    """A plan in memory: its lists are as wide as the longest row, and int16 if the tiles' numbers fit, else int32.

    Attributes:
        step: the step that chose it.
        call: batch size, number of heads, grid, key grid, device and local heads of that step.
        packed: the plan as it is stored.
    """

    def __init__(self, step: int, call: Call, plan: Plan):
        self.step, self.call = step, call
        self.packed = _each_map(plan, self._pack)

    def plan(self) -> Plan:
        """The plan with lists of int32: the same map objects as before, as long as they are referenced elsewhere.

        Data derived from a map, such as FlexAttention's mask, is cached with that object.
        """
        return _each_map(self.packed, self._unpack)

    @property
    def nbytes(self) -> int:
        """Bytes of the stored lists."""
        maps = [group.block_map for group in head_groups(self.packed, self.call[1])]
        return sum(x.nbytes for block_map in maps for x in (block_map.counts, block_map.indices))

    def _pack(self, block_map: BlockMap) -> BlockMap:
        counts, longest = block_map.counts, max(1, int(block_map.counts.max()))
        dtype = torch.int16 if block_map.key_tiles <= torch.iinfo(torch.int16).max else torch.int32
        indices = block_map.indices[..., :longest].to(dtype).contiguous()
        packed = replace(block_map, counts=counts.to(dtype), indices=indices)
        packed.derived("unpacked", lambda: [weakref.ref(block_map)])
        return packed

    def _unpack(self, packed: BlockMap) -> BlockMap:
        known = packed.derived("unpacked", list[weakref.ref[BlockMap]])  # empty in a copy
        block_map = known[0]() if known else None
        if block_map is None:
            block_map = replace(packed, counts=packed.counts.int(), indices=packed.indices.int())
            known[:] = [weakref.ref(block_map)]
        return block_map


def sampled_recall(query: torch.Tensor, key: torch.Tensor, plan: Plan, samples: int = 64) -> torch.Tensor:
    """The fraction of the attention to video tokens that a plan keeps: the mean over batch, heads and sampled queries.

    Returns:
        float32 scalar in [0, 1] on the device of the query.
    """
    return head_recalls(query, key, plan, samples).mean()


def head_recalls(query: torch.Tensor, key: torch.Tensor, plan: Plan, samples: int = 64) -> torch.Tensor:
    """`sampled_recall` of each head.

    Args:
        query, key: [B, tokens, H, head_dim].
        plan: the plan to measure.
        samples: how many query tokens are sampled, always the same ones for a grid.

    Returns:
        float32 [H] in [0, 1] on the device of the query.
    """
    caught: dict[int, torch.Tensor] = {}
    for group in head_groups(plan, query.shape[2]):
        block_map = group.block_map.to(query.device)
        # Multiples of the golden ratio fill the sequence evenly, and prefer no column of the frame.
        grid, keys = cast("VideoGrid", block_map.query_grid), cast("VideoGrid", block_map.key_grid)
        tokens = (torch.arange(samples, dtype=torch.float64) * 0.6180339887498949).frac() * grid.video_tokens
        tokens = tokens.long()
        rows = tile_of_token(grid.view, block_map.query_tile)[tokens].to(query.device)
        tokens = (tokens + grid.prefix).to(query.device)
        kept = block_map.to_dense()[:, :, rows]
        kept = kept.expand(-1, len(group.heads), -1, -1)
        for i, head in enumerate(group.heads):
            shares = TiledKeys.of(key[:, :, head], keys, block_map.key_tile).shares(query[:, tokens, head])
            caught[head] = (shares * kept[:, i]).sum(dim=-1).mean()
    return torch.stack([caught[head] for head in sorted(caught)])


def _each_map(plan: Plan, change: Callable[[BlockMap], BlockMap]) -> Plan:
    if isinstance(plan, BlockMap):
        return change(plan)
    return tuple(group._replace(block_map=change(group.block_map)) for group in plan)
