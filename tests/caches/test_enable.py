"""Caches of diffusers beside sparse attention, in the twins of all families and in the pipeline of Wan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FasterCacheConfig, FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from diffusers.hooks import HookRegistry, TextKVCacheConfig
from matrix import CACHES, refused_cache
from tiny_wan import SIZES, SPARSE, Pipeline, call, generate, state, tiny, wan_pipeline
from twins import class_or_skip, ignores_warnings, twin

import vidsparse
from vidsparse import Dense, Report, Reshaped, Reuse, TopBlocks, sparsify
from vidsparse.runtime.caches import MEASURED
from vidsparse_pipelines import ADAPTERS

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning")]
ALL_STEPS = (-1, 2000)  # a range of timesteps that holds every one


def config(name: str, **changes: Any) -> Any:
    """A cache that skips whatever it may: of four calls at least one in every layer."""
    settings: dict[str, dict[str, Any]] = {
        "FirstBlockCacheConfig": dict(threshold=1e9),
        "MagCacheConfig": dict(
            threshold=1e9, max_skip_steps=2, retention_ratio=0.0, num_inference_steps=8, mag_ratios=[1.0] * 8
        ),
        "SeaCacheConfig": dict(threshold=1e9),
        "TaylorSeerCacheConfig": dict(
            cache_interval=2, disable_cache_before_step=2, taylor_factors_dtype=torch.float32
        ),
        "PyramidAttentionBroadcastConfig": dict(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=ALL_STEPS,
            current_timestep_callback=lambda: 500,
        ),
    }
    kind = getattr(diffusers, name, None) or getattr(diffusers.hooks, name, None)
    if kind is None:
        pytest.skip(f"this diffusers has no {name}")
    return kind(**settings[name] | changes)


@ignores_warnings
@torch.no_grad()
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", ADAPTERS)
def test_the_same_call_again_gives_the_same_from_the_cache(name: str, cache: str) -> None:
    """A residual or an output that is reused for the very call that made it is exact, up to rounding."""
    class_or_skip(name)
    of_class = twin(name)
    model = of_class.build()
    plain = of_class.outputs(model)
    chosen = config(f"{cache}Config")
    reason = refused_cache(name, cache)
    if reason is not None:
        with pytest.raises((NotImplementedError, ValueError), match=reason):
            vidsparse.enable_cache(model, chosen)
        return
    vidsparse.enable_cache(model, chosen)
    with sparsify(model, Dense()) as run:
        for step in range(4):
            with model.cache_context("cond", step_index=step, sigma=0.9 - 0.1 * step, num_inference_steps=8):
                found = of_class.outputs(model)
            for key, expected in plain.items():
                torch.testing.assert_close(found[key], expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    report = run.report()
    layers = len(of_class.adapter.self_attentions(model))
    assert report.skipped_calls + report.dense_calls == 4 * layers
    assert {s.by for s in report.skipped} == {cache}
    model.disable_cache()
    assert not model.is_cache_enabled
    with sparsify(model, Dense()) as run:
        of_class.outputs(model)
    assert run.report().skipped == ()


@ignores_warnings
@torch.no_grad()
@pytest.mark.parametrize("name", [n for n in ADAPTERS if refused_cache(n, "FirstBlockCache") is None])
def test_the_layers_that_first_block_cache_measures_run_dense(name: str) -> None:
    class_or_skip(name)
    of_class = twin(name)
    model = of_class.build()
    with sparsify(model, SPARSE) as run:
        vidsparse.enable_cache(model, FirstBlockCacheConfig(threshold=0.0))
        with model.cache_context("cond"):
            of_class.outputs(model)
        assert run.report().dense_reasons == {MEASURED: 1}
        assert [c.layer for c in run.report().calls if c.reason] == [0]
        model.disable_cache()
        run.reset()
        of_class.outputs(model)
        assert run.report().dense_calls == 0


def six_steps(pipe: Any, **changes: Any) -> Report:
    """The report of a pipeline with a map and a correction that are kept from step to step; nothing may be left."""
    kept = Reuse(TopBlocks(density=0.4), refresh_every=3)
    with sparsify(pipe, kept, correction=Reshaped(refresh_every=3)) as run:
        generate(pipe, steps=6, **changes)
        layers = [block.attn1.processor.layer for block in pipe.transformer.blocks]
        assert all(not layer.memories for layer in layers), "memory that outlives the video"
        assert not layers[0].clock.steps._calls[0].arguments
        return run.report()


@pytest.mark.parametrize("cache", CACHES)
def test_caches_of_a_pipeline_leave_no_memory_and_count(cache: str) -> None:
    pipe = wan_pipeline()
    changes = {"current_timestep_callback": None} if cache == "PyramidAttentionBroadcast" else {}
    changes = {"num_inference_steps": 6, "mag_ratios": [1.0] * 6} if cache == "MagCache" else changes
    vidsparse.enable_cache(pipe, config(f"{cache}Config", **changes))
    report = six_steps(pipe)
    assert report.skipped_calls > 0 and {s.by for s in report.skipped} == {cache}
    assert report.skipped_calls + report.sparse_calls + report.dense_calls == 6 * 2 * 2  # steps, branches, layers
    assert f"skipped: {report.skipped_calls} of 24 attention calls, by {cache}" in str(report)
    assert all(0 <= s.step < 6 for s in report.skipped)
    again = six_steps(pipe)  # nothing of the first video is in the second
    assert [(c.step, c.layer, c.reason, c.calls) for c in again.calls] == [
        (c.step, c.layer, c.reason, c.calls) for c in report.calls
    ]
    pipe.transformer.disable_cache()
    assert six_steps(pipe).skipped == ()


def test_both_experts_get_the_cache_or_neither() -> None:
    pipe = wan_pipeline(experts=2)
    vidsparse.enable_cache(pipe, FirstBlockCacheConfig(threshold=1e9))
    with sparsify(pipe, SPARSE) as run:
        generate(pipe, steps=6)
    assert {s.transformer for s in run.report().skipped} == {"transformer", "transformer_2"}
    pipe.transformer.disable_cache()
    with pytest.raises(ValueError, match=r"transformer_2 has FirstBlockCache on already, and takes one cache; dis"):
        vidsparse.enable_cache(pipe, FirstBlockCacheConfig())
    assert not pipe.transformer.is_cache_enabled


@torch.no_grad()
def test_a_kept_map_ages_in_skipped_steps() -> None:
    transformer, chosen = tiny(num_layers=3), []

    class Noted(TopBlocks):
        def select(self, query: Any, key: Any, grid: Any, context: Any) -> Any:
            if context.layer == 2:
                chosen.append(context.step)
            return super().select(query, key, grid, context)

    forwards = [block.forward for block in transformer.blocks]
    with sparsify(transformer, Reuse(Noted(density=0.4, tile=(1, 4, 4)), refresh_every=3)):
        for step in range(8):
            for block, forward in zip(transformer.blocks, forwards, strict=True):
                block.forward = (lambda hidden_states, *_: hidden_states) if step in (3, 4, 6) else forward
            call(transformer, SIZES["one-frame"], timestep=900.0 - 100 * step)
    assert chosen == [0, 5], "due at step 3, which was skipped as the next was"


def test_what_would_do_nothing_or_fail_is_refused() -> None:
    pipe, plain = wan_pipeline(), tiny()
    before = state(pipe.transformer)
    with pytest.raises(TypeError, match="not the class FirstBlockCacheConfig"):
        vidsparse.enable_cache(pipe, FirstBlockCacheConfig)
    for nonsense, found in ((TextKVCacheConfig(), "a TextKVCacheConfig"), ("FirstBlockCache", "a str")):
        with pytest.raises(TypeError, match=rf"config must be a configuration of diffusers, one of .*; not {found}"):
            vidsparse.enable_cache(pipe, nonsense)
    with pytest.raises(TypeError, match="has no transformer"):
        vidsparse.enable_cache(object(), FirstBlockCacheConfig())
    with pytest.raises(
        NotImplementedError, match="FasterCacheConfig does not work with WanTransformer3DModel: it wants"
    ):
        vidsparse.enable_cache(pipe, FasterCacheConfig())
    nothing = config("TaylorSeerCacheConfig", cache_identifiers=["no_such_module"])
    with pytest.raises(
        ValueError, match="TaylorSeerCacheConfig matches nothing in transformer, a WanTransformer3DModel"
    ):
        vidsparse.enable_cache(pipe, nothing)
    broadcast = PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2)
    for silent in (plain, Pipeline(transformer=plain)):
        with pytest.raises(ValueError, match=r"needs to know the timestep, and .* does not tell it"):
            vidsparse.enable_cache(silent, broadcast)
    assert broadcast.current_timestep_callback is None and not plain.is_cache_enabled
    assert not pipe.transformer.is_cache_enabled and state(pipe.transformer) == before


@torch.no_grad()
@pytest.mark.parametrize("first", ["cache", "sparsify"])
def test_the_order_of_a_cache_and_sparsify_does_not_matter(first: str) -> None:
    found = []
    for order in (first, "cache"):
        pipe = wan_pipeline()
        steps: list[Callable[[], object]] = [
            lambda p=pipe: vidsparse.enable_cache(p, FirstBlockCacheConfig(threshold=0.2)),  # type: ignore[misc]
            lambda p=pipe: sparsify(p, SPARSE),  # type: ignore[misc]
        ]
        for step in steps if order == "cache" else reversed(steps):
            step()
        found.append(generate(pipe, steps=6))
    assert torch.equal(*found)


def test_hooks_of_a_refused_cache_are_gone() -> None:
    transformer = tiny()
    with pytest.raises(ValueError, match="matches nothing"):
        vidsparse.enable_cache(transformer, config("TaylorSeerCacheConfig", cache_identifiers=["no_such_module"]))
    assert not any(HookRegistry.check_if_exists_or_initialize(m).hooks for m in transformer.modules())
