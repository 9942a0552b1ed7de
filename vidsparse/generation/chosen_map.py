"""The block map that a pattern chose in a real step of a real video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from vidsparse.block_map import BlockMap, HeadGroup, Plan, head_groups
from vidsparse.generation.sample import OnStep, sample
from vidsparse.grid import VideoGrid
from vidsparse.patterns import Context, Pattern
from vidsparse.patterns.schedule import bare


class _Chosen(Exception):
    """Ends the sampling once the map is known."""


@dataclass(frozen=True)
class _Watched(Pattern):
    """Runs `pattern`, and ends the sampling with what it chose in one layer and step."""

    pattern: Pattern
    layer: int
    step: int
    found: list[tuple[HeadGroup, ...]] = field(default_factory=list, compare=False, repr=False)

    def plan(self, grid: VideoGrid, context: Context | None = None) -> Plan:
        return self.pattern.plan(grid, context)

    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> Plan:
        chosen = self.pattern.select(query, key, grid, context)
        if (context.layer, context.step) == (self.layer, self.step):
            self.found.append(head_groups(chosen, query.shape[2]))
            raise _Chosen
        return chosen

    def check_model(self, layers: int, heads: int | None) -> None:
        if not 0 <= self.layer < layers:
            raise ValueError(f"layer {self.layer} does not exist: the model has layers 0 to {layers - 1}")
        self.pattern.check_model(layers, heads)

    def check_grid(self, grid: VideoGrid) -> None:
        self.pattern.check_grid(grid)

    def is_dense(self, context: Context) -> bool:
        return self.pattern.is_dense(context)


def chooses_by_content(pattern: Pattern) -> bool:
    """Whether the map depends on queries and keys, so that shapes alone do not tell which tiles are kept."""
    inner = getattr(pattern, "pattern", None)
    if isinstance(inner, Pattern):
        return chooses_by_content(inner)
    return type(pattern).select is not Pattern.select


def chosen_groups(
    pipe: Any,
    pattern: Pattern,
    arguments: Mapping[str, Any],
    *,
    layer: int,
    step: int,
    seed: int = 0,
    on_step: OnStep = lambda done, steps: None,
) -> tuple[HeadGroup, ...]:
    """Sample a video up to one layer of one step, and return the maps that the pattern chose there.

    Steps before run under the pattern as well. Where guidance calls the transformer once for each prompt, the maps are
    those of the first call.

    Args:
        pipe, arguments, seed, on_step: see `vidsparse.generation.sample.sample`.
        pattern: without a schedule.
        layer, step: indices.

    Returns:
        A map for each group of heads, for the first sample of the batch and on the CPU.

    Raises:
        ValueError: a layer or a step that does not exist, or attention that ran dense there.
    """
    watched = _Watched(bare(pattern), layer, step)
    try:
        ended = sample(pipe, watched, {**arguments, "output_type": "latent"}, seed=seed, on_step=on_step)
    except _Chosen:
        return tuple(group._replace(block_map=_of_first_sample(group.block_map)) for group in watched.found[0])
    reasons = "; ".join(ended.report.dense_reasons) or f"step {step} does not exist"
    raise ValueError(f"the pattern chose no map in layer {layer} of step {step}: {reasons}")


def _of_first_sample(found: BlockMap) -> BlockMap:
    lists = (x[:1].cpu() for x in (found.counts, found.indices))
    return BlockMap(found.grid, found.query_tile, found.key_tile, *lists)
