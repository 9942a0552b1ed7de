"""Means with confidence intervals, and medians with their range."""

from __future__ import annotations

import pytest

from vidsparse.generation.intervals import Mean, Median, student_t


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (2, 4.303), (4, 2.776), (5, 2.571), (6, 2.447), (9, 2.262), (10, 2.228), (30, 2.042), (1000, 1.962)],
    ids=str,
)
def test_quantiles_are_those_of_the_table(freedom: int, quantile: float) -> None:
    assert student_t(freedom) == pytest.approx(quantile, rel=2e-3)


def test_a_mean_has_an_interval_where_there_are_two_values() -> None:
    assert Mean.of([]) is None
    assert Mean.of([3.0]) == Mean(3.0, None, 1)
    found = Mean.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found is not None and found.mean == 3 and found.count == 5
    assert found.half == pytest.approx(1.963, rel=2e-3)  # 2.776 * sqrt(2.5) / sqrt(5)
    assert Mean.of([2.0, 2.0]) == Mean(2.0, 0.0, 2)


def test_a_median_has_its_range() -> None:
    assert Median.of([9.0, 1.0, 2.0]) == Median(2.0, 1.0, 9.0)
