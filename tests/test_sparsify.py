"""`sparsify` and `attn_processors` on tiny random Wan models: what runs, what is counted, what is left behind.

The oracle is diffusers' own processor with the block map, expanded to tokens, as its attention mask.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

import vidsparse
import vidsparse.layer
from vidsparse import (
    Dense,
    Pattern,
    Radial,
    RadialRaster,
    SlidingTile,
    StepSchedule,
    VideoGrid,
    attn_processors,
    sparsify,
)
from vidsparse.attention import Choice
from vidsparse.shapes.model import build_text_encoder, build_tokenizer, build_transformer, build_vae

SPARSE = Radial(density=0.3, tile=(1, 4, 4))
PATTERNS: dict[str, Pattern] = {
    "radial": SPARSE,
    "raster": RadialRaster(block=32),
    "sliding": SlidingTile(window=(2, 6, 6), tile=(1, 3, 4)),
}
SIZES = {"5x7x11": (5, 14, 22), "odd-pixels": (4, 11, 9), "one-frame": (1, 10, 12)}  # latents, patched (1, 2, 2)
TEXT_TOKENS = 7
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not here")


def tiny(**changes: Any) -> WanTransformer3DModel:
    """Two layers of two heads; the same random weights for the same settings."""
    settings: dict[str, Any] = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 32,
        "ffn_dim": 32,
        "num_layers": 2,
        "rope_max_seq_len": 64,
    }
    with torch.random.fork_rng():
        torch.manual_seed(1)
        transformer = WanTransformer3DModel(**(settings | changes))
        for name, parameter in transformer.named_parameters():
            if ".attn1.to_" in name:
                torch.nn.init.normal_(parameter, std=0.3)  # so that attention is far from uniform
    return transformer.eval()


def call(transformer: torch.nn.Module, sizes: tuple[int, int, int] = SIZES["5x7x11"], **changes: Any) -> torch.Tensor:
    """One forward pass with random inputs, the same for the same sizes."""
    batch, timestep = changes.pop("batch", 1), torch.as_tensor(changes.pop("timestep", 500.0))
    generator = torch.Generator().manual_seed(2)
    parameter = next(transformer.parameters())
    arguments = {
        "hidden_states": torch.randn(batch, 4, *sizes, generator=generator).to(parameter),
        "encoder_hidden_states": torch.randn(batch, TEXT_TOKENS, 16, generator=generator).to(parameter),
        "timestep": timestep.expand(batch) if timestep.ndim == 0 else timestep,
        "return_dict": False,
    }
    out: torch.Tensor = transformer(**(arguments | changes))[0]
    return out


def tokens_of(sizes: tuple[int, int, int]) -> VideoGrid:
    return VideoGrid(sizes[0], sizes[1] // 2, sizes[2] // 2)


@contextmanager
def masked(transformer: Any, pattern: Pattern, grid: VideoGrid) -> Iterator[None]:
    """The oracle: the model's own self-attention, given the expanded block map as its mask."""
    mask = pattern.plan(grid).token_mask()
    originals = [block.attn1.processor for block in transformer.blocks]

    def with_mask(original: Any) -> Callable[..., torch.Tensor]:
        def processor(
            attn: Any, hidden: Any, text: Any = None, no_mask: Any = None, rotary: Any = None
        ) -> torch.Tensor:
            out: torch.Tensor = original(attn, hidden, text, mask, rotary)
            return out

        return processor

    for block, original in zip(transformer.blocks, originals, strict=True):
        block.attn1.processor = with_mask(original)
    try:
        yield
    finally:
        for block, original in zip(transformer.blocks, originals, strict=True):
            block.attn1.processor = original


def gradients(transformer: torch.nn.Module, **changes: Any) -> dict[str, torch.Tensor]:
    transformer.zero_grad()
    call(transformer, **changes).square().mean().backward()
    return {name: p.grad.clone() for name, p in transformer.named_parameters() if p.grad is not None}


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert any(".attn1.to_q" in name for name in found)
    for name, wanted in expected.items():
        torch.testing.assert_close(
            found[name], wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()) + 1e-8, msg=name
        )


def state(transformer: Any) -> tuple[list[int], int]:
    """Identities of all processors, and the number of hooks."""
    processors = [id(p) for p in transformer.attn_processors.values()]
    return processors, len(transformer._forward_pre_hooks) + len(transformer._forward_hooks)


class Pipeline:
    """What `sparsify` needs of a pipeline."""

    def __init__(self, **parts: Any):
        self.__dict__.update(parts)


def wan_pipeline(experts: int = 1, scheduler: Any = None) -> WanPipeline:
    torch.manual_seed(3)
    transformers = [build_transformer(num_layers=2, num_attention_heads=1).eval() for _ in range(experts)]
    pipe = WanPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=build_text_encoder().eval(),
        vae=build_vae().eval(),
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=transformers[0],
        transformer_2=transformers[1] if experts == 2 else None,
        boundary_ratio=0.5 if experts == 2 else None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: WanPipeline, steps: int = 4, size: int = 32, **changes: Any) -> torch.Tensor:
    settings = dict(height=size, width=size, num_frames=9, guidance_scale=3.0, max_sequence_length=32)
    generator = torch.Generator().manual_seed(4)
    prompt = "a red circle moving left on a blue background"
    latents: torch.Tensor = pipe(
        prompt, num_inference_steps=steps, generator=generator, output_type="latent", **(settings | changes)
    ).frames
    return latents


# What a sparse model computes


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 2], ids=["batch1", "batch2"])
def test_dense_pattern_is_the_untouched_model(batch: int) -> None:
    transformer = tiny()
    expected = call(transformer, batch=batch)
    with sparsify(transformer, Dense()):
        assert torch.equal(call(transformer, batch=batch), expected)


@torch.no_grad()
@pytest.mark.parametrize("impl", ["cpu", "flex", "reference"])
@pytest.mark.parametrize(
    "pattern", [Radial(density=1.0), SlidingTile(window=(99, 99, 99))], ids=["radial-density1", "sliding-full"]
)
def test_a_pattern_that_keeps_all_is_the_untouched_model_to_rounding(pattern: Pattern, impl: str) -> None:
    transformer, sizes = tiny(), SIZES["one-frame"]
    expected = call(transformer, sizes)
    with sparsify(transformer, pattern, impl=impl) as run:
        torch.testing.assert_close(call(transformer, sizes), expected, rtol=1e-4, atol=1e-5)
    assert run.report().dense_reasons == {}


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 2], ids=["batch1", "batch2"])
@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_a_sparse_model_is_the_model_under_the_expanded_mask(
    pattern: Pattern, sizes: tuple[int, int, int], impl: str, batch: int
) -> None:
    transformer, grid = tiny(), tokens_of(sizes)
    with masked(transformer, pattern, grid):
        expected = call(transformer, sizes, batch=batch)
    with sparsify(transformer, pattern, impl=impl):
        torch.testing.assert_close(call(transformer, sizes, batch=batch), expected, rtol=1e-4, atol=1e-5)
    if pattern.plan(grid).density < 1:
        untouched = call(transformer, sizes, batch=batch)
        assert (untouched - expected).abs().max() > 1e-3, "the mask changes nothing, so this test shows nothing"


@torch.no_grad()
@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_a_sparse_model_in_bfloat16(impl: str) -> None:
    sizes = SIZES["5x7x11"]
    transformer = tiny()
    with masked(transformer, SPARSE, tokens_of(sizes)):
        exact = call(transformer.to(torch.float32))
        plain = call(transformer.to(torch.bfloat16))
    with sparsify(transformer, SPARSE, impl=impl):
        found = call(transformer)
    assert found.dtype == torch.bfloat16
    error, allowed = ((x.float() - exact).abs().max() for x in (found, plain))
    assert error <= 2 * allowed + torch.finfo(torch.bfloat16).eps * exact.abs().max()


@torch.no_grad()
def test_image_to_video_with_added_projections() -> None:
    transformer = tiny(image_dim=16, added_kv_proj_dim=24)
    changes = {
        "encoder_hidden_states": torch.randn(1, 512, 16),  # diffusers takes the last 512 tokens for text
        "encoder_hidden_states_image": torch.randn(1, 5, 16),
    }
    with masked(transformer, SPARSE, tokens_of(SIZES["5x7x11"])):
        expected = call(transformer, **changes)
    with sparsify(transformer, SPARSE) as run:
        torch.testing.assert_close(call(transformer, **changes), expected, rtol=1e-4, atol=1e-5)
    assert run.report().sparse_calls == 2


@torch.no_grad()
@pytest.mark.parametrize("when", ["before", "after"])
def test_fused_projections(when: str) -> None:
    transformer = tiny()
    with masked(transformer, SPARSE, tokens_of(SIZES["5x7x11"])):
        expected = call(transformer)
    if when == "before":
        transformer.fuse_qkv_projections()
    with sparsify(transformer, SPARSE):
        if when == "after":
            transformer.fuse_qkv_projections()
        assert transformer.blocks[0].attn1.fused_projections
        torch.nn.init.zeros_(transformer.blocks[0].attn1.to_q.weight)  # not read any more
        torch.testing.assert_close(call(transformer), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_other_patch_sizes() -> None:
    transformer, sizes = tiny(patch_size=(2, 1, 2)), (6, 7, 10)
    with masked(transformer, SPARSE, VideoGrid(3, 7, 5)):
        expected = call(transformer, sizes)
    with sparsify(transformer, SPARSE):
        torch.testing.assert_close(call(transformer, sizes), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_timestep_for_each_token() -> None:
    # Wan 2.2 5B: the first frame of an image to video has no noise, and its tokens have timestep 0.
    transformer, grid = tiny(), tokens_of(SIZES["5x7x11"])
    timestep = torch.full((1, grid.tokens), 700.0)
    timestep[:, : grid.height * grid.width] = 0.0
    with masked(transformer, SPARSE, grid):
        expected = call(transformer, timestep=timestep)
    with sparsify(transformer, StepSchedule(SPARSE, sigmas=(0.65, 0.75))) as run:
        torch.testing.assert_close(call(transformer, timestep=timestep), expected, rtol=1e-4, atol=1e-5)
    assert run.report().sparse_calls == 2


@pytest.mark.parametrize("batch", [1, 2], ids=["batch1", "batch2"])
def test_gradients_are_those_under_the_expanded_mask(batch: int) -> None:
    transformer = tiny()
    with masked(transformer, SPARSE, tokens_of(SIZES["5x7x11"])):
        expected = gradients(transformer, batch=batch)
    for impl in ("cpu", "reference"):
        with sparsify(transformer, SPARSE, impl=impl):
            assert_same_gradients(gradients(transformer, batch=batch), expected)


def test_gradient_checkpointing() -> None:
    transformer = tiny().train()
    with sparsify(transformer, SPARSE):
        expected = gradients(transformer)
        transformer.enable_gradient_checkpointing()
        assert_same_gradients(gradients(transformer), expected)


def test_lora_that_was_added_before() -> None:
    peft = pytest.importorskip("peft")
    transformer = tiny()
    transformer.requires_grad_(False)
    without = call(transformer)
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_v", "to_out.0"], init_lora_weights=False)
    transformer.add_adapter(config)
    with masked(transformer, SPARSE, tokens_of(SIZES["5x7x11"])):
        expected, wanted = call(transformer), gradients(transformer)
    assert (expected - without).abs().max() > 1e-3, "LoRA changes nothing, so this test shows nothing"
    with sparsify(transformer, SPARSE):
        torch.testing.assert_close(call(transformer), expected, rtol=1e-4, atol=1e-5)
        found = gradients(transformer)
    assert found and all("lora" in name for name in found)
    assert_same_gradients(found, wanted)


@torch.no_grad()
@torch.no_grad()
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_compiled_transformer_computes_the_same_and_is_counted(when: str) -> None:
    """Any warning is an error here, as Dynamo's where it meets what it should not look into."""
    transformer, timesteps = tiny(), (900.0, 500.0, 100.0)
    schedule = StepSchedule(SPARSE, dense_steps=1)
    with sparsify(transformer, schedule) as run:
        expected, report = [call(transformer, timestep=t) for t in timesteps], run.report()
    if when == "before":
        compiled = torch.compile(transformer, backend="eager")
    with sparsify(transformer, schedule) as run:
        if when == "after":
            compiled = torch.compile(transformer, backend="eager")
        found = [call(compiled, timestep=t) for t in timesteps]
    assert all(map(torch.equal, found, expected))
    assert [(c.step, c.reason, c.density) for c in run.report().calls] == [
        (c.step, c.reason, c.density) for c in report.calls
    ]
    torch.compiler.reset()


def test_positional_arguments_reach_the_grid() -> None:
    transformer = tiny()
    expected = call(transformer)
    with sparsify(transformer, Radial(density=1.0)) as run:
        generator = torch.Generator().manual_seed(2)
        hidden = torch.randn(1, 4, *SIZES["5x7x11"], generator=generator)
        text = torch.randn(1, TEXT_TOKENS, 16, generator=generator)
        found = transformer(hidden, torch.full((1,), 500.0), text)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert run.report().calls[0].tokens == 385


# Putting it in and taking it out


def test_restore_puts_back_the_very_objects() -> None:
    transformer = tiny()
    before = state(transformer)
    run = sparsify(transformer, SPARSE)
    inside = state(transformer)
    assert inside[1] == before[1] + 1
    # Self-attention of the two layers is ours, cross-attention is not touched.
    changed = [name for name, p in zip(transformer.attn_processors, before[0], strict=True) if p not in inside[0]]
    assert changed == ["blocks.0.attn1.processor", "blocks.1.attn1.processor"]
    run.restore()
    assert state(transformer) == before
    run.restore()
    assert state(transformer) == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit], ids=lambda e: e.__name__)
def test_the_context_manager_restores_whatever_happens(error: type[BaseException]) -> None:
    transformer = tiny()
    before = state(transformer)
    with pytest.raises(error, match="stop"), sparsify(transformer, SPARSE):
        raise error("stop")
    assert state(transformer) == before


def test_ctrl_c_within_the_forward_pass_restores(monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = tiny()
    before = state(transformer)

    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["vidsparse.layer"], "sparse_attention", interrupt)
    with pytest.raises(KeyboardInterrupt), sparsify(transformer, SPARSE):
        call(transformer)
    assert state(transformer) == before


def test_ctrl_c_within_sparsify_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = tiny()
    before = state(transformer)

    set_processor = transformer.blocks[1].attn1.set_processor
    interrupts = iter([KeyboardInterrupt])

    def interrupted_once(processor: object) -> None:
        for interrupt in interrupts:
            raise interrupt
        set_processor(processor)

    monkeypatch.setattr(transformer.blocks[1].attn1, "set_processor", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        sparsify(transformer, SPARSE)
    assert state(transformer) == before


def test_a_second_sparsify_is_refused_and_changes_nothing() -> None:
    transformer = tiny()
    run = sparsify(transformer, SPARSE)
    inside = state(transformer)
    for again in (lambda: sparsify(transformer, Dense()), lambda: attn_processors(transformer, Dense())):
        with pytest.raises(ValueError, match=r"transformer is already sparsified; .*restore"):
            again()
        assert state(transformer) == inside
    run.restore()
    sparsify(transformer, SPARSE).restore()


def test_a_pipeline_with_one_sparsified_expert_is_refused_as_a_whole() -> None:
    one, two = tiny(), tiny()
    run = sparsify(two, SPARSE)
    before = state(one), state(two)
    with pytest.raises(ValueError, match="transformer_2 is already sparsified"):
        sparsify(Pipeline(transformer=one, transformer_2=two), SPARSE)
    assert (state(one), state(two)) == before
    run.restore()


@torch.no_grad()
def test_two_transformers_do_not_share_state() -> None:
    one, two = tiny(), tiny()
    with sparsify(one, SPARSE) as first, sparsify(two, SlidingTile(window=(1, 4, 4), tile=(1, 4, 4))) as second:
        call(one, SIZES["5x7x11"], timestep=900.0)
        call(two, SIZES["odd-pixels"], timestep=800.0)
        call(one, SIZES["5x7x11"], timestep=100.0)
    assert [(c.step, c.tokens) for c in first.report().calls[::2]] == [(0, 385), (1, 385)]
    assert [(c.step, c.tokens) for c in second.report().calls[::2]] == [(0, 80)]
    assert first.report().density != second.report().density


@torch.no_grad()
def test_a_second_size_uses_its_own_map() -> None:
    transformer = tiny()
    with sparsify(transformer, SPARSE) as run:
        found = {name: call(transformer, sizes) for name, sizes in SIZES.items()}
        found["5x7x11"] = call(transformer, SIZES["5x7x11"])
    for name, sizes in SIZES.items():
        with masked(transformer, SPARSE, tokens_of(sizes)):
            torch.testing.assert_close(found[name], call(transformer, sizes), rtol=1e-4, atol=1e-5)
    assert [(c.tokens, c.calls) for c in run.report().calls[::2]] == [(385, 2), (80, 1), (30, 1)]
    assert {c.step for c in run.report().calls} == {0}


@torch.no_grad()
def test_attn_processors_the_diffusers_way() -> None:
    transformer = tiny()
    before, originals = state(transformer), transformer.attn_processors
    processors = attn_processors(transformer, SPARSE)
    assert processors.keys() == originals.keys()
    assert [name for name in originals if processors[name] is originals[name]] == [
        "blocks.0.attn2.processor",
        "blocks.1.attn2.processor",
    ]
    transformer.set_attn_processor(processors)
    found = call(transformer)
    transformer.set_attn_processor(dict(originals))
    assert state(transformer)[0] == before[0]
    with masked(transformer, SPARSE, tokens_of(SIZES["5x7x11"])):
        torch.testing.assert_close(found, call(transformer), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_hook_of_attn_processors_goes_when_they_go() -> None:
    transformer = tiny()
    before, originals = state(transformer), transformer.attn_processors
    transformer.set_attn_processor(attn_processors(transformer, SPARSE))
    call(transformer)
    assert state(transformer)[1] == before[1] + 1
    transformer.set_attn_processor(dict(originals))
    call(transformer)
    assert state(transformer) == before


@torch.no_grad()
def test_an_attention_backend_set_afterwards_reaches_the_original() -> None:
    transformer = tiny()
    original = transformer.blocks[0].attn1.processor
    with sparsify(transformer, SPARSE):
        transformer.set_attention_backend("native")
        assert str(original._attention_backend.value) == "native"
        transformer.reset_attention_backend()
        assert original._attention_backend is None


# Steps, schedules, fallbacks


def steps_of(run: vidsparse.Run) -> dict[int, int]:
    """Step -> calls of the first layer."""
    return {c.step: c.calls for c in run.report().calls if c.layer == 0}


@torch.no_grad()
def test_steps_without_a_scheduler_are_falling_timesteps() -> None:
    transformer, sizes = tiny(), SIZES["one-frame"]
    with sparsify(transformer, SPARSE) as run:
        for timestep in (900.0, 900.0, 500.0, 500.0, 100.0, 900.0, 899.0):  # the pairs are guidance's two calls
            call(transformer, sizes, timestep=timestep)
    assert steps_of(run) == {0: 3, 1: 3, 2: 1}


@torch.no_grad()
def test_steps_of_a_scheduler_are_its_indices() -> None:
    transformer, sizes = tiny(), SIZES["one-frame"]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = Pipeline(transformer=transformer, scheduler=scheduler)
    with sparsify(pipe, StepSchedule(SPARSE, dense_last_steps=1)) as run:
        scheduler.set_timesteps(5)
        for index in (2, 3, 3, 4):  # video to video starts in the middle
            call(transformer, sizes, timestep=float(scheduler.timesteps[index]))
        call(transformer, sizes, timestep=0.0)  # no timestep of the schedule: the number of steps is unknown again
    assert steps_of(run) == {2: 1, 3: 2, 4: 1, 5: 1}
    assert [c.step for c in run.report().calls if c.reason] == [4, 4]


@torch.no_grad()
def test_rounded_timesteps_find_their_step() -> None:
    transformer, sizes = tiny(num_layers=1), SIZES["one-frame"]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    pipe = Pipeline(transformer=transformer, scheduler=scheduler)
    with sparsify(pipe, StepSchedule(SPARSE, dense_last_steps=1)) as run:
        scheduler.set_timesteps(50)
        rounded = scheduler.timesteps.bfloat16()
        assert len(set(rounded.tolist())) < 50  # of neighbours some are the same
        for timestep in scheduler.timesteps:
            for _ in range(2):  # guidance in calls of its own
                call(transformer, sizes, timestep=timestep.bfloat16())
            scheduler.step(torch.zeros(1), timestep, torch.zeros(1))
    assert {c.step: c.calls for c in run.report().calls} == dict.fromkeys(range(50), 2)
    assert [c.step for c in run.report().calls if c.reason] == [49]


@torch.no_grad()
def test_a_schedule_says_which_calls_were_dense() -> None:
    transformer, sizes = tiny(), SIZES["5x7x11"]
    with sparsify(transformer, StepSchedule(SPARSE, dense_steps=1, dense_layers=(-1,))) as run:
        found = [call(transformer, sizes, timestep=t) for t in (900.0, 500.0)]
    report = run.report()
    assert torch.equal(found[0], call(transformer, sizes, timestep=900.0))
    assert [(c.step, c.layer) for c in report.calls if c.reason is None] == [(1, 0)]
    assert sum(report.dense_reasons.values()) == 3
    assert "the pattern asks for it" in str(report)
    assert report.calls[0].impl == "dense" and report.calls[0].tiles == () and report.calls[0].density == 1


@torch.no_grad()
@pytest.mark.parametrize(("min_tokens", "dense"), [(385, False), (386, True)], ids=["reached", "missed-by-one"])
def test_min_tokens(min_tokens: int, dense: bool) -> None:
    transformer = tiny()
    with sparsify(transformer, SPARSE, min_tokens=min_tokens) as run:
        call(transformer)
    assert run.report().dense_reasons == ({"fewer than min_tokens=386 tokens": 2} if dense else {})


@torch.no_grad()
def test_a_slower_implementation_is_reported_with_its_reason_or_raises_if_strict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reason = "impl 'triton' takes head_dim 32, 64, 96, 128, not 12"
    monkeypatch.setattr(vidsparse.layer, "choose_impl", lambda *_: Choice("reference", reason))
    transformer = tiny()
    with sparsify(transformer, SPARSE) as run:
        call(transformer)
    (ran,) = run.report().ran
    assert ran == f"impl reference, tile (1, 4, 4), 385 tokens ({reason})" and f"ran: {ran}" in str(run.report())
    assert {c["fallback"] for c in run.report().to_dict()["calls"]} == {reason}
    with (
        sparsify(transformer, SPARSE, strict=True),
        pytest.raises(NotImplementedError, match=r"layer 0 would run impl 'reference': impl 'triton' .*strict=True"),
    ):
        call(transformer)


@needs_triton
@torch.no_grad()
def test_the_kernels_run_in_a_transformer() -> None:
    transformer, device = tiny(attention_head_dim=32), "cuda" if torch.cuda.is_available() else "cpu"
    transformer.to(device)
    pattern = Radial(density=0.5, tile=(1, 8, 8))
    with sparsify(transformer, pattern, impl="triton") as run:
        found = call(transformer)
    with sparsify(transformer, pattern, impl="reference"):
        expected = call(transformer)
    assert [c.impl for c in run.report().sparse] == ["triton", "triton"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_what_cannot_be_sparse_runs_dense_with_a_reason_or_raises_if_strict() -> None:
    transformer = tiny()
    attention, hidden, mask = transformer.blocks[1].attn1, torch.randn(1, 385, 24), torch.rand(1, 1, 385, 385) < 0.9
    expected = attention(hidden, None, mask)
    with sparsify(transformer, SPARSE) as run:
        call(transformer)
        assert torch.equal(attention(hidden, None, mask), expected)
    assert run.report().dense_reasons == {"the call has an attention mask": 1}
    with sparsify(transformer, SPARSE, strict=True):
        call(transformer)
        with pytest.raises(NotImplementedError, match=r"transformer layer 1 cannot be sparse: the call has an .* mask"):
            attention(hidden, None, mask)


def test_context_parallelism_is_not_sparse_yet() -> None:
    transformer = tiny()
    original = transformer.blocks[0].attn1.processor
    with sparsify(transformer, SPARSE, strict=True):
        transformer.blocks[0].attn1.processor._parallel_config = "ulysses"
        assert original._parallel_config == "ulysses"
        with pytest.raises(NotImplementedError, match="context parallelism is on"):
            call(transformer)


def test_patterns_get_their_context() -> None:
    seen = []

    class Spy(Dense):
        def is_dense(self, context: vidsparse.Context) -> bool:
            return False

        def select(self, query: Any, key: Any, grid: VideoGrid, context: vidsparse.Context) -> vidsparse.BlockMap:
            seen.append(context)
            assert query.shape == key.shape == (1, grid.tokens, 2, 12)
            return self.plan(grid)

    transformer = tiny()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(4)
    timestep = float(scheduler.timesteps[1])
    pipe = Pipeline(transformer_2=transformer, scheduler=scheduler)
    with torch.no_grad(), sparsify(pipe, Spy()):
        call(transformer, timestep=timestep)
    common = dict(layers=2, step=1, steps=4, sigma=pytest.approx(timestep / 1000), heads=2, transformer="transformer_2")
    assert seen == [vidsparse.Context(layer=layer, **common) for layer in range(2)]


def test_attention_outside_the_transformer_has_no_grid() -> None:
    transformer = tiny()
    with sparsify(transformer, SPARSE), pytest.raises(RuntimeError, match="outside the transformer's forward"):
        transformer.blocks[0].attn1(torch.randn(1, 385, 24))


# Pipelines


@torch.no_grad()
@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    ],
    ids=["euler", "unipc"],
)
def test_a_pipeline_runs_sparse_and_is_the_same_afterwards(scheduler: Any) -> None:
    pipe = wan_pipeline(scheduler=scheduler)
    before, expected = state(pipe.transformer), generate(pipe)
    with sparsify(pipe, StepSchedule(SPARSE, dense_steps=1, dense_last_steps=1)) as run:
        sparse = generate(pipe)
    calls = run.report().calls
    # 4 steps x 2 calls for guidance x 2 layers, the middle two steps sparse.
    assert [(c.step, c.calls) for c in calls] == [(step, 2) for step in range(4) for _ in range(2)]
    assert {c.step for c in calls if c.reason is None} == {1, 2}
    assert {c.tokens for c in calls} == {3 * 8 * 8}
    assert not torch.equal(sparse, expected)
    assert state(pipe.transformer) == before
    assert torch.equal(generate(pipe), expected)


@torch.no_grad()
def test_a_pipeline_at_another_size_and_another_number_of_steps() -> None:
    pipe = wan_pipeline()
    with sparsify(pipe, StepSchedule(SPARSE, dense_last_steps=1)) as run:
        generate(pipe, steps=2)
        generate(pipe, steps=3, size=48, guidance_scale=1.0)
        generate(pipe, steps=3, size=48, guidance_scale=1.0)
    assert [(c.step, c.tokens, c.reason is None, c.calls) for c in run.report().calls if c.layer == 0] == [
        *[(0, 192, True, 2), (1, 192, False, 2)],
        *[(0, 432, True, 2), (1, 432, True, 2), (2, 432, False, 2)],
    ]


@torch.no_grad()
def test_both_experts_of_a_pipeline() -> None:
    pipe = wan_pipeline(experts=2)
    before = state(pipe.transformer), state(pipe.transformer_2)
    with sparsify(pipe, StepSchedule(SPARSE, dense_steps=1, dense_last_steps=1)) as run:
        generate(pipe, guidance_scale=1.0)
    calls = [c for c in run.report().calls if c.layer == 0]
    # The steps are those of the run, not of the expert, so the second expert's first call is no first step.
    timesteps = pipe.scheduler.timesteps.tolist()
    assert [c.transformer for c in calls] == ["transformer" if t >= 500 else "transformer_2" for t in timesteps]
    assert {c.transformer for c in calls} == {"transformer", "transformer_2"}
    assert [c.step for c in calls] == [0, 1, 2, 3]
    assert [c.reason is None for c in calls] == [False, True, True, False]
    assert (state(pipe.transformer), state(pipe.transformer_2)) == before


@torch.no_grad()
def test_two_pipelines_do_not_share_state() -> None:
    one, two = wan_pipeline(), wan_pipeline()
    with sparsify(one, SPARSE) as first:
        sparse = generate(one)
        plain = generate(two)
    assert first.report().sparse_calls == 16
    assert not torch.equal(sparse, plain)
    assert torch.equal(generate(one), plain)


# The report


@torch.no_grad()
def test_the_numbers_of_a_report_add_up() -> None:
    transformer = tiny()
    with sparsify(transformer, StepSchedule(SPARSE, dense_layers=(0,))) as run:
        call(transformer, batch=2)
    report, block_map = run.report(), SPARSE.plan(VideoGrid(5, 7, 11))
    dense, sparse = report.calls
    assert dense.flops == dense.dense_flops == sparse.dense_flops == 2 * 2 * (2 * 385 * 385 * 24)
    kept = int(block_map.token_mask().sum())
    assert sparse.flops == pytest.approx(2 * 2 * (2 * kept * 24))
    assert report.flops_saved == pytest.approx((1 - kept / 385**2) / 2)
    assert (report.density, report.token_density) == (block_map.density, pytest.approx(kept / 385**2))
    assert report.seconds == sum(c.seconds for c in report.calls) > 0
    assert (sparse.impl, sparse.tiles, sparse.layer, sparse.transformer) == ("cpu", ((1, 4, 4),), 1, "transformer")


@torch.no_grad()
def test_a_report_is_plain_data_and_readable_text() -> None:
    transformer = tiny()
    with sparsify(transformer, SPARSE) as run:
        assert str(run.report()).endswith("no attention has run")
        assert run.report().flops_saved == 0
        call(transformer)
    report = run.report()
    data = json.loads(json.dumps(report.to_dict()))
    assert data["sparse_calls"] == len(data["calls"]) == 2 and data["dense_calls"] == 0
    assert data["density"] == report.density
    text = str(report)
    assert repr(SPARSE) in text and "2 of 2 attention calls sparse" in text
    assert f"{report.density:.3f} of video tile pairs, {report.token_density:.3f} of token pairs" in text
    assert "impl cpu, tile (1, 4, 4), 385 tokens" in text


@torch.no_grad()
def test_a_report_says_when_sparsity_cannot_pay() -> None:
    transformer = tiny()
    with sparsify(transformer, StepSchedule(Radial(density=0.9, tile=(1, 4, 4)), dense_steps=2)) as run:
        for timestep in (900.0, 500.0, 100.0):
            call(transformer, timestep=timestep)
    few, high, mostly = run.report().advice
    assert (
        few.startswith("385 tokens are few") and "is high" in high and mostly.startswith("67% of the calls ran dense")
    )


@torch.no_grad()
def test_reset_forgets_what_has_run() -> None:
    transformer = tiny()
    with sparsify(transformer, SPARSE) as run:
        call(transformer)
        earlier = run.report()
        run.reset()
        assert run.report().calls == ()
        call(transformer)
    assert len(earlier.calls) == len(run.report().calls) == 2


# Bad input


class Unsupported(torch.nn.Module):
    pass


@pytest.mark.parametrize(
    ("target", "settings", "error", "message"),
    [
        (Unsupported, {}, NotImplementedError, r"no adapter for Unsupported; .* WanTransformer3DModel"),
        (lambda: Pipeline(transformer=Unsupported()), {}, NotImplementedError, r"no adapter for Unsupported"),
        (lambda: Pipeline(unet=Unsupported()), {}, TypeError, r"Pipeline has no transformer"),
        (lambda: None, {}, TypeError, r"NoneType has no transformer"),
        (tiny, {"pattern": 0.2}, TypeError, r"pattern=0\.2 must be a pattern"),
        (tiny, {"pattern": Radial}, TypeError, r"must be a pattern, such as vidsparse\.Radial\(density=0\.2\)"),
        (tiny, {"impl": "fast"}, ValueError, r"impl='fast' is unknown"),
        (lambda: tiny().to("meta"), {"impl": "triton"}, NotImplementedError, r"use impl='auto'"),
    ],
    ids=["class", "pipeline-of-class", "no-transformer", "none", "number", "pattern-class", "unknown-impl", "triton"],
)
def test_bad_input(target: Callable[[], Any], settings: dict[str, Any], error: type[Exception], message: str) -> None:
    model = target()
    with pytest.raises(error, match=message):
        sparsify(model, **({"pattern": SPARSE} | settings))
    if isinstance(model, WanTransformer3DModel):
        assert not model._forward_pre_hooks


def test_attn_processors_of_no_pattern_or_an_unknown_transformer() -> None:
    with pytest.raises(TypeError, match="must be a pattern"):
        attn_processors(tiny(), "radial")  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="no adapter for Unsupported"):
        attn_processors(Unsupported(), SPARSE)


def test_autocast_runs_in_the_lower_precision() -> None:
    transformer = tiny()
    with torch.autocast("cpu", torch.bfloat16):
        plain = call(transformer)
        with sparsify(transformer, Radial(density=1.0)):
            found = call(transformer)
    torch.testing.assert_close(found, plain, rtol=5e-2, atol=5e-2)
    with torch.autocast("cpu", torch.bfloat16), sparsify(transformer, SPARSE) as run:
        call(transformer).sum().backward()
    assert run.report().sparse_calls == 2
    assert all(p.grad is None or p.grad.isfinite().all() for p in transformer.parameters())
