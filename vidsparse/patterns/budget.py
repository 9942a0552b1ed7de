"""One budget for a whole run: which steps are dense, which are sparse, and which are skipped."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from vidsparse.block_map import Plan
from vidsparse.grid import VideoGrid
from vidsparse.patterns.base import Context, Pattern
from vidsparse.patterns.fields import check_share, check_whole, is_number

DENSE, SPARSE, SKIPPED = "dense", "sparse", "skipped"


@dataclass(frozen=True)
class StepBudget(Pattern):
    """Keeps the cost of a run within a budget: sparse steps first, then skipped ones.

    A skipped step runs no block of the transformer: its output is that of the last computed step of the same branch,
    see `vidsparse.runtime.skip`. As few steps are skipped as the budget allows, or `skipped` of them, spread
    evenly. What is then left of the budget makes computed steps dense, first those that serve most skipped ones.

    `StepBudget(...).ways(steps)` shows the plan. Where the number of steps is unknown (a bare transformer), nothing is
    skipped, and all steps but the first `dense_steps` are sparse.

    No paper. Caches that skip steps are many (TeaCache, arXiv 2411.19108; MagCache, arXiv 2506.09045; SeaCache, arXiv
    2602.18993); they decide by content, and know nothing of sparse attention.

    Attributes:
        pattern: the pattern that runs in sparse steps.
        budget: cost of all steps, as a share of the cost of as many dense ones.
        sparse_cost: cost of a sparse step, whole transformer, as a share of a dense one. It depends on the model, the
            size of the video and the density: divide the seconds of denoising that `vidsparse compare` prints.
        skipped: the least share of the steps between the dense ones that is skipped.
        dense_steps, dense_last_steps: how many steps are dense at the start and at the end.
        max_skipped: the most steps that are skipped in a row.
    """

    pattern: Pattern
    budget: float = 0.5
    sparse_cost: float = 0.7
    skipped: float = 0.0
    dense_steps: int = 2
    dense_last_steps: int = 1
    max_skipped: int = 2

    may_skip: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, Pattern):
            raise TypeError(f"pattern={self.pattern!r} must be a pattern, such as Radial(density=0.2)")
        check_share(self, "budget", "sparse_cost")
        if not is_number(self.skipped, 0, 1):
            raise ValueError(f"skipped={self.skipped!r} must be in [0, 1]: the least share of steps to skip")
        check_whole(self, "dense_steps", "dense_last_steps")
        check_whole(self, "max_skipped", least=1)

    def ways(self, steps: int) -> tuple[str, ...]:
        """How each step of a run of `steps` runs: "dense", "sparse" or "skipped".

        Raises:
            ValueError: the budget cannot be kept.
        """
        return _ways(self, steps)

    def cost(self, steps: int) -> float:
        """The cost of a run of `steps`, as a share of the cost of as many dense ones; at most `budget`."""
        price = {DENSE: 1.0, SPARSE: self.sparse_cost, SKIPPED: 0.0}
        return sum(price[way] for way in self.ways(steps)) / steps

    def plan(self, grid: VideoGrid, context: Context | None = None) -> Plan:
        return self.pattern.plan(grid, context)

    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> Plan:
        return self.pattern.select(query, key, grid, context)

    @property
    def reads_content(self) -> bool:
        return self.pattern.reads_content

    def check_model(self, layers: int, heads: int | None) -> None:
        self.pattern.check_model(layers, heads)

    def check_grid(self, grid: VideoGrid) -> None:
        self.pattern.check_grid(grid)

    def at(self, context: Context) -> Pattern:
        return self.pattern.at(context)

    def is_dense(self, context: Context) -> bool:
        return self._way(context) == DENSE or self.pattern.is_dense(context)

    def skips(self, context: Context) -> bool:
        return self._way(context) == SKIPPED or self.pattern.skips(context)

    def _way(self, context: Context) -> str:
        if not context.step < context.steps:
            return DENSE if context.step < self.dense_steps else SPARSE
        return self.ways(context.steps)[context.step]


@functools.lru_cache(maxsize=64)
def _ways(schedule: StepBudget, steps: int) -> tuple[str, ...]:
    ends = schedule.dense_steps + schedule.dense_last_steps
    middle = max(0, steps - ends)
    dense, price, allowed = steps - middle, schedule.sparse_cost, schedule.budget * steps
    # Each computed step serves at most `max_skipped` others.
    most = middle * schedule.max_skipped // (schedule.max_skipped + 1)
    least = min(most, math.ceil(schedule.skipped * middle - 1e-9))
    too_much = dense + (middle - least) * price - allowed
    skipped = least + max(0, math.ceil(too_much / price - 1e-9))
    if skipped > most:
        lowest = (dense + (middle - most) * price) / steps
        raise ValueError(
            f"budget={schedule.budget} cannot be kept in {steps} steps: {dense} dense ones and at most {most} skipped "
            f"ones cost {lowest:.2f} or more; raise budget or max_skipped, or lower dense_steps or sparse_cost"
        )
    ways = [SPARSE] * middle
    for place in range(middle):  # evenly, each skipped step after the computed one that serves it
        if (place + 1) * skipped // middle > place * skipped // middle:
            ways[place] = SKIPPED
    left = allowed - dense - (middle - skipped) * price
    denser = math.floor(left / (1 - price) + 1e-9) if price < 1 else 0
    computed = [place for place, way in enumerate(ways) if way == SPARSE]
    for place in sorted(computed, key=lambda place: -_served(ways, place))[:denser]:
        ways[place] = DENSE
    first = min(schedule.dense_steps, dense)
    return (DENSE,) * first + tuple(ways) + (DENSE,) * (dense - first)


def _served(ways: list[str], place: int) -> int:
    """How many skipped steps follow a computed one."""
    following = ways[place + 1 :]
    return next((n for n, way in enumerate(following) if way != SKIPPED), len(following))
