"""HunyuanVideo, HunyuanVideo 1.5 and FramePack on tiny random models.

The oracle is diffusers' own processor whose attention gets the block map, expanded to tokens, as its mask. Rows of
padded text may hold anything: nobody reads them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hunyuan_models import FAMILIES, ONE_EACH, SPARSE, VIEWS, Family, call

from vidsparse import Dense, Pattern, RadialRaster, SlidingTile, attn_processors, sparsify

KEEPS_ALL = SlidingTile(window=(99, 99, 99))
PATTERNS: dict[str, Pattern] = {
    "radial": SPARSE,
    "raster": RadialRaster(block=16),
    "sliding": SlidingTile(window=(2, 5, 5), tile=(1, 3, 4)),
}
BATCHES = pytest.mark.parametrize("batch", [1, 2, 3], ids=["batch1", "batch2", "batch3"])
IMPLS = pytest.mark.parametrize("impl", ["cpu", "reference"])
EACH = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def gradients(family: Family, transformer: Any, **changes: Any) -> dict[str, torch.Tensor]:
    transformer.zero_grad()
    call(family, transformer, **changes).square().mean().backward()
    return {name: p.grad.clone() for name, p in transformer.named_parameters() if p.grad is not None}


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert {"transformer_blocks.0.attn.to_q.weight", "transformer_blocks.0.attn.add_k_proj.weight"} <= found.keys()
    for name, wanted in expected.items():
        # What a softmax does not feel, such as the bias of the keys, has rounding for a gradient.
        torch.testing.assert_close(
            found[name], wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()) + 1e-7, msg=name
        )


@contextmanager
def masked(transformer: Any, mask: torch.Tensor) -> Iterator[None]:
    """The oracle: the model's own processors, whose attention gets this mask [batch | 1, 1, tokens, tokens]."""
    module: Any = sys.modules[type(transformer.transformer_blocks[0].attn.processor).__module__]
    original = module.dispatch_attention_fn

    def with_mask(*args: Any, **settings: Any) -> Any:
        assert args[0].shape[1] == mask.shape[-1]
        return original(*args, **(settings | {"attn_mask": mask}))

    module.dispatch_attention_fn = with_mask
    try:
        yield
    finally:
        module.dispatch_attention_fn = original


def expanded(family: Family, pattern: Pattern, name: str = "3x5x7", batch: int = 1) -> torch.Tensor:
    return pattern.plan(family.grid(name, batch)).token_mask(family.valid(name, batch))


@torch.no_grad()
@EACH
@BATCHES
def test_dense_pattern_is_the_untouched_model(family: Family, batch: int) -> None:
    transformer = family.tiny()
    expected = call(family, transformer, batch=batch)
    with sparsify(transformer, Dense()) as run:
        assert torch.equal(call(family, transformer, batch=batch), expected)
    assert [c.tokens for c in run.report().calls] == [family.grid(batch=batch).tokens] * len(run.report().calls)


@torch.no_grad()
@EACH
@BATCHES
@IMPLS
@pytest.mark.parametrize("name", VIEWS)
def test_a_pattern_that_keeps_all_is_the_untouched_model_to_rounding(
    family: Family, name: str, batch: int, impl: str
) -> None:
    transformer = family.tiny()
    expected = call(family, transformer, name, batch)
    with sparsify(transformer, KEEPS_ALL, impl=impl) as run:
        torch.testing.assert_close(call(family, transformer, name, batch), expected, rtol=1e-4, atol=1e-5)
    report = run.report()
    assert report.dense_reasons == {} and report.sparse_calls == len(transformer.transformer_blocks) + len(
        getattr(transformer, "single_transformer_blocks", ())
    )


@torch.no_grad()
@EACH
@BATCHES
@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_a_sparse_model_is_the_model_under_the_expanded_mask(
    family: Family, pattern: Pattern, name: str, batch: int
) -> None:
    transformer = family.tiny()
    with masked(transformer, expanded(family, pattern, name, batch)):
        expected = call(family, transformer, name, batch)
    for impl in ("cpu", "reference"):
        with sparsify(transformer, pattern, impl=impl, strict=True):
            torch.testing.assert_close(call(family, transformer, name, batch), expected, rtol=1e-4, atol=1e-5)
    if pattern.plan(family.grid(name, batch)).density < 0.9:
        untouched = call(family, transformer, name, batch)
        assert (untouched - expected).abs().max() > 1e-3, "the mask changes nothing, so this test shows nothing"


@torch.no_grad()
@EACH
@BATCHES
def test_tokens_around_the_video_are_exact(family: Family, batch: int) -> None:
    transformer, grid = family.tiny(), family.grid(batch=batch)
    seen: list[torch.Tensor] = []
    attention = transformer.transformer_blocks[0].attn  # later layers see what the video has become
    hook = attention.register_forward_hook(lambda module, args, out: seen.append(torch.cat(out, dim=1)))
    call(family, transformer, batch=batch)
    with sparsify(transformer, SPARSE):
        call(family, transformer, batch=batch)
    hook.remove()
    dense, sparse = seen
    torch.testing.assert_close(sparse[:, : grid.prefix], dense[:, : grid.prefix], rtol=1e-4, atol=1e-5)
    for sample, valid in enumerate(family.valid(batch=batch).tolist()):
        text = slice(grid.prefix + grid.video_tokens, valid + grid.video_tokens)
        assert text.stop > text.start
        torch.testing.assert_close(sparse[sample, text], dense[sample, text], rtol=1e-4, atol=1e-5)
    video = slice(grid.prefix, grid.prefix + grid.video_tokens)
    assert (sparse[:, video] - dense[:, video]).abs().max() > 1e-3


@EACH
@pytest.mark.parametrize("batch", [1, 2], ids=["batch1", "batch2"])
@pytest.mark.parametrize("pattern", [KEEPS_ALL, SPARSE], ids=["keeps-all", "radial"])
def test_gradients(family: Family, pattern: Pattern, batch: int) -> None:
    transformer = family.tiny()
    expected = gradients(family, transformer, batch=batch)
    if pattern is SPARSE:
        with masked(transformer, expanded(family, pattern, batch=batch)):
            expected = gradients(family, transformer, batch=batch)
    for impl in ("cpu", "reference"):
        with sparsify(transformer, pattern, impl=impl):
            assert_same_gradients(gradients(family, transformer, batch=batch), expected)


@ONE_EACH
def test_gradient_checkpointing(family: Family) -> None:
    transformer = family.tiny().train()
    with sparsify(transformer, SPARSE):
        expected = gradients(family, transformer, batch=2)
        transformer.enable_gradient_checkpointing()
        assert_same_gradients(gradients(family, transformer, batch=2), expected)


@torch.no_grad()
@EACH
@IMPLS
def test_bfloat16(family: Family, impl: str) -> None:
    transformer = family.tiny()
    with masked(transformer, expanded(family, SPARSE, batch=2)):
        exact = call(family, transformer, batch=2)
        plain = call(family, transformer.to(torch.bfloat16), batch=2)
    with sparsify(transformer, SPARSE, impl=impl):
        found = call(family, transformer, batch=2)
    assert found.dtype == torch.bfloat16
    error, allowed = ((x.float() - exact).abs().max() for x in (found, plain))
    assert error <= 2 * allowed + torch.finfo(torch.bfloat16).eps * exact.abs().max()


@torch.no_grad()
@ONE_EACH
def test_fused_projections_are_not_read_by_these_models(family: Family) -> None:
    transformer = family.tiny()
    with sparsify(transformer, SPARSE):
        expected = call(family, transformer)
        for module in (transformer.transformer_blocks[0].attn, transformer.transformer_blocks[-1].attn):
            module.fuse_projections()
            torch.nn.init.zeros_(module.to_qkv.weight)
        assert torch.equal(call(family, transformer), expected)


@torch.no_grad()
@ONE_EACH
def test_restore_puts_back_the_very_objects(family: Family) -> None:
    transformer = family.tiny()
    names = [name for name, module in transformer.named_modules() if hasattr(module, "processor")]
    before = [transformer.get_submodule(name).processor for name in names]
    with sparsify(transformer, SPARSE):
        changed = [
            name
            for name, old in zip(names, before, strict=True)
            if transformer.get_submodule(name).processor is not old
        ]
    # The refiner of the text has no video tokens.
    assert changed == [name for name in names if not name.startswith("context_embedder")]
    assert all(transformer.get_submodule(name).processor is old for name, old in zip(names, before, strict=True))
    assert not transformer._forward_pre_hooks


@torch.no_grad()
@pytest.mark.parametrize("name", ["hunyuan", "hunyuan15"])
def test_attn_processors_the_diffusers_way(name: str) -> None:
    family = FAMILIES[name]
    transformer = family.tiny()
    with masked(transformer, expanded(family, SPARSE, batch=2)):
        expected = call(family, transformer, batch=2)
    transformer.set_attn_processor(attn_processors(transformer, SPARSE))
    torch.testing.assert_close(call(family, transformer, batch=2), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@EACH
def test_a_second_size_uses_its_own_map(family: Family) -> None:
    transformer = family.tiny()
    with sparsify(transformer, SPARSE) as run:
        found = {(name, batch): call(family, transformer, name, batch) for name in VIEWS for batch in (1, 2)}
    for (name, batch), out in found.items():
        with masked(transformer, expanded(family, SPARSE, name, batch)):
            torch.testing.assert_close(out, call(family, transformer, name, batch), rtol=1e-4, atol=1e-5)
    assert {c.tokens for c in run.report().calls} == {family.grid(*key).tokens for key in found}
