"""Adapters of families whose video self-attention holds no text: LTX, LTX-2, Cosmos, Kandinsky 5, VACE, SkyReels-V2.

The oracle is diffusers' own processor, with the block map expanded to tokens as the mask of its attention.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adapter_checks import assert_same_gradients, attentions, low_precision
from models_without_text import FAMILIES, SPARSE, Family

from vidsparse import Dense, Pattern, SlidingTile, StepSchedule, VideoGrid, attn_processors, sparsify
from vidsparse.doctor import masked

ALL = SlidingTile(window=(99, 99, 99))
GRIDS = {"5x7x11": (5, 7, 11), "one-frame": (1, 5, 6)}
LAYERS = {name: 3 if name == "vace" else 2 for name in FAMILIES}
every_family = pytest.mark.parametrize("name", FAMILIES)


def gradients(family: Family, transformer: Any, **changes: Any) -> dict[str, torch.Tensor]:
    transformer.zero_grad()
    family.call(transformer, **changes).square().mean().backward()
    return {name: p.grad.clone() for name, p in transformer.named_parameters() if p.grad is not None}


# What every family computes


@torch.no_grad()
@every_family
def test_dense_pattern_is_the_untouched_model(name: str) -> None:
    family = FAMILIES[name]
    transformer = family.build()
    expected = family.call(transformer, batch=2)
    with sparsify(transformer, Dense()) as run:
        assert torch.equal(family.call(transformer, batch=2), expected)
    assert len(run.report().calls) == LAYERS[name]


@every_family
@pytest.mark.parametrize("batch", [1, 2], ids=["batch1", "batch2"])
def test_a_pattern_that_keeps_all_is_the_untouched_model_to_rounding(name: str, batch: int) -> None:
    family = FAMILIES[name]
    transformer = family.build()
    expected, wanted = family.call(transformer, batch=batch), gradients(family, transformer, batch=batch)
    assert any(".to_q" in name for name in wanted)
    for impl in ("cpu", "reference"):
        with sparsify(transformer, ALL, impl=impl, strict=True):
            found = family.call(transformer, batch=batch)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            assert_same_gradients(gradients(family, transformer, batch=batch), wanted)


@torch.no_grad()
@every_family
@pytest.mark.parametrize("batch", [1, 2], ids=["batch1", "batch2"])
@pytest.mark.parametrize("view", GRIDS.values(), ids=GRIDS)
def test_a_sparse_model_is_the_model_under_the_expanded_mask(name: str, view: tuple[int, int, int], batch: int) -> None:
    family, grid = FAMILIES[name], VideoGrid(*view)
    transformer = family.build()
    untouched = family.call(transformer, view, batch=batch)
    with masked(transformer, SPARSE, grid):
        expected = family.call(transformer, view, batch=batch)
    for impl in ("cpu", "reference"):
        with sparsify(transformer, SPARSE, impl=impl, strict=True) as run:
            found = family.call(transformer, view, batch=batch)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert {call.tokens for call in run.report().calls} == {grid.tokens}
    if SPARSE.plan(grid).density < 1:
        assert (untouched - expected).abs().max() > 1e-3, "the mask changes nothing, so this test shows nothing"


@every_family
def test_gradients_are_those_under_the_expanded_mask(name: str) -> None:
    family = FAMILIES[name]
    transformer = family.build()
    with masked(transformer, SPARSE, VideoGrid(5, 7, 11)):
        expected = gradients(family, transformer)
    with sparsify(transformer, SPARSE, strict=True):
        assert_same_gradients(gradients(family, transformer), expected)


@torch.no_grad()
@every_family
@pytest.mark.parametrize("pattern", [SPARSE, ALL], ids=["sparse", "all"])
def test_bfloat16(name: str, pattern: Pattern) -> None:
    family = FAMILIES[name]
    transformer = family.build()
    with masked(transformer, pattern, VideoGrid(5, 7, 11)):
        exact = family.call(transformer)
        plain = family.call(low_precision(transformer))
    with sparsify(transformer, pattern, strict=True):
        found = family.call(transformer)
    assert found.dtype == plain.dtype == torch.bfloat16
    error, allowed = ((x.float() - exact).abs().max() for x in (found, plain))
    assert error <= 2 * allowed + torch.finfo(torch.bfloat16).eps * exact.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("name", ["ltx", "ltx2", "vace", "skyreels"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_fused_projections(name: str, when: str) -> None:
    family = FAMILIES[name]
    transformer = family.build()
    if when == "before":
        transformer.fuse_qkv_projections()
    with sparsify(transformer, SPARSE, strict=True):
        if when == "after":
            transformer.fuse_qkv_projections()
        found = family.call(transformer)
    with masked(transformer, SPARSE, VideoGrid(5, 7, 11)):
        torch.testing.assert_close(found, family.call(transformer), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@every_family
def test_two_sizes_in_a_row_and_restore(name: str) -> None:
    family = FAMILIES[name]
    transformer = family.build()
    modules = attentions(transformer).values()
    originals = [module.processor for module in modules]
    with sparsify(transformer, SPARSE, strict=True) as run:
        for view in GRIDS.values():
            family.call(transformer, view)
    assert [call.tokens for call in run.report().calls if call.layer == 0] == [385, 30]
    assert all(module.processor is original for module, original in zip(modules, originals, strict=True))
    assert not transformer._forward_pre_hooks


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in FAMILIES if not name.startswith("cosmos")])
def test_processors_the_diffusers_way(name: str) -> None:
    family = FAMILIES[name]
    transformer = family.build()
    before = dict(transformer.attn_processors)
    with masked(transformer, SPARSE, VideoGrid(5, 7, 11)):
        expected = family.call(transformer)
    ours = attn_processors(transformer, SPARSE)
    assert sum(ours[key] is not before[key] for key in before) == LAYERS[name]
    transformer.set_attn_processor(ours)
    torch.testing.assert_close(family.call(transformer), expected, rtol=1e-4, atol=1e-4)


@every_family
def test_context_parallelism_and_backends_reach_the_original(name: str) -> None:
    family = FAMILIES[name]
    transformer = family.build()
    module = next(iter(attentions(transformer).values()))
    original = module.processor
    with sparsify(transformer, SPARSE, strict=True):
        assert hasattr(module.processor, "_parallel_config") == hasattr(original, "_parallel_config")
        if hasattr(original, "_parallel_config"):
            module.processor._parallel_config = "ulysses"
            assert original._parallel_config == "ulysses"
        if hasattr(original, "_attention_backend"):
            module.processor._attention_backend = "native"
            assert original._attention_backend == "native"


# Noise


@torch.no_grad()
@pytest.mark.parametrize("name", ["ltx", "ltx2", "skyreels"])
def test_the_noisiest_timestep_counts(name: str) -> None:
    # One of image to video: the first frame has no noise. SkyReels has a timestep for each frame, LTX for each token.
    family = FAMILIES[name]
    timestep = torch.full((1, 5 if name == "skyreels" else 385), 700.0)
    timestep[:, : timestep.shape[1] // 5] = 0.0
    changes: dict[str, Any] = {"timestep": timestep}
    if name == "skyreels":
        changes["enable_diffusion_forcing"] = True
    if name == "ltx2":
        changes["audio_timestep"] = torch.full((1,), 700.0)
    transformer = family.build()
    with masked(transformer, SPARSE, VideoGrid(5, 7, 11)):
        expected = family.call(transformer, **changes)
    with sparsify(transformer, StepSchedule(SPARSE, sigmas=(0.65, 0.75)), strict=True) as run:
        torch.testing.assert_close(family.call(transformer, **changes), expected, rtol=1e-4, atol=1e-4)
    assert run.report().sparse_calls == 2
