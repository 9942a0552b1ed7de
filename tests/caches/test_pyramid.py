"""PyramidAttentionBroadcast with guidance in two calls of a step."""

from __future__ import annotations

import torch
from diffusers import PyramidAttentionBroadcastConfig
from tiny_wan import SIZES, WITHOUT_PROMPT, call, tiny

import vidsparse

ONE = SIZES["one-frame"]


def broadcast() -> PyramidAttentionBroadcastConfig:
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 2000),
        current_timestep_callback=lambda: 500,
    )


@torch.no_grad()
def test_each_branch_reuses_its_own_attention() -> None:
    transformer = tiny()
    prompts = {"cond": {}, "uncond": WITHOUT_PROMPT}
    plain = {name: call(transformer, ONE, **prompt) for name, prompt in prompts.items()}
    vidsparse.enable_cache(transformer, broadcast())
    for _ in range(4):
        for name, prompt in prompts.items():
            with transformer.cache_context(name):
                assert torch.equal(call(transformer, ONE, **prompt), plain[name])
    transformer._reset_stateful_cache()
    assert torch.equal(call(transformer, ONE), plain["cond"]), "a call without a name"
    transformer.disable_cache()
    transformer.enable_cache(broadcast())  # diffusers' own mixes them: should that change, ours can go
    for name, prompt in prompts.items():
        with transformer.cache_context(name):
            out = call(transformer, ONE, **prompt)
    assert not torch.equal(out, plain["uncond"])
