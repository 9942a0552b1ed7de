"""How many steps of a generation are dense: by default, and under a schedule."""

from __future__ import annotations

from vidsparse.patterns import Pattern, SlidingClip, StepBudget, StepSchedule, TemporalBias
from vidsparse.patterns.budget import SPARSE

SHARE = 8  # one step in so many is dense by default, at the start, where the layout of a video is decided


def default_dense_steps(steps: int) -> int:
    """Dense steps at the start of a generation of `steps`: one in eight, rounded up, but never all of them."""
    return max(0, min(-(-steps // SHARE), steps - 1))


def has_sparse_step(pattern: Pattern, steps: int, frames: int = 1) -> bool:
    """Whether the counts of a schedule leave a step sparse; ranges of noise level and a bias are not considered.

    Args:
        frames: latent frames of the video: one longer than the clips of a `SlidingClip` is sparse in each step.

    Raises:
        ValueError: a budget that cannot be kept in so many steps.
    """
    if isinstance(pattern, TemporalBias):
        return has_sparse_step(pattern.pattern, steps, frames)
    if isinstance(pattern, SlidingClip):
        return frames > pattern.frames or has_sparse_step(pattern.pattern, steps)
    if isinstance(pattern, StepBudget):
        return SPARSE in pattern.ways(steps)
    if not isinstance(pattern, StepSchedule):
        return True
    first, last = pattern.steps or (0, steps)
    first_sparse, first_after = pattern.sparse_range(steps)
    return max(first_sparse, first) < min(first_after, last)
