"""cache-dit beside vidsparse, enabled before and after `sparsify`."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from tiny_wan import generate, wan_pipeline

import vidsparse
from vidsparse import Reshaped, Reuse, StepBudget, TopBlocks, sparsify

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("cache_dit") is None, reason="cache-dit is not installed"),
    pytest.mark.filterwarnings("ignore"),
]


def enable(pipe: Any) -> None:
    import cache_dit

    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=2, residual_diff_threshold=1.0
    )
    cache_dit.enable_cache(pipe, cache_config=config)


def generated(order: str) -> tuple[torch.Tensor, vidsparse.Report]:
    pipe = wan_pipeline()
    if order == "before":
        enable(pipe)
    with sparsify(pipe, Reuse(TopBlocks(density=0.4)), correction=Reshaped()) as run:
        if order == "after":
            enable(pipe)
        latents = generate(pipe, steps=8)
        assert all(not attention.ours.layer.memories for attention in run.replaced)
        return latents, run.report()


def test_the_order_does_not_matter_and_the_report_counts() -> None:
    latents, report = generated("before")
    assert report.skipped_calls > 0 and {s.by for s in report.skipped} == {"cache-dit"}
    assert report.skipped_calls + report.sparse_calls + report.dense_calls == 8 * 2 * 2
    assert torch.equal(generated("after")[0], latents)


def test_one_cache_at_a_time() -> None:
    pipe = wan_pipeline()
    enable(pipe)
    with pytest.raises(ValueError, match="transformer has cache-dit on, and the schedule skips steps too"):
        sparsify(pipe, StepBudget(TopBlocks(density=0.4)))
    from diffusers import FirstBlockCacheConfig

    with pytest.raises(ValueError, match="transformer has cache-dit on already"):
        vidsparse.enable_cache(pipe, FirstBlockCacheConfig())
