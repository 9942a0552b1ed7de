"""What LTX and LTX-2 do alone: coordinates and conditions of the video, guidance, masks and patches."""

from __future__ import annotations

import diffusers
import pytest
import torch
from models_without_text import FAMILIES, SPARSE

from vidsparse import VideoGrid, sparsify
from vidsparse.doctor import masked


def video_ids(frames: int, height: int, width: int, start: int = 0) -> torch.Tensor:
    """Coordinates [1, 3, tokens] as LTX's condition pipeline makes them, times in seconds."""
    pipeline = diffusers.LTXConditionPipeline
    ids = pipeline._prepare_video_ids(1, frames, height, width)
    scaled: torch.Tensor = pipeline._scale_video_ids(ids, frame_index=start).float()
    scaled[:, 0] /= 25
    return scaled


CONDITIONS = {
    "none": [(5, 7, 11, 0)],
    "before": [(1, 7, 11, 8), (2, 7, 11, 24), (5, 7, 11, 0)],
    "after": [(5, 7, 11, 0), (1, 7, 11, -1)],
}


@torch.no_grad()
@pytest.mark.parametrize("parts", CONDITIONS.values(), ids=CONDITIONS)
@pytest.mark.parametrize("name", ["ltx", "ltx2"])
def test_coordinates_tell_the_video_from_its_conditions(name: str, parts: list[tuple[int, int, int, int]]) -> None:
    family = FAMILIES[name]
    coords = torch.cat([video_ids(*part) for part in parts], dim=2)
    coords = coords.repeat_interleave(2, dim=0)
    before = sum(part[0] for part in parts[: parts.index((5, 7, 11, 0))]) * 77
    grid = VideoGrid(5, 7, 11, prefix=before, suffix=coords.shape[2] - 385 - before)
    changes = {
        "hidden_states": torch.randn(2, grid.tokens, 4),
        "video_coords": coords if name == "ltx" else torch.stack((coords, coords + 1), dim=-1),
        "num_frames": None,
        "height": None,
        "width": None,
        "batch": 2,
    }
    transformer = family.build()
    with masked(transformer, SPARSE, grid):
        expected = family.call(transformer, **changes)
    with sparsify(transformer, SPARSE, strict=True) as run:
        torch.testing.assert_close(family.call(transformer, **changes), expected, rtol=1e-4, atol=1e-4)
    assert {call.tokens for call in run.report().calls} == {grid.tokens}
    assert run.report().density == SPARSE.plan(grid).density


@torch.no_grad()
def test_coordinates_of_no_grid_run_dense() -> None:
    family = FAMILIES["ltx"]
    transformer = family.build()
    coords = video_ids(5, 7, 11)[..., torch.randperm(385)]
    expected = family.call(transformer, video_coords=coords)
    with sparsify(transformer, SPARSE) as run:
        assert torch.equal(family.call(transformer, video_coords=coords), expected)
        family.call(transformer)
    reasons = {"the video coordinates are those of no grid of frames x height x width": 2}
    assert run.report().dense_reasons == reasons and run.report().sparse_calls == 2


@torch.no_grad()
def test_ltx2_key_frames_after_the_video_are_a_suffix() -> None:
    family = FAMILIES["ltx2"]
    transformer, grid = family.build(), VideoGrid(5, 7, 11, suffix=20)
    coords = transformer.rope.prepare_video_coords(1, 5, 7, 11, torch.device("cpu"))
    changes = {
        "hidden_states": torch.randn(1, grid.tokens, 4),
        "video_coords": torch.cat((coords, coords[:, :, :20]), dim=2),
    }
    with masked(transformer, SPARSE, grid):
        expected = family.call(transformer, **changes)
    with sparsify(transformer, SPARSE, strict=True):
        torch.testing.assert_close(family.call(transformer, **changes), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("mask", [None, [1.0, 0.0], [0.0, 0.0]], ids=["whole-batch", "one-of-two", "given-for-all"])
def test_ltx2_spatio_temporal_guidance(mask: list[float] | None) -> None:
    family = FAMILIES["ltx2.3"]
    transformer = family.build()
    changes = {"batch": 2, "spatio_temporal_guidance_blocks": [1]}
    changes["perturbation_mask"] = None if mask is None else torch.tensor(mask)
    with masked(transformer, SPARSE, VideoGrid(5, 7, 11)):
        expected = family.call(transformer, **changes)
    with sparsify(transformer, SPARSE, strict=True) as run:
        torch.testing.assert_close(family.call(transformer, **changes), expected, rtol=1e-4, atol=1e-4)
    assert run.report().sparse_calls == (2 if mask == [1.0, 0.0] else 1)


@torch.no_grad()
def test_ltx2_patches_of_latents() -> None:
    family = FAMILIES["ltx2"]
    transformer = family.build(patch_size=2, patch_size_t=1)
    changes = {"height": 13, "width": 22}  # 7 x 11 patches
    with masked(transformer, SPARSE, VideoGrid(5, 7, 11)):
        expected = family.call(transformer, **changes)
    with sparsify(transformer, SPARSE, strict=True):
        torch.testing.assert_close(family.call(transformer, **changes), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_self_attention_mask_of_ltx2_runs_dense() -> None:
    family = FAMILIES["ltx2"]
    transformer = family.build()
    changes = {"video_self_attention_mask": torch.rand(1, 12, 12), "num_frames": 3, "height": 2, "width": 2}
    expected = family.call(transformer, (3, 2, 2), **changes)
    with sparsify(transformer, SPARSE) as run:
        assert torch.equal(family.call(transformer, (3, 2, 2), **changes), expected)
    assert run.report().dense_reasons == {"the call has an attention mask": 2}
