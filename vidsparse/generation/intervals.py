"""Means with confidence intervals, and medians with their range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, median, stdev

EXACT = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764}  # Student's t, 97.5 %, where the series is not close enough


@dataclass(frozen=True)
class Mean:
    """A mean over videos.

    Attributes:
        mean: of the values.
        half: half the width of its 95 % confidence interval, by Student's t; None for a single value.
        count: of the values.
    """

    mean: float
    half: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean | None:
        """The mean of values; None of none."""
        if not values:
            return None
        n = len(values)
        return cls(fmean(values), None if n == 1 else student_t(n - 1) * stdev(values) / math.sqrt(n), n)


@dataclass(frozen=True)
class Median:
    """The median of times or ratios, and the least and the greatest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Median:
        return cls(median(values), min(values), max(values))


def student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t with so many degrees of freedom, to a relative error under 0.2 %."""
    if freedom in EXACT:
        return EXACT[freedom]
    z = NormalDist().inv_cdf(0.975)  # Abramowitz and Stegun 26.7.5
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
