"""Families that make a video chunk by chunk: AnyFlow-FAR, whose chunks see a cache, and Helios."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from chunked_models import anyflow_far, helios
from torch.nn.attention import flex_attention as flex
from twins import ignores_warnings, twin

from vidsparse import Dense, LightForcing, PooledComplement, Radial, SlidingTile, StepSchedule, TopBlocks, VideoGrid
from vidsparse.block_map import BlockMap
from vidsparse.doctor import masked
from vidsparse.doctor.masked import intercepted
from vidsparse.patterns.last_frames import of_last_frames
from vidsparse.runtime.registry import adapter_for
from vidsparse.runtime.sparsify import sparsify

# HeliosScheduler hands tensors to NumPy, which warns.
pytestmark = [
    ignores_warnings,
    pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning"),
    pytest.mark.usefixtures("uncompiled"),
]
NAME = "AnyFlowFARTransformer3DModel"
ALL = SlidingTile(window=(99, 99, 99), tile=(1, 2, 4))
SPARSE = Radial(density=0.3, tile=(1, 2, 4))
LIGHT = LightForcing(0.4, 0.2, frames=6, chunk=1, keep_frames=1, tile=(1, 2, 4))
LAYERS, STEPS, CHUNKS = 2, 2, 4
FILLS = "it fills the cache: each chunk of frames sees those before it through a mask"


def video(pipe: Any, prompts: list[str], **changes: Any) -> torch.Tensor:
    """Latents of a video of 6 latent frames of 4x6 tokens, in batches of guidance."""
    words = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "latent", "num_frames": 21} | changes
    found: torch.Tensor = pipe(prompts, negative_prompt=[""] * len(prompts), height=32, width=48, **words).frames
    return found


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


# AnyFlow-FAR


def test_dense_steps_of_all_chunks_are_the_unmodified_model() -> None:
    pipe = anyflow_far()
    expected = video(pipe, ["a red circle"], generator=generator())
    with sparsify(pipe, Dense()) as run:
        assert torch.equal(video(pipe, ["a red circle"], generator=generator()), expected)
    assert run.report().dense_reasons == {
        "the pattern asks for it": LAYERS * STEPS * CHUNKS,
        FILLS: LAYERS * (CHUNKS - 1),
    }


def test_a_pattern_that_keeps_all_gives_the_video_of_the_model_in_a_batch_with_guidance() -> None:
    pipe, prompts = anyflow_far(), ["a red circle", "a blue square moving left"]
    expected = video(pipe, prompts, generator=generator())
    with sparsify(pipe, ALL) as run:
        found = video(pipe, prompts, generator=generator())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert run.report().sparse_calls == LAYERS * STEPS * CHUNKS


def test_the_report_says_how_many_keys_the_tokens_of_each_chunk_see() -> None:
    pipe = anyflow_far()
    with sparsify(pipe, StepSchedule(LIGHT, dense_steps=1)) as run:
        video(pipe, ["a red circle"], generator=generator())
    report = run.report()
    # Chunks of 24, 48, 48 and 24 tokens, filled up to 128; that of one frame is kept as 6 coarser tokens at last.
    seen = {(call.tokens, call.keys) for call in report.sparse}
    assert seen == {(48, 24 + 48 + 80), (48, 24 + 48 + 48 + 80), (24, 6 + 48 + 48 + 24 + 104)}
    assert "48 tokens that see 152" in "\n".join(report.ran)
    # The first chunk sees nothing but itself, and is dense: LightForcing says so. The first step of the others too.
    assert report.sparse_calls == LAYERS * (STEPS - 1) * (CHUNKS - 1)
    assert report.dense_reasons["the pattern asks for it"] == LAYERS * (STEPS + CHUNKS - 1)
    of_chunk = [call for call in report.calls if call.keys == 230 and call.reason is None]
    assert of_chunk[0].dense_flops == of_chunk[0].calls * 2 * 4 * 24 * 230 * 48  # two branches in a batch
    assert 0 < of_chunk[0].density < 1


def test_light_forcing_is_the_model_under_the_maps_that_it_chose() -> None:
    it = twin(NAME)
    model, view = it.build(), (2, 4, 8)
    with sparsify(model, LIGHT, strict=True) as run:
        run.record(layers=range(LAYERS), steps=[0], branches=[0])
        found = it.outputs(model, view, batch=2)["output 0"]
        maps = [chosen.plan for chosen in run.maps]
    assert len(maps) == LAYERS and all(isinstance(m, BlockMap) and m.density < 0.8 for m in maps)
    remaining = [m.token_mask() for m in maps if isinstance(m, BlockMap)]

    def under(attention: Any, query: torch.Tensor, key: torch.Tensor, mask: Any) -> Any:
        return attention(remaining.pop(0))

    with intercepted(it.adapter.self_attentions(model).values(), under):
        expected = it.outputs(model, view, batch=2)["output 0"]
    assert not remaining
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    plain = it.outputs(model, view, batch=2)["output 0"]
    assert (plain - expected).abs().max() > 1e-2  # the mask matters


def test_the_zeros_that_the_model_appends_count_in_its_softmax() -> None:
    it = twin(NAME)
    model, view = it.build(), (1, 3, 5)
    assert it.grid(view) == VideoGrid(1, 3, 5, suffix=113)
    assert it.key_grid(view) == VideoGrid(3, 3, 5, prefix=2 * 1 * 2, suffix=113)
    sums = []

    def look(attention: Any, query: torch.Tensor, key: torch.Tensor, mask: Any) -> Any:
        assert not key[:, :, -113:].any() and key.shape[-2] == 4 + 45 + 113
        scores = query[:, :, :15] @ key.mT * query.shape[-1] ** -0.5
        sums.append(float(scores.softmax(dim=-1)[..., -113:].sum(dim=-1).mean()))
        return attention(mask)

    with intercepted(it.adapter.self_attentions(model).values(), look):
        it.outputs(model, view)
    assert min(sums) > 0.1


def test_a_first_chunk_has_one_grid_and_is_the_model_under_the_mask() -> None:
    it = twin(NAME)
    model, view = it.build(), (2, 4, 7)

    def first(model: Any) -> torch.Tensor:
        call = it.arguments(model, view) | {
            "chunk_partition": [2],
            "kv_cache_flag": {"num_cached_chunks": 0, "is_cache_step": False},
        }
        assert it.adapter.key_grid(model, call) is None
        with torch.no_grad():
            out: torch.Tensor = model(**call)[0]
        return out

    with masked(model, SPARSE, VideoGrid(2, 4, 7, suffix=72)):
        expected = first(model)
    with sparsify(model, SPARSE, strict=True) as run:
        torch.testing.assert_close(first(model), expected, rtol=1e-4, atol=1e-4)
    assert run.report().sparse_calls == LAYERS and run.report().sparse[0].keys is None


def test_a_chunk_that_begins_within_a_tile_is_the_model_under_the_rows_of_the_whole_map() -> None:
    it = twin(NAME)
    model, view, pattern = it.build(), (2, 4, 8), Radial(density=0.3, tile=(3, 2, 2))
    grid, keys = it.grid(view), it.key_grid(view)
    assert keys is not None and keys.frames == 4  # tiles begin at frames 0 and 3, the chunk at frame 2
    plan = of_last_frames(pattern.plan(keys), grid, keys)
    assert isinstance(plan, BlockMap) and plan.density < 1
    with masked(model, pattern, grid, keys):
        expected = it.outputs(model, view)["output 0"]
    with sparsify(model, pattern, strict=True):
        torch.testing.assert_close(it.outputs(model, view)["output 0"], expected, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_attention_in_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    # FlexAttention has no backward pass on a CPU; the same formula takes its place.
    def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)

    it = twin(NAME)
    with monkeypatch.context() as patch:
        patch.setattr(flex, "flex_attention", plain)
        expected = it.gradients(it.build())
    model = it.build()
    with sparsify(model, ALL, strict=True):
        found = it.gradients(model)
    assert found.keys() == expected.keys()
    largest = max(float(x.abs().max()) for x in expected.values())
    for name, wanted in expected.items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-3, atol=1e-5 * largest, msg=name)


def test_the_training_rollout_and_the_cache_run_dense_and_strict_says_why() -> None:
    it = twin(NAME)
    model, view = it.build(), (2, 4, 8)
    call = it.arguments(model, view) | {"kv_cache": None, "kv_cache_flag": None, "chunk_partition": [1, 1]}
    with torch.no_grad():
        expected = model(**call)[0]
        with sparsify(model, SPARSE) as run:
            assert torch.equal(model(**call)[0], expected)
    reason = "without a cache, each chunk of frames sees those before it through a mask"
    assert run.report().dense_reasons == {reason: LAYERS}
    pipe = anyflow_far()
    with sparsify(pipe, SPARSE, strict=True), pytest.raises(NotImplementedError, match="it fills the cache"):
        video(pipe, ["a red circle"])


def test_what_cannot_choose_among_kept_frames_is_refused_before_anything_runs() -> None:
    model = twin(NAME).build()
    with pytest.raises(NotImplementedError, match=r"TopBlocks.* its queries alone, but AnyFlow-FAR .*LightForcing\(\)"):
        sparsify(model, StepSchedule(TopBlocks(density=0.3)))
    with pytest.raises(NotImplementedError, match=r"correction=PooledComplement.* is for queries and keys of the same"):
        sparsify(model, SPARSE, correction=PooledComplement())
    assert not model._forward_pre_hooks


def test_a_map_for_other_keys_is_refused() -> None:
    class Careless(Radial):
        def select(self, query: Any, key: Any, grid: VideoGrid, context: Any) -> Any:
            return self.plan(grid)

    it = twin(NAME)
    model = it.build()
    message = r"Careless.* gave a map for keys of VideoGrid\(frames=2, .* but those of the call are VideoGrid\(frames=4"
    with sparsify(model, Careless(density=0.3, tile=(1, 2, 4))), pytest.raises(ValueError, match=message):
        it.outputs(model)


def test_the_grid_of_the_keys_follows_the_chunks() -> None:
    pipe, seen = anyflow_far(), []
    adapter, transformer = adapter_for(pipe.transformer), pipe.transformer

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        flag = kwargs["kv_cache_flag"]
        if not flag["is_cache_step"]:
            seen.append((adapter.grid(module, kwargs), adapter.key_grid(module, kwargs), flag))

    transformer.register_forward_pre_hook(look, with_kwargs=True)
    video(pipe, ["a red circle"], num_inference_steps=1)
    assert [(grid.view, keys and (keys.view, keys.prefix)) for grid, keys, _ in seen] == [
        ((1, 4, 6), None),
        ((2, 4, 6), ((3, 4, 6), 0)),
        ((2, 4, 6), ((5, 4, 6), 0)),
        ((1, 4, 6), ((5, 4, 6), 6)),
    ]
    for grid, keys, flag in seen:  # the model has written into it how many it read
        kept = flag["num_cached_compressed_tokens"] + flag["num_cached_full_tokens"]
        assert (keys or grid).tokens == kept + 128 * math.ceil(grid.video_tokens / 128)


# Helios


def test_chunks_of_helios_are_sparse_and_their_history_exact() -> None:
    pipe = helios()
    words = {"num_inference_steps": 2, "num_latent_frames_per_chunk": 3, "history_sizes": [4, 2, 1], "num_frames": 13}
    expected = video(pipe, ["a red circle"], generator=generator(), **words)
    with sparsify(pipe, ALL, strict=True) as run:
        found = video(pipe, ["a red circle"], generator=generator(), **words)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    report = run.report()
    assert report.sparse_calls == LAYERS * 2 * 2 * 2 and not report.dense_calls
    # History: 4 frames in tokens of 4x8x8 latents, 2 in 2x4x4, and 1 and the first in 1x2x2; the chunk has 3 of 4x6.
    assert {call.tokens for call in report.calls} == {1 * 1 * 2 + 1 * 2 * 3 + 2 * 24 + 72}


def test_helios_with_scaled_history_is_the_model_under_the_mask() -> None:
    it, model = twin("HeliosTransformer3DModel"), helios(is_amplify_history=True).transformer
    for block in model.blocks:
        torch.nn.init.constant_(block.attn1.history_key_scale, -2.0)  # keys about twice as large
    drawn = torch.Generator().manual_seed(8)
    call = it.adapter.example(model, (2, 4, 8), 1, lambda *shape: torch.randn(shape, generator=drawn))
    with torch.no_grad():
        plain = model(**call)[0]
        with masked(model, SPARSE, it.adapter.grid(model, call)):
            expected = model(**call)[0]
        with sparsify(model, SPARSE, strict=True):
            found = model(**call)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (plain - expected).abs().max() > 1e-3  # the mask matters
