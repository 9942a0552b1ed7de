"""Predictions: bounds, seconds and memory follow from the count of operations; bad input is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from twins import ignores_warnings

from vidsparse import Dense, Radial, StepBudget, StepSchedule, estimate, preset
from vidsparse.estimation.gpus import find_gpu

pytestmark = ignores_warnings
SMALL: dict[str, Any] = {"frames": 17, "height": 480, "width": 832, "steps": 10}


def test_the_usual_settings() -> None:
    found = estimate("wan2.1-14b", **SMALL)
    dense, own, sparse, denser = found.settings
    assert [one.name for one in found.settings] == ["dense", "wan2.1-14b", "Radial 0.2", "Radial 0.4"]
    assert own.pattern == preset("wan2.1-14b").pattern
    assert (dense.attention, dense.denoising, dense.seconds) == (1, 1, None)
    assert sparse.attention > denser.attention > 1 and sparse.forecast.saved > denser.forecast.saved
    for one in found.settings[1:]:
        assert 1 < one.denoising < one.attention, "what is not attention stays"


def test_the_gain_is_that_of_amdahl() -> None:
    found = estimate("wan2.1-14b", {"sparse": Radial(density=0.2)}, **SMALL)
    dense, sparse = found.settings
    share = found.work.share
    assert sparse.denoising == pytest.approx(1 / (1 - share + share / sparse.attention))
    assert dense.flops == pytest.approx(10 * 2 * found.work.total), "ten steps of two calls"
    assert dense.flops / sparse.flops == pytest.approx(sparse.denoising)


def test_skipped_steps_cost_nothing() -> None:
    pattern = StepBudget(Dense(), 0.7, 1.0)
    _, skipping = estimate("wan2.1-14b", {"budget": pattern}, **SMALL).settings
    left = 1 - len(skipping.forecast.skipped) / 10
    assert 0 < left < 1 and skipping.denoising == pytest.approx(1 / left) == skipping.attention


def test_seconds_are_operations_at_a_share_of_the_peak() -> None:
    found = estimate("wan2.1-14b", gpu="H100", utilization=0.4, **SMALL)
    for one in found.settings:
        assert one.seconds == pytest.approx(one.flops / (find_gpu("H100").teraflops * 1e12 * 0.4))


def test_a_video_of_few_tokens_waits_for_the_weights() -> None:
    one = estimate("wan2.1-14b", {}, frames=1, height=16, width=16, steps=10, gpu="H100")
    assert one.settings[0].seconds == pytest.approx(10 * 2 * one.weights / 3.35e12)


def test_memory_is_that_of_the_dtype_and_of_both_experts() -> None:
    narrow, wide = estimate("wan2.1-14b", {}, **SMALL), estimate("wan2.2-a14b", {}, dtype="fp32", **SMALL)
    assert narrow.weights == 2 * narrow.parameters and wide.weights == 2 * 4 * wide.parameters
    tokens = narrow.settings[0].forecast.grid.tokens + 512
    assert narrow.activations == 4 * tokens * 5120 * 2 and wide.activations == 2 * narrow.activations


def test_the_published_size_is_the_default() -> None:
    found = estimate("wan2.1-1.3b", {}, steps=4)
    assert (found.frames, found.height, found.width, found.steps) == (81, 480, 832, 4)
    assert found.settings[0].forecast.grid.tokens == 32_760


def test_the_shipped_model_is_known_by_its_files() -> None:
    assert estimate("shapes").settings[1].name == "shapes"


def test_it_is_plain_data() -> None:
    data = estimate("wan2.1-14b", gpu="h100", **SMALL).to_dict()
    assert json.loads(json.dumps(data)) == data
    assert (data["tokens"], data["layers"], data["gpu"]["name"]) == (5 * 30 * 52, 40, "H100")
    assert [one["name"] for one in data["settings"]][:2] == ["dense", "wan2.1-14b"]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"frames": 0}, "frames=0 must be at least 1"),
        ({"steps": -1}, "steps=-1 must be at least 1"),
        ({"width": 8}, "8x480 is smaller than one token"),
        ({"height": 16 * 1025}, "positions for 1024 on each axis"),
        ({"gpu": "TPU"}, "GPU 'TPU' is unknown"),
        ({"utilization": 0.0}, r"utilization=0.0 must be above 0 and at most 1"),
        ({"utilization": 1.5}, r"utilization=1.5 must be above 0 and at most 1"),
        ({"dtype": "int3"}, "int3"),
    ],
    ids=str,
)
def test_what_is_not_possible_is_refused(asked: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        estimate("wan2.1-14b", **{**SMALL, **asked})


def test_a_pattern_of_another_model_is_refused() -> None:
    pattern = StepSchedule(Radial(density=0.2), dense_layers=(40,))
    with pytest.raises(ValueError, match=r"dense_layers \[40\] do not exist: the model has layers 0 to 39"):
        estimate("wan2.1-14b", {"sparse": pattern}, **SMALL)


def test_a_transformer_without_a_pipeline_needs_a_size(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "WanTransformer3DModel", "num_layers": 2}))
    with pytest.raises(ValueError, match=r"do not say its frames, height, width, steps; give them"):
        estimate(str(tmp_path))
    assert estimate(str(tmp_path), {}, **SMALL).settings[0].forecast.layers == 2
