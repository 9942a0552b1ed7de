"""What a video will cost, against what a run of it reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import PROMPT, tiny_pipeline

from vidsparse import Dense, Pattern, Radial, SlidingTile, StepBudget, StepSchedule
from vidsparse.generation.forecast import forecast, weight_bytes
from vidsparse.generation.models import find_model
from vidsparse.generation.pipeline import fit_arguments, load_pipeline
from vidsparse.generation.sample import sample

tiny = pytest.fixture(scope="module")(tiny_pipeline)
SMALL = Radial(density=0.3, tile=(1, 2, 2))
SIZE = 9, 32, 48


@pytest.fixture(scope="module")
def pipe(tiny: Path) -> Any:
    return load_pipeline(find_model(str(tiny)), device="cpu")


@pytest.mark.parametrize(
    ("pattern", "steps"),
    [
        (SMALL, 2),
        (StepSchedule(SMALL, dense_steps=0.25, dense_last_steps=1, dense_layers=(-1,)), 5),
        (StepSchedule(SlidingTile(window=(3, 3, 3), tile=(1, 2, 2)), steps=(1, 3)), 4),
        (StepBudget(SMALL, 0.6, 0.8, dense_steps=1), 6),
        (Dense(), 2),
    ],
    ids=["bare", "schedule", "range", "budget", "dense"],
)
def test_a_run_computes_what_was_foretold(pipe: Any, tiny: Path, pattern: Pattern, steps: int) -> None:
    found = forecast(str(tiny), pattern, *SIZE, steps)
    asked = dict(zip(("num_frames", "height", "width"), SIZE, strict=True), num_inference_steps=steps, prompt=PROMPT)
    report = sample(pipe, pattern, fit_arguments(pipe, asked)).report
    branches = 2  # of each step: with and without the prompt
    assert sum(found.sparse) * branches == report.sparse_calls
    assert len(found.skipped) == len({skipped.step for skipped in report.skipped})
    calls = branches * (found.layers * (steps - len(found.skipped)) - sum(found.sparse))
    assert calls == report.dense_calls
    dense = branches * (steps - len(found.skipped)) * found.dense_flops
    assert dense == sum(call.dense_flops for call in report.calls)
    whole = branches * steps * found.dense_flops
    assert 1 - found.saved == pytest.approx(sum(call.flops for call in report.calls) / whole)
    if report.sparse_calls:
        assert found.density == pytest.approx(report.density)
        assert found.token_density == pytest.approx(report.token_density)
    assert found.bound >= 1


def test_weights_are_counted_as_they_are(pipe: Any, tiny: Path) -> None:
    weights = sum(weight.numel() for weight in pipe.transformer.parameters())
    assert weight_bytes(str(tiny), torch.bfloat16) == {"transformer": 2 * weights}
    assert weight_bytes(str(tiny), torch.float32) == {"transformer": 4 * weights}


def test_a_map_beyond_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="times what a block map can hold"):
        forecast("WanTransformer3DModel", SMALL, 100001, 720, 1280, 4)
    assert forecast("WanTransformer3DModel", Dense(), 100001, 720, 1280, 4).bound == 1, "it needs no map"
