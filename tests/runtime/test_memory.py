"""What patterns and corrections keep from step to step: for which calls, for how long, and how much of it."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FasterCacheConfig,
    FlowMatchEulerDiscreteScheduler,
)
from tiny_wan import SIZES, SPARSE, WITHOUT_PROMPT, Pipeline, call, tiny

from vidsparse import BlockMap, Context, Correction, Report, Reshaped, Reuse, TopBlocks, VideoGrid, sparsify
from vidsparse.block_map import Plan
from vidsparse.runtime.report import LayerCall
from vidsparse.runtime.steps import BRANCHES


@dataclass(frozen=True)
class Counted(TopBlocks):
    """Notes step, branch and batch size of each map that it chooses in the first layer."""

    chosen: list[tuple[int, int, int]] = field(default_factory=list, compare=False)

    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> BlockMap:
        if context.layer == 0:
            self.chosen.append((context.step, context.branch, len(query)))
        found = super().select(query, key, grid, context)
        assert isinstance(found, BlockMap)
        return found


def counted() -> Counted:
    return Counted(density=0.3, tile=(1, 4, 4))


def memories(transformer: Any) -> list[int]:
    """How many branches each layer keeps something of."""
    return [len(block.attn1.processor.layer.memories) for block in transformer.blocks]


def texts(number: int) -> dict[str, torch.Tensor]:
    return {"encoder_hidden_states": torch.full((1, 7, 16), float(number))}


@torch.no_grad()
def test_the_same_call_again_is_the_same_branch() -> None:
    transformer, pattern, sizes = tiny(), counted(), SIZES["one-frame"]
    with sparsify(transformer, Reuse(pattern), correction=Reshaped()) as run:
        for _ in range(50):
            call(transformer, sizes, timestep=500.0)
            call(transformer, sizes, timestep=500.0, **WITHOUT_PROMPT)
        assert memories(transformer) == [2, 2]
        kept = run.report().kept_bytes
    assert pattern.chosen == [(0, 0, 1), (0, 1, 1)]
    with sparsify(transformer, Reuse(counted()), correction=Reshaped()) as run:
        call(transformer, sizes, timestep=500.0)
        call(transformer, sizes, timestep=500.0, **WITHOUT_PROMPT)
    assert kept == run.report().kept_bytes


@torch.no_grad()
def test_many_videos_at_one_noise_level_keep_a_bounded_memory_and_share_none() -> None:
    transformer, pattern = tiny(), counted()
    with sparsify(transformer, Reuse(pattern)):
        for number in range(3 * BRANCHES):
            call(transformer, SIZES["one-frame"], **texts(number))
            assert max(memories(transformer)) <= BRANCHES
    assert len(pattern.chosen) == 3 * BRANCHES


@torch.no_grad()
def test_a_buffer_that_was_written_to_is_another_branch() -> None:
    transformer, pattern, text = tiny(), counted(), torch.zeros(1, 7, 16)
    with sparsify(transformer, Reuse(pattern)):
        call(transformer, encoder_hidden_states=text)
        call(transformer, encoder_hidden_states=text.add_(1.0))
    assert [branch for _, branch, _ in pattern.chosen] == [0, 1]


def test_arguments_are_not_kept_with_their_gradients() -> None:
    transformer = tiny()
    text = torch.zeros(1, 7, 16, requires_grad=True)
    with sparsify(transformer, SPARSE):
        call(transformer, encoder_hidden_states=2 * text)
        (known,) = transformer.blocks[0].attn1.processor.layer.clock.steps._calls
    assert known.arguments["encoder_hidden_states"].tensor.grad_fn is None


@torch.no_grad()
def test_each_branch_has_its_memory_until_its_own_last_call() -> None:
    transformer, scheduler, pattern = tiny(), FlowMatchEulerDiscreteScheduler(), counted()
    scheduler.set_timesteps(3)
    pipe, kept = Pipeline(transformer=transformer, scheduler=scheduler), []
    with sparsify(pipe, Reuse(pattern), correction=Reshaped(refresh_every=9)) as run:
        for timestep in scheduler.timesteps:
            for prompt in ({}, WITHOUT_PROMPT):
                call(transformer, timestep=float(timestep), **prompt)
                kept.append(memories(transformer)[0])
    assert kept == [1, 2, 2, 2, 1, 0]
    assert pattern.chosen == [(0, 0, 1), (0, 1, 1)]
    assert [c.step for c in run.report().calls if c.density == 1.0] == [0, 0]  # of two layers


@torch.no_grad()
@pytest.mark.parametrize("skipped", [0, 1], ids=["first-layer", "second-layer"])
def test_a_cache_that_skips_layers_in_the_last_step_leaves_no_memory(skipped: int) -> None:
    transformer, scheduler = tiny(), FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(3)
    pipe = Pipeline(transformer=transformer, scheduler=scheduler)
    with sparsify(pipe, SPARSE, correction=Reshaped()):
        for timestep in scheduler.timesteps[:2]:
            call(transformer, timestep=float(timestep))
        assert memories(transformer) == [1, 1]
        transformer.blocks[skipped].forward = lambda hidden_states, *_: hidden_states
        call(transformer, timestep=float(scheduler.timesteps[2]))
        assert memories(transformer) == [0, 0]
        assert not any(known.arguments for known in transformer.blocks[0].attn1.processor.layer.clock.steps._calls)


@torch.no_grad()
def test_a_video_that_was_broken_off_leaves_no_memory_to_the_next() -> None:
    transformer = tiny()
    with sparsify(transformer, SPARSE, correction=Reshaped()):
        call(transformer, timestep=900.0)
        call(transformer, timestep=900.0, **WITHOUT_PROMPT)
        held = transformer.blocks[1].attn1.processor.layer.memories[1]
        transformer.blocks[1].forward = lambda hidden_states, *_: hidden_states  # not even asked for attention
        call(transformer, timestep=950.0)
        layer = transformer.blocks[1].attn1.processor.layer
        assert 1 not in layer.memories and layer.memories[0] is not held


class Held:
    """Something that a pattern keeps."""

    nbytes = 1


@dataclass(frozen=True)
class Holding(TopBlocks):
    """Keeps an object under a name that a correction might use."""

    held: list[weakref.ref[Held]] = field(default_factory=list, compare=False)

    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> Plan:
        kept = context.memory.setdefault("correction", Held())
        self.held.append(weakref.ref(kept))
        return super().select(query, key, grid, context)


@torch.no_grad()
@pytest.mark.parametrize("correction", [None, Reshaped()], ids=["alone", "with-a-correction"])
def test_what_was_kept_is_freed_when_a_video_ends(correction: Correction | None) -> None:
    transformer, scheduler, pattern = tiny(), FlowMatchEulerDiscreteScheduler(), Holding(density=0.3, tile=(1, 4, 4))
    scheduler.set_timesteps(2)
    pipe = Pipeline(transformer=transformer, scheduler=scheduler)
    with sparsify(pipe, pattern, correction=correction):
        for timestep in scheduler.timesteps:
            assert all(held() is not None for held in pattern.held)
            call(transformer, timestep=float(timestep))
        assert len({id(held) for held in pattern.held}) == 2, "one object for each layer"
        assert all(held() is None for held in pattern.held)


@torch.no_grad()
def test_a_clock_refers_to_no_transformer() -> None:
    transformer = tiny()
    with sparsify(transformer, SPARSE):
        call(transformer)
        (known,) = transformer.blocks[0].attn1.processor.layer.clock.steps._calls
    assert transformer not in known.arguments.values() and "self" not in known.arguments


def test_a_layer_that_runs_in_two_ways_keeps_its_bytes_once() -> None:
    ways = [LayerCall("transformer", 0, 3, 60, impl, None, (), None, 1.0, kept_bytes=8) for impl in ("cpu", "dense")]
    other = LayerCall("transformer", 1, 3, 60, "cpu", None, (), None, 1.0, kept_bytes=5)
    assert Report((*ways, other), "pattern").kept_bytes == 13


@torch.no_grad()
def test_half_of_the_batch_has_a_memory_of_its_own() -> None:
    """A cache leaves the half without the prompt out in two of three steps."""
    transformer, pattern = tiny(), counted()
    batches = [2, 1, 1] * 4
    with sparsify(transformer, Reuse(pattern), correction=Reshaped(refresh_every=99)) as run:
        for step, batch in enumerate(batches):
            call(transformer, timestep=900.0 - 50 * step, batch=batch)
    assert pattern.chosen == [(0, 0, 2), (1, 0, 1)]
    exact = [c.step for c in run.report().calls if c.layer == 0 and c.density == 1.0]
    assert exact == [0, 1]


@torch.no_grad()
def test_at_most_two_batch_sizes_are_kept() -> None:
    transformer, pattern = tiny(), counted()
    with sparsify(transformer, Reuse(pattern)):
        for step, batch in enumerate([1, 2, 3, 3, 2, 1]):
            call(transformer, SIZES["one-frame"], timestep=900.0 - 50 * step, batch=batch)
            assert len(transformer.blocks[0].attn1.processor.layer.memories[0]) <= 2
    assert [batch for _, _, batch in pattern.chosen] == [1, 2, 3, 1]


def test_corrections_under_faster_cache() -> None:
    """FasterCache hands blocks the half with the prompt alone in two of three steps, and skips layers."""
    torch.manual_seed(0)
    config = dict(num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8)
    config |= dict(text_embed_dim=16, num_layers=2, sample_width=8, sample_height=8, sample_frames=9)
    transformer = CogVideoXTransformer3DModel(**config, max_text_seq_length=8, use_rotary_positional_embeddings=True)
    blocks = ("CogVideoXDownBlock3D",) * 4, ("CogVideoXUpBlock3D",) * 4
    channels = dict(block_out_channels=(8,) * 4, latent_channels=4, layers_per_block=1, norm_num_groups=2)
    vae = AutoencoderKLCogVideoX(down_block_types=blocks[0], up_block_types=blocks[1], **channels)
    scheduler = CogVideoXDDIMScheduler()
    pipe: Any = CogVideoXPipeline(None, None, vae, transformer.eval(), scheduler)  # type: ignore[arg-type]
    pipe.set_progress_bar_config(disable=True)
    text = torch.randn(2, 1, 8, 16)
    pipe.transformer.enable_cache(
        FasterCacheConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(-1, 2000),
            unconditional_batch_skip_range=3,
            unconditional_batch_timestep_skip_range=(-1, 2000),
            attention_weight_callback=lambda _: 0.3,
            tensor_format="BFCHW",
            current_timestep_callback=lambda: pipe._current_timestep,
        )
    )
    pattern = counted()
    with sparsify(pipe, Reuse(pattern), correction=Reshaped(refresh_every=99)) as run:
        pipe(
            prompt_embeds=text[0],
            negative_prompt_embeds=text[1],
            height=64,
            width=64,
            num_frames=9,
            num_inference_steps=12,
            guidance_scale=3.0,
            output_type="latent",
            max_sequence_length=8,
        )
        assert sorted({batch for _, _, batch in pattern.chosen}) == [1, 2] and len(pattern.chosen) == 2
        exact = [c.step for c in run.report().calls if c.layer == 0 and c.density == 1.0]
        assert len(exact) == 2, "one dense call for each batch size"
        assert all(not block.attn1.processor.layer.memories for block in pipe.transformer.transformer_blocks)
