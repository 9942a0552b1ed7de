"""`--budget` on the command line: the schedule that it builds, what is skipped, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
from command_line import PROMPT, refused, small_sample, tiny_pipeline, vidsparse_in_a_folder

from vidsparse import Dense, LoraRecipe, Pattern, Radial, StepBudget, StepSchedule
from vidsparse.cli.request import Request
from vidsparse.generation.models import Model, Shapes

vidsparse = pytest.fixture(vidsparse_in_a_folder)
tiny = pytest.fixture(scope="session")(tiny_pipeline)
small = pytest.fixture(small_sample)

RADIAL = Radial(density=0.3)
TRAINED = StepSchedule(RADIAL, dense_steps=5, dense_layers=(0,), sigmas=(0.1, 0.9))


def built(trained: Pattern | None, **options: Any) -> Pattern:
    request = Request(PROMPT, **options)
    request.__dict__["loras"] = {} if trained is None else {"mine": LoraRecipe(pattern=trained)}
    return request.build_pattern()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(budget=0.6), StepBudget(RADIAL, 0.6)),
        (dict(budget=0.6, sparse_cost=0.9), StepBudget(RADIAL, 0.6, 0.9)),
        (dict(budget=0.6, dense_steps=4), StepBudget(RADIAL, 0.6, dense_steps=4)),
        (dict(budget=0.6, dense_last_steps=0), StepBudget(RADIAL, 0.6, dense_last_steps=0)),
        (dict(budget=0.6, dense_layers="0,-1"), StepBudget(StepSchedule(RADIAL, dense_layers=(0, -1)), 0.6)),
        (dict(budget=0.6, pattern="dense"), StepBudget(Dense(), 0.6, 1.0)),
        (dict(budget=0.6, pattern="dense", sparse_cost=0.8), StepBudget(Dense(), 0.6, 0.8)),
    ],
    ids=str,
)
def test_the_options_are_the_fields_of_the_budget(options: dict[str, Any], expected: Pattern) -> None:
    assert built(None, **options) == expected


def test_the_schedule_of_a_lora_is_kept_within_a_budget() -> None:
    inner = StepSchedule(RADIAL, dense_layers=(0,), sigmas=(0.1, 0.9))
    assert built(TRAINED, budget=0.6) == StepBudget(inner, 0.6, dense_steps=5, dense_last_steps=0)
    assert built(TRAINED, budget=0.6, dense_steps=1, dense_last_steps=2).dense_last_steps == 2  # type: ignore[attr-defined]
    shares = StepSchedule(RADIAL, dense_steps=0.2, dense_last_steps=1)
    assert built(shares, budget=0.6, steps=10) == StepBudget(RADIAL, 0.6, dense_steps=2, dense_last_steps=1)
    assert built(RADIAL, budget=0.6) == StepBudget(RADIAL, 0.6)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--budget", "0"], "budget=0.0 must be in (0, 1]"),
        (["--budget", "0.5", "--sparse-cost", "0"], "sparse_cost=0.0 must be in (0, 1]"),
        (["--budget", "0.2"], "budget=0.2 cannot be kept in 20 steps"),
        (
            ["--sparse-cost", "0.5"],
            "--sparse-cost says what a step costs of a --budget; give that too, or leave it out",
        ),
    ],
    ids=" ".join,
)
def test_what_cannot_be_is_refused_before_the_model_is_loaded(
    vidsparse: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    for kind in (Model, Shapes):
        monkeypatch.setattr(kind, "load", lambda *_: pytest.fail("the model was loaded"))
    refused(vidsparse("generate", PROMPT, *arguments), says)


def test_steps_are_skipped_and_the_report_says_so(vidsparse: Any, small: list[str]) -> None:
    asked = [*small, "--steps", 6, "--budget", 0.6, "--sparse-cost", 0.8, "--report", "a.json", "-o", "a.mp4"]
    ways = StepBudget(RADIAL, 0.6, 0.8, dense_steps=1).ways(6)
    done = vidsparse("generate", PROMPT, *asked)
    assert done.code == 0, done.err
    report = json.loads(Path("a.json").read_text())["attention"]
    calls = 4  # two layers, with and without the prompt
    assert (report["sparse_calls"], report["dense_calls"], report["skipped_calls"]) == tuple(
        calls * ways.count(way) for way in ("sparse", "dense", "skipped")
    )
    assert report["skipped_calls"] and f"{calls} skipped in step {ways.index('skipped')}, by the schedule" in done.out


def test_a_budget_that_leaves_all_steps_dense_is_noted(vidsparse: Any, small: list[str]) -> None:
    done = vidsparse("generate", PROMPT, *small, "--budget", 1, "-o", "a.mp4")
    assert "note: all 2 steps are dense, so nothing will be sparse; use a lower --budget\n" in done.err


def test_a_negative_prompt_changes_the_video(vidsparse: Any, small: list[str]) -> None:
    for name, more in (("a", []), ("b", ["--negative-prompt", "a tree"])):
        assert vidsparse("generate", PROMPT, *small, *more, "-o", f"{name}.mp4").code == 0
    a, b = (imageio.imread(f"{name}.mp4", plugin="FFMPEG") for name in ("a", "b"))
    assert not np.array_equal(a, b) and len(os.listdir()) == 2
