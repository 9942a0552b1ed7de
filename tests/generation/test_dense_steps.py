"""How many steps are dense: by default, and whether a schedule leaves one sparse."""

from __future__ import annotations

import pytest

from vidsparse import Context, Pattern, Radial, SlidingClip, StepBudget, StepSchedule
from vidsparse.generation.dense_steps import default_dense_steps, has_sparse_step

RADIAL = Radial(density=0.3)


def test_one_step_in_eight_but_never_all() -> None:
    found = {steps: default_dense_steps(steps) for steps in (1, 2, 4, 8, 9, 16, 30, 50)}
    assert found == {1: 0, 2: 1, 4: 1, 8: 1, 9: 2, 16: 2, 30: 4, 50: 7}
    for steps in range(1, 60):
        assert has_sparse_step(StepSchedule(RADIAL, default_dense_steps(steps)), steps)


@pytest.mark.parametrize("steps", [1, 2, 4, 10])
@pytest.mark.parametrize(
    "pattern",
    [
        RADIAL,
        StepSchedule(RADIAL, 4),
        StepSchedule(RADIAL, 1, 1),
        StepSchedule(RADIAL, 5, 5),
        StepSchedule(RADIAL, 0, 4),
        StepSchedule(RADIAL, steps=(3, 9)),
        StepSchedule(RADIAL, 9, steps=(3, 9)),
        StepBudget(RADIAL, 1.0, 0.5, max_skipped=1),
        StepBudget(RADIAL, 0.9, 0.5, dense_steps=0, dense_last_steps=0),
    ],
    ids=repr,
)
def test_it_agrees_with_what_the_schedule_answers_step_by_step(pattern: Pattern, steps: int) -> None:
    sparse = [step for step in range(steps) if not pattern.is_dense(Context(step=step, steps=steps))]
    assert has_sparse_step(pattern, steps) == bool(sparse)


def test_every_step_of_a_video_longer_than_its_clips_is_sparse() -> None:
    clips = SlidingClip(StepSchedule(RADIAL, dense_steps=4), frames=5)
    assert [has_sparse_step(clips, 4, frames) for frames in (5, 6)] == [False, True]
    assert has_sparse_step(clips, 5, 5)
