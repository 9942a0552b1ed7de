"""Noise levels of pipelines whose shift may grow with the number of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vidsparse.finetune.families.task import TrainingTask, View
from vidsparse.finetune.noise import generation_levels, shift_of


@dataclass(frozen=True)
class LevelsByLength(TrainingTask):
    """Levels that are evenly spaced before the shift, down to one step above 0.

    Where the scheduler has `use_dynamic_shifting`, the logarithm of the shift is linear in the number of tokens.

    Attributes:
        two_points: tokens and logarithms of the shift at two points of this line, where the scheduler does not say.
        largest_shift: which longer videos keep.
    """

    two_points: ClassVar[tuple[int, int, float, float]] = (256, 4096, 0.5, 1.15)
    largest_shift: ClassVar[float] = math.inf

    def tokens(self, view: View) -> float:
        """Tokens of the video, as the pipeline counts them."""
        return math.prod(view)

    def shift(self, scheduler: Any, view: View) -> float:
        return math.exp(self._mu(scheduler, view)) if _by_length(scheduler) else shift_of(scheduler)

    def levels(self, scheduler: Any, steps: int, view: View) -> Sequence[float]:
        spacing = {"mu": self._mu(scheduler, view)} if _by_length(scheduler) else {}
        return generation_levels(scheduler, steps, sigmas=[1 - step / steps for step in range(steps)], **spacing)

    def _mu(self, scheduler: Any, view: View) -> float:
        """The logarithm of the shift."""
        names = "base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift"
        few, many, low, high = map(scheduler.config.get, names, self.two_points)
        slope = (high - low) / (many - few)
        return min(float(self.tokens(view) * slope + low - slope * few), math.log(self.largest_shift))


def _by_length(scheduler: Any) -> bool:
    return bool(scheduler.config.get("use_dynamic_shifting", False))
