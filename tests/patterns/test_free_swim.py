"""FreeSwim as a pattern: what it forwards, which calls it overrides and when it refreshes; and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vidsparse import (
    Context,
    Dense,
    FreeSwim,
    InwardWindow,
    Pattern,
    PerLayer,
    ShiftedWindows,
    StepSchedule,
    TopBlocks,
    VideoGrid,
)
from vidsparse.patterns.names import build_pattern


def test_it_plans_what_its_pattern_plans() -> None:
    grid, windows = VideoGrid(2, 16, 16), InwardWindow(scale=2.0)
    assert FreeSwim(windows).plan(grid) is windows.plan(grid) and not FreeSwim(windows).reads_content
    content, pattern = torch.randn(1, grid.tokens, 2, 8), TopBlocks(density=0.3)
    context = Context(heads=2)
    chosen = pattern.select(content, content, grid, context)
    assert FreeSwim(pattern).select(content, content, grid, context) == chosen and FreeSwim(pattern).reads_content
    assert FreeSwim(StepSchedule(windows, dense_steps=2)).is_dense(Context(step=1))
    with pytest.raises(ValueError, match="is larger than the video's frame"):
        FreeSwim(InwardWindow(native=(99, 99))).check_grid(grid)


@pytest.mark.parametrize(
    ("every", "steps"), [(1, [0, 1, 2, 3, 4, 5, 6]), (2, [0, 2, 4, 6]), (5, [0, 5])], ids=["1", "2", "5"]
)
def test_the_full_branch_runs_in_the_published_steps(every: int, steps: list[int]) -> None:
    pattern = FreeSwim(Dense(), every=every)
    assert [step for step in range(7) if pattern.refreshes(Context(step=step))] == steps


def test_calls_without_the_prompt_are_left_alone_unless_asked() -> None:
    assert [FreeSwim(Dense()).overrides(Context(branch=branch)) for branch in (0, 1)] == [True, False]
    assert FreeSwim(Dense(), unconditional=True).overrides(Context(branch=1))


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"pattern": "windows"}, TypeError, "pattern='windows' must be a pattern"),
        ({"pattern": Dense(), "every": 0}, ValueError, "every=0 must be a whole number of at least 1"),
        ({"pattern": Dense(), "unconditional": 1}, ValueError, "unconditional=1 must be True or False"),
        ({"pattern": FreeSwim(Dense())}, ValueError, "has a full branch already"),
    ],
    ids=["pattern", "every", "unconditional", "twice"],
)
def test_bad_fields_are_refused(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FreeSwim(**fields)


@pytest.mark.parametrize("inner", [FreeSwim(Dense()), StepSchedule(FreeSwim(Dense()), dense_steps=1)], ids=repr)
def test_it_is_not_for_some_layers_alone(inner: Pattern) -> None:
    message = "patterns holds a FreeSwim, which is about the whole transformer; put PerLayer into it"
    with pytest.raises(ValueError, match=message):
        PerLayer((Dense(), inner), layers=(0, 1))


def test_its_name_takes_the_name_of_the_windows() -> None:
    assert build_pattern("free-swim") == FreeSwim(InwardWindow(scale=2.0))
    shifted = build_pattern("free-swim", None, ["pattern=shifted-windows", "every=3", "unconditional=true"])
    assert shifted == FreeSwim(ShiftedWindows(), every=3, unconditional=True)
