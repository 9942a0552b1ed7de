"""Experts whose tokens differ in size: which of them counts, and what its steps cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vidsparse.generation.cascade import finest, noise_levels, step_costs, token_volume
from vidsparse.generation.forecast import forecast
from vidsparse.generation.frames import geometry
from vidsparse.patterns import Radial, StepSchedule


def model(folder: Path, patches: list[tuple[int, int, int]], boundary: float | None, shift: float) -> str:
    """The folder of a Wan pipeline, without weights."""
    parts = dict(zip(("transformer", "transformer_2"), patches, strict=False))
    index = {"_class_name": "WanPipeline", "boundary_ratio": boundary}
    index |= {name: ["diffusers", "WanTransformer3DModel"] for name in parts}  # type: ignore[misc]
    files = {"model_index.json": index, "scheduler/scheduler_config.json": {"flow_shift": shift}}
    for name, patch in parts.items():
        files[f"{name}/config.json"] = {"_class_name": "WanTransformer3DModel", "patch_size": patch, "num_layers": 2}
    for name, values in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(values))
    return str(folder)


def test_the_steps_of_coarse_tokens_cost_the_square_of_their_share(tmp_path: Path) -> None:
    # Noise with a shift of 3 in four steps: 1, 0.9, 0.75, 0.5.
    assert step_costs(model(tmp_path, [(1, 2, 2), (1, 1, 1)], 0.75, 3.0), 4) == (1 / 16, 1 / 16, 1 / 16, 1.0)
    assert step_costs(model(tmp_path, [(1, 2, 2), (1, 1, 1)], 0.76, 3.0), 4) == (1 / 16, 1 / 16, 1.0, 1.0)


def test_noise_levels_take_the_shift_of_the_scheduler(tmp_path: Path) -> None:
    assert noise_levels(model(tmp_path, [(1, 1, 1)], None, 3.0), 4) == pytest.approx((1, 0.9, 0.75, 0.5))
    assert noise_levels(str(tmp_path), 2, 4.0) == pytest.approx((1, 0.8))
    (tmp_path / "scheduler/scheduler_config.json").write_text('{"shift": 3.0}')
    assert noise_levels(str(tmp_path), 2) == pytest.approx((1, 0.75))
    (tmp_path / "scheduler/scheduler_config.json").unlink()
    assert noise_levels(str(tmp_path), 4) == (1, 0.75, 0.5, 0.25)


@pytest.mark.parametrize("patches", [[(1, 2, 2)], [(1, 2, 2), (1, 2, 2)], [(1, 1, 1), (1, 2, 2)]])
def test_all_steps_cost_the_same_elsewhere(patches: list[tuple[int, int, int]], tmp_path: Path) -> None:
    assert step_costs(model(tmp_path, patches, 0.875, 3.0), 3) == (1.0, 1.0, 1.0)


def test_the_finest_transformer_counts(tmp_path: Path) -> None:
    small, large = ((torch.nn.Module, {}), (torch.nn.Linear, {}))
    with pytest.raises(NotImplementedError):
        finest({"transformer": small, "transformer_2": large})
    name = model(tmp_path, [(1, 2, 2), (1, 1, 1)], 0.8, 5.0)
    assert geometry(name).patch == (1, 1, 1)


def test_the_first_of_equals_counts() -> None:
    from diffusers import WanTransformer3DModel

    one, other = (WanTransformer3DModel, {"num_layers": 1}), (WanTransformer3DModel, {"num_layers": 2})
    assert finest({"transformer": one, "transformer_2": other}) is one
    assert token_volume(one) == 4


def test_the_forecast_weighs_steps_by_their_cost(tmp_path: Path) -> None:
    pattern = StepSchedule(Radial(density=0.25), dense_steps=2)
    found = forecast(model(tmp_path, [(1, 2, 2), (1, 1, 1)], 0.8, 5.0), pattern, 33, 128, 128, 4)
    assert found.grid.view == (9, 16, 16) and found.costs == (1 / 16, 1 / 16, 1 / 16, 1.0)
    # The steps 0 and 1 are dense, 2 and 3 sparse.
    expected = (2 / 16 + (1 / 16 + 1) * found.token_density) / (3 / 16 + 1)
    assert found.saved == pytest.approx(1 - expected)
