"""MiniMax-H3 and Cosmos 3 in diffusers' own pipelines: what a step computes, and the noise that a layer is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from adapter_checks import Spy
from packed_models import (
    CASES,
    LAYERS,
    NOISE,
    SPARSE,
    TEXT,
    cosmos3,
    cosmos3_blocks,
    h3,
    h3_blocks,
    masked,
    row,
)

from vidsparse import StepSchedule, VideoGrid, sparsify
from vidsparse.runtime.registry import adapter_for


def contexts(pipe: Any, arguments: dict[str, Any]) -> list[Any]:
    """The context of the first layer in each call of a pipeline."""
    spy = Spy()
    object.__setattr__(spy, "seen", [])
    with sparsify(pipe, spy):
        pipe(**arguments)
    return [context for context in spy.seen if context.layer == 0]


def h3_pipeline() -> tuple[Any, dict[str, Any], list[VideoGrid]]:
    """The denoising of diffusers' pipeline, its arguments, and the grids of its calls: five seconds in 96 x 160."""
    pipe = h3_blocks.MiniMaxH3CoreDenoiseStep().init_pipeline()
    sound, video = diffusers.MiniMaxH3Scheduler(shift=3.0), diffusers.MiniMaxH3Scheduler()
    transformer = CASES["h3"].build(in_channels=24, audio_in_channels=32)
    pipe.update_components(transformer=transformer, scheduler=video, audio_scheduler=sound)
    arguments = {"prompt_embeds": torch.ones(1, TEXT, 10), "text_token_tags": torch.ones(TEXT).long()}
    arguments |= {"height": 96, "width": 160, "num_frames": 124, "num_inference_steps": 5}
    return pipe, arguments, [VideoGrid(37, 3, 5, prefix=TEXT + 2 * 207)]


def cosmos3_pipeline() -> tuple[Any, dict[str, Any], list[VideoGrid]]:
    """With sound and classifier-free guidance: two calls in a step, with texts of different lengths."""
    pipe = cosmos3_blocks.Cosmos3VisionSoundCoreDenoiseStep().init_pipeline()
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe.update_components(transformer=CASES["cosmos3-omni"].build(), scheduler=scheduler)
    arguments = {
        "cond_input_ids": list(range(TEXT)),
        "uncond_input_ids": [5, 6],
        "num_frames": 25,
        "height": 80,
        "width": 112,
    }
    arguments |= {"num_inference_steps": 4}
    # Latents of 7 x 5 x 7 and a second of sound.
    return pipe, arguments, [VideoGrid(7, 3, 4, prefix=text, suffix=27) for text in (TEXT, 2)]


@torch.no_grad()
@pytest.mark.parametrize("build", [h3_pipeline, cosmos3_pipeline])
def test_pipelines_are_those_under_the_expanded_mask(build: Callable[..., Any]) -> None:
    pipe, arguments, grids = build()
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator()

    def latents() -> torch.Tensor:
        return row(pipe(**arguments, generator=generator.manual_seed(4), output="latents"))

    with masked(pipe.transformer, SPARSE, *grids):
        expected = latents()
    with sparsify(pipe, SPARSE, strict=True) as run:
        torch.testing.assert_close(latents(), expected, rtol=1e-3, atol=1e-3)
    calls = run.report().calls
    assert {c.tokens for c in calls} == {grid.tokens for grid in grids}
    assert sorted({c.step for c in calls}) == [0, 1, 2, 3] and len(calls) == 4 * len(grids) * LAYERS
    with sparsify(pipe, StepSchedule(SPARSE, dense_last_steps=1)) as run:
        latents()
    assert {c.step for c in run.report().calls if c.reason} == {3}


@torch.no_grad()
@pytest.mark.parametrize("build", [h3_pipeline, cosmos3_pipeline])
def test_the_noise_is_that_of_the_scheduler(build: Callable[..., Any]) -> None:
    pipe, arguments, grids = build()
    pipe.set_progress_bar_config(disable=True)
    found = contexts(pipe, arguments)
    sigmas = pipe.scheduler.sigmas[:4].repeat_interleave(len(grids))
    assert [context.sigma for context in found] == pytest.approx(sigmas.tolist(), abs=1e-3)
    assert [(c.step, c.steps, c.branch) for c in found] == [(i, 4, b) for i in range(4) for b in range(len(grids))]


@torch.no_grad()
def test_noise_is_that_of_the_video_or_else_of_what_has_some() -> None:
    transformer = CASES["h3-references"].build()
    noise = torch.zeros
    arguments = h3(transformer, (3, 5, 7), TEXT, 1, noise, refers=True)
    assert adapter_for(transformer).timestep(transformer, arguments) == pytest.approx(1000 * NOISE)
    transformer = CASES["cosmos3-omni"].build()
    arguments = cosmos3(transformer, (3, 5, 7), TEXT, 1, noise, sounds=True) | {"vision_timesteps": torch.zeros(0)}
    assert adapter_for(transformer).timestep(transformer, arguments) == pytest.approx(1000 * NOISE)
