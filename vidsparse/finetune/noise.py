"""Noise levels of the training, spaced like those of the model's scheduler; step schedules as ranges of noise."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from vidsparse.finetune.draws.levels import UNIFORM, LevelSampling
from vidsparse.patterns import Context, Pattern, SlidingClip, StepSchedule


def shift_of(scheduler: Any) -> float:
    """The shift of a flow-matching scheduler: its noise levels are shift * u / (1 + (shift - 1) * u) of uniform u.

    Raises:
        NotImplementedError: another kind of scheduler, or one whose shift depends on the size of the video.
    """
    config = scheduler.config
    flow = config.get("prediction_type", "flow_prediction") == "flow_prediction"
    if not flow or config.get("use_dynamic_shifting", False):
        raise NotImplementedError(
            f"{type(scheduler).__name__} cannot be used for training: its noise levels are not those of flow matching "
            "with a constant shift"
        )
    return float(config.get("flow_shift", config.get("shift", 1.0)))


def bounds_of(pipeline: Mapping[str, Any], transformer: str) -> tuple[float, float]:
    """The noise levels (low, high) of a transformer: all, or one side of the boundary between two experts.

    Args:
        pipeline: settings of the pipeline. transformer: its name there.
    """
    boundary = pipeline.get("boundary_ratio")
    if boundary is None:
        return 0.0, 1.0
    return (boundary, 1.0) if transformer == "transformer" else (0.0, boundary)


def draw_levels(
    share: torch.Tensor, shift: float, bounds: tuple[float, float] = (0.0, 1.0), sampling: LevelSampling = UNIFORM
) -> torch.Tensor:
    """Turn numbers that are uniform in (0, 1) into noise levels within `bounds`, spaced by a scheduler's shift.

    Each number is the share of all draws within the bounds that are at lower levels.
    """
    low, high = (sampling.share(_unshifted(level, shift)) for level in bounds)
    u = sampling.quantile(low + (high - low) * share)
    return shift * u / (1 + (shift - 1) * u)


def share_of(
    level: float, shift: float, bounds: tuple[float, float] = (0.0, 1.0), sampling: LevelSampling = UNIFORM
) -> float:
    """The number that `draw_levels` turns into a level; 0 or 1 for a level out of bounds."""
    low, high, own = (sampling.share(_unshifted(x, shift)) for x in (*bounds, level))
    return min(1.0, max(0.0, (own - low) / (high - low)))


def _unshifted(level: float, shift: float) -> float:
    """The u of a noise level."""
    return level / (shift - (shift - 1) * level)


def sparse_levels(pattern: Pattern) -> tuple[float, float]:
    """The noise levels (low, high] at which the schedules of a pattern from `by_noise` allow sparse layers."""
    low, high = 0.0, 1.0
    while isinstance(pattern, StepSchedule):
        if pattern.sigmas is not None:
            low, high = max(low, pattern.sigmas[0]), min(high, pattern.sigmas[1])
        pattern = pattern.pattern
    return low, high


def by_noise(pattern: Pattern, scheduler: Any, steps: int, levels: Sequence[float] | None = None) -> Pattern:
    """Convert the ranges of steps of a pattern to ranges of noise: a training draws levels and has no steps.

    Args:
        pattern: the pattern of a generation.
        scheduler: of the pipeline; gives the noise levels of a generation.
        steps: denoising steps of that generation.
        levels: its noise levels, where the scheduler alone does not decide them.

    Raises:
        ValueError: a schedule that leaves no step of the generation sparse, or one within another pattern.
    """
    if isinstance(pattern, SlidingClip):
        return replace(pattern, pattern=by_noise(pattern.pattern, scheduler, steps, levels))
    if not isinstance(pattern, StepSchedule):
        within = [name for name, value in vars(pattern).items() if isinstance(value, StepSchedule)]
        if within:
            name = type(pattern).__name__
            raise ValueError(
                f"{name}({within[0]}=StepSchedule(...)) has its schedule inside; use StepSchedule({name}(...))"
            )
        return pattern
    inner = by_noise(pattern.pattern, scheduler, steps, levels)
    if not (pattern.dense_steps or pattern.dense_last_steps or pattern.steps):
        return replace(pattern, pattern=inner)
    levels = generation_levels(scheduler, steps) if levels is None else levels
    by_step = replace(pattern, dense_layers=(), sigmas=None)
    sparse = [i for i in range(steps) if not by_step.schedules_dense(Context(step=i, steps=steps))]
    if not sparse:
        raise ValueError(f"{pattern} has no sparse step among {steps}; use fewer dense steps")
    # The bound between a dense and a sparse step is halfway between their levels.
    high = 1.0 if sparse[0] == 0 else (levels[sparse[0] - 1] + levels[sparse[0]]) / 2
    low = 0.0 if sparse[-1] == steps - 1 else (levels[sparse[-1]] + levels[sparse[-1] + 1]) / 2
    if pattern.sigmas is not None:
        low, high = max(low, pattern.sigmas[0]), min(high, pattern.sigmas[1])
    return StepSchedule(inner, dense_layers=pattern.dense_layers, sigmas=(low, high))


def generation_levels(scheduler: Any, steps: int, **spacing: Any) -> Sequence[float]:
    """The noise levels of a generation, falling from 1; `spacing` is what else the pipeline gives `set_timesteps`."""
    own = copy.deepcopy(scheduler)
    own.set_timesteps(**spacing) if "sigmas" in spacing else own.set_timesteps(steps, **spacing)
    levels: list[float] = (own.timesteps.double() / own.config.num_train_timesteps).tolist()
    return levels
