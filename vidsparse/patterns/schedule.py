"""A schedule for a pattern: dense first and last steps, dense layers, ranges of steps or of noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from vidsparse.block_map import Plan
from vidsparse.grid import VideoGrid, is_whole
from vidsparse.patterns.base import Context, Pattern
from vidsparse.patterns.budget import StepBudget
from vidsparse.patterns.fields import check_range, check_wholes, is_share
from vidsparse.patterns.sliding_clip import SlidingClip


@dataclass(frozen=True)
class StepSchedule(Pattern):
    """Runs `pattern` in some steps and layers, and the model's own dense attention in the others.

    The first denoising steps decide the layout and the last one the detail, so published methods keep 10 to 28 % of the
    steps dense, and up to two layers.

    Attributes:
        pattern: the pattern that runs in sparse steps.
        dense_steps, dense_last_steps: how many steps are dense at the start and at the end of the schedule: a whole
            number, or a share of all steps below 1, rounded up but never all of them. While the number of steps is
            unknown, as in a bare call of a transformer, a share is no step. Video to video begins within the schedule.
        dense_layers: indices of layers that are always dense; negative ones count from the last.
        steps: sparse only for first <= step < last, or None.
        sigmas: sparse only for low <= noise level <= high, or None. The noise level is 1 at the start and 0 at the end,
            so that one range serves runs of 4 and of 50 steps.
    """

    pattern: Pattern
    dense_steps: int | float = 0
    dense_last_steps: int | float = 0
    dense_layers: tuple[int, ...] = ()
    steps: tuple[int, int] | None = None
    sigmas: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, Pattern):
            raise TypeError(f"pattern={self.pattern!r} must be a pattern, such as Radial(density=0.2)")
        for name in ("dense_steps", "dense_last_steps"):
            value = getattr(self, name)
            if not is_whole(value, 0) and not (is_share(value) and value < 1):
                raise ValueError(f"{name}={value!r} must be a whole number of steps, or a share of them below 1")
        check_wholes(self, "dense_layers", "indices, such as (0, 1)")
        check_range(self, "steps", whole=True)
        check_range(self, "sigmas", whole=False)

    def plan(self, grid: VideoGrid, context: Context | None = None) -> Plan:
        return self.pattern.plan(grid, context)

    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> Plan:
        return self.pattern.select(query, key, grid, context)

    @property
    def reads_content(self) -> bool:
        return self.pattern.reads_content

    def check_model(self, layers: int, heads: int | None) -> None:
        absent = [layer for layer in self.dense_layers if not -layers <= layer < layers]
        if absent:
            raise ValueError(f"dense_layers {absent} do not exist: the model has layers 0 to {layers - 1}")
        self.pattern.check_model(layers, heads)

    def check_grid(self, grid: VideoGrid) -> None:
        self.pattern.check_grid(grid)

    def at(self, context: Context) -> Pattern:
        return self.pattern.at(context)

    def is_dense(self, context: Context) -> bool:
        return self.schedules_dense(context) or self.pattern.is_dense(context)

    def schedules_dense(self, context: Context) -> bool:
        """Whether this schedule alone makes a layer and step dense, whatever its pattern asks for."""
        layers = {layer % context.layers for layer in self.dense_layers if -context.layers <= layer < context.layers}
        return context.layer in layers or self._whole_step_is_dense(context)

    def skips(self, context: Context) -> bool:
        return not self._whole_step_is_dense(context) and self.pattern.skips(context)

    def _whole_step_is_dense(self, context: Context) -> bool:
        # While the number of steps is unknown (a bare transformer call), no step counts as the last.
        first, after = self.sparse_range(context.steps)
        last = bool(context.steps) and context.step >= after
        outside_steps = self.steps is not None and not self.steps[0] <= context.step < self.steps[1]
        outside_sigmas = self.sigmas is not None and not self.sigmas[0] <= context.sigma <= self.sigmas[1]
        return context.step < first or last or outside_steps or outside_sigmas

    def sparse_range(self, steps: int) -> tuple[int, int]:
        """The first step after the dense ones at the start, and the first of those at the end, in a run of `steps`."""
        return _count(self.dense_steps, steps), steps - _count(self.dense_last_steps, steps)


def _count(dense: float, steps: int) -> int:
    if isinstance(dense, float):
        return max(0, min(math.ceil(dense * steps - 1e-9), steps - 1))
    return dense


def bare(pattern: Pattern) -> Pattern:
    """The pattern without its schedule, or its schedules where one is inside another; clips stay around it."""
    while isinstance(pattern, (StepSchedule, StepBudget)):
        pattern = pattern.pattern
    return replace(pattern, pattern=bare(pattern.pattern)) if isinstance(pattern, SlidingClip) else pattern
