"""Which GPU computes which heads, so that all finish at about the same time."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vidsparse.block_map import head_groups
from vidsparse.grid import VideoGrid
from vidsparse.patterns import Context, Pattern


def balanced(costs: Sequence[float], ranks: int) -> tuple[tuple[int, ...], ...]:
    """The heads of each rank, in rising order: the costliest head first, each to the rank that has least to do.

    All ranks get as many heads, or the first ranks one more than the others. Heads that all cost the same stay in
    blocks, as diffusers divides them.

    Args:
        costs: of each head, in any unit.
        ranks: how many there are.
    """
    sizes = [len(costs) // ranks + (rank < len(costs) % ranks) for rank in range(ranks)]
    if len(set(costs)) <= 1:
        starts = [sum(sizes[:rank]) for rank in range(ranks)]
        return tuple(tuple(range(start, start + size)) for start, size in zip(starts, sizes, strict=True))
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for head in sorted(range(len(costs)), key=lambda head: -costs[head]):
        open_ranks = [rank for rank in range(ranks) if len(shares[rank]) < sizes[rank]]
        shares[min(open_ranks, key=lambda rank: sum(costs[other] for other in shares[rank]))].append(head)
    return tuple(tuple(sorted(share)) for share in shares)


def planned_costs(pattern: Pattern, grid: VideoGrid, context: Context) -> list[float] | None:
    """The token density of each head by a pattern of shapes alone; None where the content decides.

    Args:
        context: of the call, with all heads of the layer.
    """
    if pattern.reads_content:
        return None
    costs = [0.0] * context.heads
    for group in head_groups(pattern.plan(grid, context), context.heads):
        densities = group.block_map.head_densities[1]
        for head, cost in zip(group.heads, densities.expand(len(group.heads)).tolist(), strict=True):
            costs[head] = cost
    return costs


class MeasuredCosts:
    """The costs of all heads on their way to the CPU. They are read at the next step, so that no GPU waits for them.

    Args:
        costs: float [heads].
    """

    def __init__(self, costs: torch.Tensor):
        self._costs, self._arrived = costs.to("cpu", non_blocking=True), None
        if costs.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(costs.device))

    def read(self) -> list[float]:
        if self._arrived is not None:
            self._arrived.synchronize()
        found: list[float] = self._costs.tolist()
        return found
