"""MiniMax-H3 and Cosmos 3, which pack text, conditions, sound and video into one sequence, on tiny random models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adapter_checks import assert_same_gradients, attentions, low_precision
from packed_models import CASES, LAYERS, SPARSE, TEXT, VIEWS, Case, View, call, h3, masked

from vidsparse import Dense, Pattern, SlidingTile, StepSchedule, attn_processors, sparsify

KEEPS_ALL = SlidingTile(window=(99, 99, 99))
EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
ONE_EACH = pytest.mark.parametrize("case", [CASES["h3"], CASES["cosmos3-omni"]], ids=["h3", "cosmos3-omni"])
IN_BATCHES = pytest.mark.parametrize(
    ("case", "batch"),
    [(case, batch) for case in CASES.values() for batch in ((1, 2) if case.arguments is h3 else (1,))],
    ids=[f"{name}-batch{n}" for name, case in CASES.items() for n in ((1, 2) if case.arguments is h3 else (1,))],
)


def gradients(case: Case, transformer: Any, **changes: Any) -> dict[str, torch.Tensor]:
    transformer.zero_grad()
    call(case, transformer, **changes).square().mean().backward()
    return {name: p.grad.clone() for name, p in transformer.named_parameters() if p.grad is not None}


# What both compute


@torch.no_grad()
@IN_BATCHES
def test_dense_pattern_is_the_untouched_model(case: Case, batch: int) -> None:
    transformer = case.build()
    expected = call(case, transformer, batch=batch)
    with sparsify(transformer, Dense()) as run:
        assert torch.equal(call(case, transformer, batch=batch), expected)
    calls = run.report().calls
    assert [(c.layer, c.tokens, c.density) for c in calls] == [(i, case.grid().tokens, 1.0) for i in range(LAYERS)]


@IN_BATCHES
def test_a_pattern_that_keeps_all_is_the_untouched_model_to_rounding(case: Case, batch: int) -> None:
    transformer = case.build()
    expected, wanted = call(case, transformer, batch=batch), gradients(case, transformer, batch=batch)
    for impl in ("cpu", "reference"):
        with sparsify(transformer, KEEPS_ALL, impl=impl, strict=True):
            torch.testing.assert_close(call(case, transformer, batch=batch), expected, rtol=1e-4, atol=1e-4)
            assert_same_gradients(gradients(case, transformer, batch=batch), wanted)


@torch.no_grad()
@IN_BATCHES
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_sparse_model_is_the_model_under_the_expanded_mask(case: Case, view: View, batch: int) -> None:
    transformer, grid = case.build(), case.grid(view)
    with masked(transformer, SPARSE, grid):
        expected = call(case, transformer, view, batch=batch)
    for impl in ("cpu", "reference"):
        with sparsify(transformer, SPARSE, impl=impl, strict=True) as run:
            found = call(case, transformer, view, batch=batch)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    report, block_map = run.report(), SPARSE.plan(grid)
    assert {c.tokens for c in report.calls} == {grid.tokens} and report.sparse_calls == LAYERS
    assert report.density == pytest.approx(block_map.density)
    assert report.token_density == pytest.approx(float(block_map.token_mask().double().mean()))
    if block_map.density < 0.9:
        untouched = call(case, transformer, view, batch=batch)
        assert (untouched - expected).abs().max() > 1e-3, "the mask changes nothing, so this test shows nothing"


@torch.no_grad()
@IN_BATCHES
def test_tokens_around_the_video_are_exact(case: Case, batch: int) -> None:
    transformer, grid, seen = case.build(), case.grid(), []
    attention = next(iter(attentions(transformer).values()))  # later layers see what the video has become

    def keep(module: Any, args: Any, out: Any) -> None:
        seen.append(torch.cat(out)[None] if isinstance(out, tuple) else out)

    hook = attention.register_forward_hook(keep)
    call(case, transformer, batch=batch)
    with sparsify(transformer, SPARSE, strict=True):
        call(case, transformer, batch=batch)
    hook.remove()
    parts = (grid.prefix, grid.video_tokens, grid.suffix)
    before, video, after = zip(*(x.split(parts, dim=1) for x in seen), strict=True)
    torch.testing.assert_close(*before, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*after, rtol=1e-4, atol=1e-5)
    assert (video[0] - video[1]).abs().max() > 1e-3


@torch.no_grad()
@EACH
def test_flops_are_those_of_the_heads_which_are_wider_than_the_model(case: Case) -> None:
    transformer, grid = case.build(), case.grid()
    with sparsify(transformer, StepSchedule(SPARSE, dense_layers=(0,))) as run:
        call(case, transformer)
    width = case.config["num_attention_heads"] * case.config.get("attention_head_dim", case.config.get("head_dim"))
    assert width != case.config["hidden_size"]
    assert {c.dense_flops for c in run.report().calls} == {4 * grid.tokens**2 * width}


@EACH
def test_gradients_are_those_under_the_expanded_mask(case: Case) -> None:
    transformer = case.build()
    with masked(transformer, SPARSE, case.grid()):
        expected = gradients(case, transformer)
    for impl in ("cpu", "reference"):
        with sparsify(transformer, SPARSE, impl=impl, strict=True):
            assert_same_gradients(gradients(case, transformer), expected)


@ONE_EACH
def test_gradient_checkpointing(case: Case) -> None:
    transformer = case.build().train()
    with sparsify(transformer, SPARSE, strict=True):
        expected = gradients(case, transformer)
        transformer.enable_gradient_checkpointing()
        assert_same_gradients(gradients(case, transformer), expected)


@torch.no_grad()
@EACH
@pytest.mark.parametrize("pattern", [SPARSE, KEEPS_ALL], ids=["sparse", "keeps-all"])
def test_bfloat16(case: Case, pattern: Pattern) -> None:
    transformer = case.build()
    with masked(transformer, pattern, case.grid()):
        exact = call(case, transformer)
        plain = call(case, low_precision(transformer))
    with sparsify(transformer, pattern, strict=True):
        found = call(case, transformer)
    assert found.dtype == plain.dtype
    error, allowed = ((x.float() - exact).abs().max() for x in (found, plain))
    assert error <= 2 * allowed + torch.finfo(torch.bfloat16).eps * exact.abs().max()


@torch.no_grad()
@EACH
def test_texts_and_sizes_in_turn_use_their_own_maps_and_restore_puts_back_the_very_objects(case: Case) -> None:
    transformer = case.build()
    modules = attentions(transformer).values()
    originals = [module.processor for module in modules]
    sizes = [(VIEWS["3x5x7"], 9), (VIEWS["3x5x7"], 4), (VIEWS["one-frame"], 6), (VIEWS["3x5x7"], 9)]
    with sparsify(transformer, SPARSE, strict=True) as run:
        found = [call(case, transformer, *size) for size in sizes]
    assert all(module.processor is original for module, original in zip(modules, originals, strict=True))
    assert not transformer._forward_pre_hooks
    assert {c.tokens: c.calls for c in run.report().calls} == {
        case.grid(*size).tokens: sizes.count(size) for size in sizes
    }
    for size, out in zip(sizes, found, strict=True):
        with masked(transformer, SPARSE, case.grid(*size)):
            torch.testing.assert_close(out, call(case, transformer, *size), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@ONE_EACH
def test_processors_the_diffusers_way(case: Case) -> None:
    transformer = case.build()
    before = dict(transformer.attn_processors)
    with masked(transformer, SPARSE, case.grid()):
        expected = call(case, transformer)
    ours = attn_processors(transformer, SPARSE)
    assert sum(ours[key] is not before[key] for key in before) == LAYERS  # the refiner of H3's text has no video
    transformer.set_attn_processor(ours)
    torch.testing.assert_close(call(case, transformer), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("when", ["before", "after"])
def test_fused_projections_of_h3(when: str) -> None:
    case = CASES["h3"]
    transformer = case.build()
    with masked(transformer, SPARSE, case.grid()):
        expected = call(case, transformer)

    def fuse() -> None:
        transformer.fuse_qkv_projections()
        for attention in attentions(transformer).values():  # the projections that it made one of stay, unused
            torch.nn.init.zeros_(attention.to_q.weight)

    if when == "before":
        fuse()
    with sparsify(transformer, SPARSE, strict=True):
        if when == "after":
            fuse()
        found = call(case, transformer)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# What cannot be sparse


def assert_runs_dense(case: Case, transformer: Any, reason: str, **changes: Any) -> None:
    expected = call(case, transformer, **changes)
    with sparsify(transformer, SPARSE) as run:
        assert torch.equal(call(case, transformer, **changes), expected)
        call(case, transformer)
    (found, count), *others = run.report().dense_reasons.items()
    assert not others and reason in found and count == run.report().sparse_calls == LAYERS
    with sparsify(transformer, SPARSE, strict=True), pytest.raises(NotImplementedError, match=reason):
        call(case, transformer, **changes)


@torch.no_grad()
def test_video_of_h3_in_no_raster_order_runs_dense() -> None:
    case, grid = CASES["h3"], CASES["h3"].grid()
    transformer = case.build()
    positions = torch.rand(grid.tokens, 3)
    assert_runs_dense(case, transformer, "of no grid of frames x height x width", position_ids=positions)


@torch.no_grad()
def test_video_of_cosmos3_in_pieces_or_among_the_text_runs_dense() -> None:
    case = CASES["cosmos3"]
    transformer, indices = case.build(), torch.arange(TEXT, TEXT + 105)
    assert_runs_dense(case, transformer, "in no unbroken run", vision_sequence_indexes=indices.flip(0))
    assert_runs_dense(case, transformer, "among the text, where attention is causal", und_len=TEXT + 1)


@torch.no_grad()
def test_context_parallelism_of_cosmos3_is_outside_the_model() -> None:
    case = CASES["cosmos3"]
    transformer = case.build()
    transformer._cp_shard_fn = lambda *parts: parts
    with sparsify(transformer, SPARSE) as run:
        call(case, transformer)
    assert run.report().dense_reasons == {"context parallelism is on": LAYERS}


@torch.no_grad()
def test_a_mask_of_h3_runs_dense() -> None:
    case = CASES["h3"]
    transformer, tokens = case.build(), case.grid().tokens
    attention = next(iter(attentions(transformer).values()))
    arguments = torch.randn(1, tokens, 24), None, torch.rand(1, 1, tokens, tokens) > 0.5
    expected = attention(*arguments)
    with sparsify(transformer, SPARSE) as run:
        call(case, transformer)
        run.reset()
        assert torch.equal(attention(*arguments), expected)
    assert run.report().dense_reasons == {"the call has an attention mask": 1}
