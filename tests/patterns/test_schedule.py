"""Schedules: which steps, layers and noise levels are dense."""

from __future__ import annotations

import pytest

from vidsparse import Context, Dense, Radial, SlidingClip, StepSchedule
from vidsparse.patterns.names import name_of
from vidsparse.patterns.schedule import bare

SPARSE = Radial(density=0.2)


@pytest.mark.parametrize(
    ("schedule", "dense_steps"),
    [
        (StepSchedule(SPARSE), []),
        (StepSchedule(SPARSE, dense_steps=3), [0, 1, 2]),
        (StepSchedule(SPARSE, dense_last_steps=2), [8, 9]),
        (StepSchedule(SPARSE, dense_steps=1, dense_last_steps=1), [0, 9]),
        (StepSchedule(SPARSE, dense_steps=99), list(range(10))),
        (StepSchedule(SPARSE, dense_steps=0.3, dense_last_steps=0.1), [0, 1, 2, 9]),
        (StepSchedule(SPARSE, dense_steps=0.11), [0, 1]),
        (StepSchedule(SPARSE, steps=(2, 4)), [0, 1, 4, 5, 6, 7, 8, 9]),
        (StepSchedule(SPARSE, sigmas=(0.25, 0.75)), [0, 1, 2, 8, 9]),
        (StepSchedule(SPARSE, sigmas=(0.0, 1.0)), []),
        (StepSchedule(StepSchedule(SPARSE, dense_steps=1), dense_last_steps=1), [0, 9]),
        (StepSchedule(Dense()), list(range(10))),
    ],
    ids=[
        "nothing",
        "first",
        "last",
        "first-and-last",
        "more-than-there-are",
        "shares",
        "a-share-rounded-up",
        "step-range",
        "sigma-range",
        "all-sigmas",
        "nested",
        "of-dense",
    ],
)
def test_schedule_by_step(schedule: StepSchedule, dense_steps: list[int]) -> None:
    contexts = [Context(layer=1, layers=4, step=i, steps=10, sigma=1 - i / 10) for i in range(10)]
    assert [c.step for c in contexts if schedule.is_dense(c)] == dense_steps


@pytest.mark.parametrize(
    ("layers", "dense"),
    [((), []), ((0,), [0]), ((-1,), [3]), ((0, -1, 2), [0, 2, 3]), ((-4,), [0]), ((4, -5), [])],
    ids=["none", "first", "last", "several", "first-from-the-end", "out-of-range"],
)
def test_schedule_by_layer(layers: tuple[int, ...], dense: list[int]) -> None:
    schedule = StepSchedule(SPARSE, dense_layers=layers)
    assert [i for i in range(4) if schedule.is_dense(Context(layer=i, layers=4, step=5, steps=10))] == dense


def test_no_step_is_the_last_while_the_number_of_steps_is_unknown() -> None:
    for schedule in (StepSchedule(SPARSE, dense_last_steps=5), StepSchedule(SPARSE, 0.5, 0.5)):
        assert not any(schedule.is_dense(Context(step=step, steps=0)) for step in range(20))


def test_a_share_leaves_a_step() -> None:
    schedule = StepSchedule(SPARSE, dense_steps=0.24)
    counts = {steps: schedule.sparse_range(steps) for steps in (0, 1, 2, 4, 8, 50)}
    assert counts == {0: (0, 0), 1: (0, 1), 2: (1, 2), 4: (1, 4), 8: (2, 8), 50: (12, 50)}


@pytest.mark.parametrize("value", [-1, 1.0, 1.5, -0.2, "3", True, None])
def test_dense_steps_are_a_number_or_a_share(value: object) -> None:
    for name in ("dense_steps", "dense_last_steps"):
        with pytest.raises(ValueError, match=f"{name}=.* must be a whole number of steps, or a share of them"):
            StepSchedule(SPARSE, **{name: value})  # type: ignore[arg-type]


def test_layers_that_the_model_has_not() -> None:
    StepSchedule(SPARSE, dense_layers=(-2, 0, 1)).check_model(2, None)
    with pytest.raises(ValueError, match=r"dense_layers \[2, -3\] do not exist: the model has layers 0 to 1"):
        StepSchedule(SPARSE, dense_layers=(2, 1, -3)).check_model(2, None)


def test_a_schedule_needs_a_pattern() -> None:
    with pytest.raises(TypeError, match=r"pattern=0\.2 must be a pattern"):
        StepSchedule(0.2)  # type: ignore[arg-type]


def test_the_bare_pattern_of_schedules() -> None:
    assert bare(Radial(0.2)) == bare(StepSchedule(Radial(0.2), 4)) == Radial(0.2)
    assert bare(StepSchedule(StepSchedule(Radial(0.2), 4), steps=(0, 9))) == Radial(0.2)
    assert bare(SlidingClip(StepSchedule(Radial(0.2), 4), frames=9)) == SlidingClip(Radial(0.2), frames=9)
    assert name_of(StepSchedule(StepSchedule(Radial(0.2), 4), 1)) == "radial"
