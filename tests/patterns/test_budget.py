"""One budget for a run: the plan of its steps, what it costs, and how it stands with other schedules."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from vidsparse import Context, Dense, Radial, Reuse, StepBudget, StepSchedule
from vidsparse.patterns.base import patterns_in
from vidsparse.patterns.names import build_pattern
from vidsparse.patterns.schedule import bare

SPARSE = Radial(density=0.2)


def plan(steps: int, **fields: Any) -> str:
    """The first letters of the ways: d, s, and x for skipped."""
    return "".join("x" if way == "skipped" else way[0] for way in StepBudget(SPARSE, **fields).ways(steps))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (dict(budget=1.0), "dddddddddd"),  # nothing has to be saved
        (dict(budget=0.9, sparse_cost=0.5), "dddddddssd"),  # what is left makes the first ones dense
        (dict(budget=0.65, sparse_cost=0.5), "ddsssssssd"),  # sparse steps are enough
        (dict(budget=0.6, sparse_cost=0.5), "ddssssssxd"),
        (dict(budget=0.5, sparse_cost=0.5), "ddssxsxsxd"),
        (dict(budget=0.7, sparse_cost=1.0), "ddssxsxsxd"),  # a cache alone
        (dict(budget=0.6, sparse_cost=0.5, skipped=0.5), "dddxdxdxxd"),  # what skipping frees makes others dense
        (dict(budget=0.2, sparse_cost=0.5, dense_steps=0, dense_last_steps=0), "sxsxxsxsxx"),
    ],
)
def test_plans(fields: dict[str, Any], expected: str) -> None:
    assert plan(10, **fields) == expected


def test_every_plan_keeps_its_budget_and_has_something_to_go_by() -> None:
    budgets, costs, shares, runs = (0.3, 0.5, 0.75, 1.0), (0.4, 0.8, 1.0), (0.0, 0.4, 1.0), (1, 2, 3)
    kept = 0
    for steps, budget, cost, skipped, most in itertools.product((1, 7, 20, 50), budgets, costs, shares, runs):
        schedule = StepBudget(SPARSE, budget, cost, skipped, max_skipped=most)
        try:
            ways = schedule.ways(steps)
        except ValueError:
            continue
        kept += 1
        assert len(ways) == steps and schedule.cost(steps) <= budget + 1e-9
        assert ways[0] != "skipped" and ways[-1] == "dense"
        runs_of = [len(list(group)) for way, group in itertools.groupby(ways) if way == "skipped"]
        assert max(runs_of, default=0) <= most
    assert kept > 100


def test_a_computed_step_that_serves_more_skipped_ones_is_denser() -> None:
    ways = StepBudget(SPARSE, 0.52, 0.7, skipped=0.5).ways(20)
    served = {"dense": [0], "sparse": [0]}
    for index, way in enumerate(ways[2:-1], start=2):
        if way != "skipped":
            following = itertools.takewhile(lambda later: later == "skipped", ways[index + 1 :])
            served[way].append(len(list(following)))
    assert {"dense", "sparse"} <= set(ways[2:-1])
    assert min(served["dense"][1:]) >= max(served["sparse"][1:])


def test_a_budget_that_cannot_be_kept_is_refused_with_the_lowest_that_can() -> None:
    with pytest.raises(
        ValueError, match=r"budget=0\.3 cannot be kept in 8 steps: 3 dense .* cost 0\.55 or more; raise"
    ):
        StepBudget(SPARSE, 0.3).ways(8)
    assert StepBudget(SPARSE, 0.56).ways(8).count("skipped") == 3


def contexts(steps: int) -> list[Context]:
    return [Context(layers=4, step=step, steps=steps, sigma=1 - step / steps) for step in range(steps)]


def test_a_budget_in_and_around_other_schedules() -> None:
    inner = StepBudget(SPARSE, 0.5, 0.5)
    assert [c.step for c in contexts(10) if inner.skips(c)] == [4, 6, 8]
    assert [c.step for c in contexts(10) if inner.is_dense(c)] == [0, 1, 9]
    assert [c.step for c in contexts(10) if Reuse(inner).skips(c)] == [4, 6, 8]
    around = StepSchedule(inner, dense_steps=5, dense_layers=(0,))
    assert [c.step for c in contexts(10) if around.skips(c)] == [6, 8], "a dense layer keeps no step from being skipped"
    within = StepBudget(StepSchedule(SPARSE, dense_layers=(0,)), 0.5, 0.5)
    assert all(within.is_dense(c) for c in contexts(10)), "of layer 0"
    assert bare(around) == bare(within) == SPARSE
    assert list(patterns_in(around)) == [around, inner, SPARSE]


def test_nothing_is_skipped_while_the_number_of_steps_is_unknown() -> None:
    schedule = StepBudget(SPARSE, 0.1)
    unknown = [Context(step=step) for step in range(6)]
    assert [schedule.is_dense(c) for c in unknown] == [True, True, False, False, False, False]
    assert not any(schedule.skips(c) for c in unknown)


def test_a_file_holds_a_pattern_without_its_budget(tmp_path: Any) -> None:
    path = tmp_path / "budget.json"
    path.write_text('{"class": "StepBudget", "pattern": {"class": "Dense"}}')
    with pytest.raises(ValueError, match="holds StepBudget, expected a pattern without its schedule"):
        build_pattern(str(path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(budget=0.0), r"budget=0\.0 must be in \(0, 1\]"),
        (dict(sparse_cost=1.2), r"sparse_cost=1\.2 must be in \(0, 1\]"),
        (dict(skipped=-0.1), r"skipped=-0\.1 must be in \[0, 1\]"),
        (dict(max_skipped=0), "max_skipped=0 must be a whole number of at least 1"),
        (dict(dense_steps=-1), "dense_steps=-1"),
    ],
    ids=str,
)
def test_fields_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StepBudget(Dense(), **fields)
    with pytest.raises(TypeError, match=r"pattern=0\.2 must be a pattern"):
        StepBudget(0.2)  # type: ignore[arg-type]
