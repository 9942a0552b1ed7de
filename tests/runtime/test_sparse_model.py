"""What a sparse Wan model computes: what the model computes under the expanded mask, and the same gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_wan import SIZES, SPARSE, TEXT_TOKENS, call, masked, tiny, tokens_of

from vidsparse import Dense, Pattern, Radial, RadialRaster, SlidingTile, StepSchedule, VideoGrid, sparsify

PATTERNS: dict[str, Pattern] = {
    "radial": SPARSE,
    "raster": RadialRaster(block=32),
    "sliding": SlidingTile(window=(2, 6, 6), tile=(1, 3, 4)),
}


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
