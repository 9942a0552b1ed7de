"""What Cosmos, Kandinsky 5, VACE and SkyReels-V2 do alone: their noise, masks, conditions and sizes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import diffusers
import pytest
import torch
from adapter_checks import Spy, attentions
from models_without_text import FAMILIES, SPARSE, Family
from pipelines_with_inputs import skyreels

from vidsparse import VideoGrid, sparsify
from vidsparse.doctor import masked
from vidsparse.runtime.registry import adapter_for

# Noise


def contexts(
    family: Family, transformer: Any, timesteps: list[Any], view: Any = (3, 2, 2), **changes: Any
) -> list[Any]:
    """The context of the first layer at each of these timesteps."""
    spy = Spy()
    object.__setattr__(spy, "seen", [])
    with torch.no_grad(), sparsify(transformer, spy):
        for timestep in timesteps:
            family.call(transformer, view, timestep=timestep, **changes)
    return [context for context in spy.seen if context.layer == 0]


def test_cosmos_1_is_told_the_logarithm_of_the_noise() -> None:
    scheduler = diffusers.EDMEulerScheduler(sigma_max=80.0, sigma_data=1.0, final_sigmas_type="sigma_min")
    scheduler.set_timesteps(6)
    family = FAMILIES["cosmos1"]
    found = contexts(family, family.build(), list(scheduler.timesteps))
    sigmas = scheduler.sigmas[:6]
    assert [context.sigma for context in found] == pytest.approx((sigmas / (1 + sigmas)).tolist(), rel=1e-4)
    assert [context.step for context in found] == list(range(6))


def test_cosmos_2_is_told_the_time_of_flow_matching() -> None:
    # The first frame is a condition with noise of its own, more than what the others have left in the last step.
    family = FAMILIES["cosmos2"]
    frames = torch.tensor([0.1, 1.0, 1.0])
    timesteps = [torch.where(frames < 1, frames, noise).view(1, 1, 3, 1, 1) for noise in (0.98, 0.5, 0.05)]
    found = contexts(family, family.build(), timesteps)
    assert [(context.step, context.sigma) for context in found] == [
        (step, pytest.approx(sigma)) for step, sigma in enumerate((0.98, 0.5, 0.05))
    ]


# What single families do


@torch.no_grad()
def test_skyreels_with_blocks_of_frames_runs_dense() -> None:
    family = FAMILIES["skyreels"]
    transformer, view = family.build(), (4, 3, 5)
    transformer._set_ar_attention(2)
    changes = {"timestep": torch.tensor([[800.0, 800.0, 800.0, 800.0]]), "enable_diffusion_forcing": True}
    expected = family.call(transformer, view, **changes)
    with sparsify(transformer, SPARSE) as run:
        assert torch.equal(family.call(transformer, view, **changes), expected)
    assert run.report().dense_reasons == {"the call has an attention mask": 2}


@torch.no_grad()
def test_skyreels_with_frames_at_different_steps_is_the_model_under_the_mask() -> None:
    family = FAMILIES["skyreels"]
    transformer, view = family.build(), (4, 3, 5)
    changes = {"timestep": torch.tensor([[300.0, 300.0, 999.0, 999.0]]), "enable_diffusion_forcing": True}
    with masked(transformer, SPARSE, VideoGrid(*view)):
        expected = family.call(transformer, view, **changes)
    with sparsify(transformer, SPARSE, strict=True) as run:
        torch.testing.assert_close(family.call(transformer, view, **changes), expected, rtol=1e-4, atol=1e-4)
    assert run.report().sparse_calls == 2


def test_skyreels_counts_the_mean_noise_of_frames_at_different_steps() -> None:
    family = FAMILIES["skyreels"]
    frames = (
        [999.0, 999.0, 999.0, 999.0],
        [500.0, 999.0, 999.0, 999.0],
        [0.0, 500.0, 999.0, 999.0],
        [0.0, 0.0, 0.0, 500.0],  # those without noise look like given ones
        [20.0, 400.0, 400.0, 400.0],  # another video, whose first frame is given: the noisiest counts
        [20.0, 300.0, 300.0, 300.0],
    )
    timesteps = [torch.tensor([noise]) for noise in frames]
    found = contexts(family, family.build(), timesteps, (4, 3, 5), enable_diffusion_forcing=True)
    assert [context.sigma for context in found] == pytest.approx([0.999, 0.87425, 0.6245, 0.125, 0.4, 0.3])
    assert [context.step for context in found] == [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize("ready", [0, 5])  # frames of an earlier video
@pytest.mark.parametrize("frames, window", [(25, 25), (31, 25)])
def test_noise_of_skyreels_rises_only_where_the_window_moves_on(frames: int, window: int, ready: int) -> None:
    pipe = skyreels()
    scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8)
    scheduler.set_timesteps(30)
    matrix, _, _, windows = pipe.generate_timestep_matrix(frames, scheduler.timesteps, window, 5, ready)
    adapter = adapter_for(pipe.transformer)
    # Guidance calls the transformer twice.
    found = [
        [adapter.timestep(pipe.transformer, {"timestep": row[None, first:last].expand(2, -1)}) for _ in range(2)]
        for row, (first, last) in zip(matrix, windows, strict=True)
    ]
    assert all(once == again for once, again in found)
    same_window = [before == after for before, after in pairwise(windows)]
    assert sum(same_window) > 100
    for (before, _), (after, _), same in zip(found, found[1:], same_window, strict=False):
        assert after < before or not same


@torch.no_grad()
def test_kandinsky_with_attention_of_its_own_runs_dense() -> None:
    family = FAMILIES["kandinsky5"]
    transformer, view = family.build(), (2, 8, 8)
    own = {"sparse_params": {"to_fractal": False, "sta_mask": torch.ones(2, 2, dtype=torch.bool), "P": 0.9}}
    message = r"nabla.* is on; .*attention_type='regular'"
    with sparsify(transformer, SPARSE, strict=True), pytest.raises(NotImplementedError, match=message):
        family.call(transformer, view, **own)


@torch.no_grad()
def test_cosmos_with_a_condition_mask_and_control() -> None:
    family = FAMILIES["cosmos2"]
    transformer = family.build(in_channels=5, controlnet_block_every_n=1)
    changes = {
        "condition_mask": torch.ones(1, 1, 5, 14, 22),
        "block_controlnet_hidden_states": [torch.randn(1, 385, 24) for _ in range(2)],
    }
    with masked(transformer, SPARSE, VideoGrid(5, 7, 11)):
        expected = family.call(transformer, **changes)
    with sparsify(transformer, SPARSE, strict=True):
        torch.testing.assert_close(family.call(transformer, **changes), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["vace", "skyreels"])
def test_pixels_that_fill_no_patch(name: str) -> None:
    family = FAMILIES[name]
    transformer, changes = family.build(), {"hidden_states": torch.randn(1, 4, 4, 11, 9)}
    if name == "vace":
        changes["control_hidden_states"] = torch.randn(1, 6, 4, 11, 9)
    with masked(transformer, SPARSE, VideoGrid(4, 5, 4)):
        expected = family.call(transformer, **changes)
    with sparsify(transformer, SPARSE, strict=True):
        torch.testing.assert_close(family.call(transformer, **changes), expected, rtol=1e-4, atol=1e-4)


def test_layers_of_vace_are_in_the_order_they_run() -> None:
    transformer = FAMILIES["vace"].build()
    assert list(attentions(transformer)) == ["vace_blocks.0.attn1", "blocks.0.attn1", "blocks.1.attn1"]


@pytest.mark.parametrize("base_num_frames", [17, 9])  # the whole video, and a window that moves over it
def test_asynchronous_diffusion_forcing_of_a_pipeline_runs_sparse(base_num_frames: int) -> None:
    pipe, seen = skyreels(), []
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["timestep"][0].tolist()), with_kwargs=True
    )
    words = {"num_inference_steps": 4, "ar_step": 2, "guidance_scale": 3.0, "output_type": "latent"}
    with sparsify(pipe, SPARSE, strict=True) as run:
        pipe("a ball", height=32, width=48, num_frames=17, base_num_frames=base_num_frames, overlap_history=5, **words)
    report = run.report()
    assert any(len(set(noise)) > 2 for noise in seen)  # frames that are done, on their way and not begun
    assert report.sparse_calls == len(seen) * len(pipe.transformer.blocks) and not report.dense_calls
