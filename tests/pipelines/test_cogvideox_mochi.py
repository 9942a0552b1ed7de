"""CogVideoX, ConsisID, Mochi and Allegro made sparse, on tiny random transformers.

The oracle is diffusers' own processors, with the block map expanded to tokens as the mask of their attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers import (
    AllegroTransformer3DModel,
    CogVideoXTransformer3DModel,
    ConsisIDTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    MochiTransformer3DModel,
)

from vidsparse import Dense, Pattern, Radial, SlidingTile, StepSchedule, VideoGrid, sparsify
from vidsparse.doctor import masked

KEEPS_ALL = SlidingTile(window=(99, 99, 99))
SPARSE = Radial(density=0.3, tile=(1, 4, 4))
PATTERNS = {"radial": SPARSE, "sliding": SlidingTile(window=(2, 3, 3), tile=(1, 3, 2))}
GRIDS = {"5x7x11": (5, 7, 11), "2x5x3": (2, 5, 3), "one-frame": (1, 6, 7)}
TEXT = 7  # tokens of text


def pair_rotary(grid: VideoGrid) -> dict[str, Any]:
    """CogVideoX: cosines and sines [tokens, head_dim] that hold each angle twice."""
    angles = 6 * torch.rand(grid.video_tokens, 8, generator=torch.Generator().manual_seed(5))
    return {"image_rotary_emb": tuple(x.repeat_interleave(2, dim=1) for x in (angles.cos(), angles.sin()))}


def axis_rotary(grid: VideoGrid) -> dict[str, Any]:
    """Allegro: a table of cosines and sines for each axis, and where each token stands on it."""
    generator = torch.Generator().manual_seed(5)
    angles = [6 * torch.rand(size, 4, generator=generator) for size in grid.view]
    positions = torch.cartesian_prod(*(torch.arange(size) for size in grid.view)).T[:, None]
    return {"image_rotary_emb": (tuple((a.cos(), a.sin()) for a in angles), tuple(positions))}


def text_mask(*real: int) -> dict[str, Any]:
    """The first tokens of each sample are real."""
    return {"encoder_attention_mask": torch.arange(TEXT) < torch.tensor(real)[:, None]}


@dataclass(frozen=True)
class Family:
    """How to build and call a tiny transformer.

    Attributes:
        patch: of frames, height and width.
        channels_first: channels stand before the frames, not after them.
        extra: more arguments of a call, by grid and batch.
    """

    model: type[torch.nn.Module]
    settings: dict[str, Any]
    patch: tuple[int, int, int] = (1, 2, 2)
    channels_first: bool = False
    fused: bool = False
    extra: Callable[[VideoGrid, int], dict[str, Any]] = field(default=lambda grid, batch: {})

    def build(self) -> Any:
        """Two layers of two heads; the same random weights each time."""
        with torch.random.fork_rng():
            torch.manual_seed(1)
            transformer = self.model(num_layers=2, num_attention_heads=2, in_channels=4, **self.settings)
            for name, parameter in transformer.named_parameters():
                if (".attn1." in name and parameter.ndim == 2) or name == "pos_frequencies":
                    torch.nn.init.normal_(parameter, std=0.3)  # so that attention is far from uniform
        transformer.eval()
        if self.fused:
            with torch.no_grad():
                transformer.fuse_qkv_projections()
        return transformer

    def grid(self, view: tuple[int, int, int]) -> VideoGrid:
        if self.model is AllegroTransformer3DModel:
            return VideoGrid(*view)
        return VideoGrid(*view, suffix=TEXT) if self.model is MochiTransformer3DModel else VideoGrid(*view, prefix=TEXT)

    def call(self, transformer: torch.nn.Module, view: tuple[int, int, int], batch: int, **changes: Any) -> Any:
        """One forward pass with random inputs, the same for the same sizes."""
        grid, generator = VideoGrid(*view), torch.Generator().manual_seed(2)
        frames, height, width = (size * patch for size, patch in zip(view, self.patch, strict=True))
        sizes = (4, frames) if self.channels_first else (frames, 4)
        dtype = next(transformer.parameters()).dtype
        arguments: dict[str, Any] = {
            "hidden_states": torch.randn(batch, *sizes, height, width, generator=generator).to(dtype),
            "encoder_hidden_states": torch.randn(batch, TEXT, 16, generator=generator).to(dtype),
            "timestep": torch.full((batch,), 500.0),
            "return_dict": False,
        }
        return transformer(**(arguments | self.extra(grid, batch) | changes))[0]


COGVIDEOX = {"attention_head_dim": 16, "out_channels": 4, "time_embed_dim": 16, "text_embed_dim": 16}
ROTARY = {"use_rotary_positional_embeddings": True}
FAMILIES = {
    "cogvideox-2b": Family(CogVideoXTransformer3DModel, COGVIDEOX | {"max_text_seq_length": TEXT}),
    "cogvideox-5b": Family(CogVideoXTransformer3DModel, COGVIDEOX | ROTARY, extra=lambda g, _: pair_rotary(g)),
    "cogvideox-fused": Family(
        CogVideoXTransformer3DModel, COGVIDEOX | ROTARY, fused=True, extra=lambda g, _: pair_rotary(g)
    ),
    "cogvideox-1.5": Family(
        CogVideoXTransformer3DModel,
        COGVIDEOX | ROTARY | {"patch_size_t": 2, "patch_bias": False},
        patch=(2, 2, 2),
        extra=lambda g, _: pair_rotary(g),
    ),
    "consisid": Family(
        ConsisIDTransformer3DModel,
        COGVIDEOX | ROTARY | {"is_train_face": False},
        extra=lambda g, _: pair_rotary(g),
    ),
    "mochi": Family(
        MochiTransformer3DModel,
        {"attention_head_dim": 16, "pooled_projection_dim": 16, "text_embed_dim": 16, "time_embed_dim": 16},
        channels_first=True,
        extra=lambda _, batch: text_mask(3, TEXT) if batch == 2 else text_mask(5),
    ),
    "allegro": Family(
        AllegroTransformer3DModel,
        {"attention_head_dim": 12, "cross_attention_dim": 24, "caption_channels": 16},
        channels_first=True,
        extra=lambda g, batch: axis_rotary(g) | (text_mask(3, TEXT) if batch == 2 else text_mask(5)),
    ),
}
MOCHI = FAMILIES["mochi"]
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
each_batch = pytest.mark.parametrize("batch", [1, 2], ids=["batch1", "batch2"])
each_impl = pytest.mark.parametrize("impl", ["cpu", "reference"])


def gradients(family: Family, transformer: Any, view: tuple[int, int, int], batch: int) -> dict[str, torch.Tensor]:
    transformer.zero_grad()
    family.call(transformer, view, batch).square().mean().backward()
    return {name: p.grad.clone() for name, p in transformer.named_parameters() if p.grad is not None}


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert any(".attn1." in name for name in found)
    for name, wanted in expected.items():
        torch.testing.assert_close(
            found[name], wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()) + 1e-8, msg=name
        )


@torch.no_grad()
@each_batch
@each_family
def test_dense_pattern_is_the_untouched_model(family: Family, batch: int) -> None:
    transformer, view = family.build(), GRIDS["2x5x3"]
    before = [block.attn1.processor for block in transformer.transformer_blocks]
    expected = family.call(transformer, view, batch)
    with sparsify(transformer, Dense()) as run:
        assert torch.equal(family.call(transformer, view, batch), expected)
    assert run.report().dense_calls == 2
    assert all(b.attn1.processor is old for b, old in zip(transformer.transformer_blocks, before, strict=True))


@each_impl
@each_batch
@each_family
def test_a_pattern_that_keeps_all_is_the_untouched_model_to_rounding(family: Family, batch: int, impl: str) -> None:
    transformer, view = family.build(), GRIDS["2x5x3"]
    expected, wanted = family.call(transformer, view, batch), gradients(family, transformer, view, batch)
    with sparsify(transformer, KEEPS_ALL, impl=impl) as run:
        torch.testing.assert_close(family.call(transformer, view, batch), expected, rtol=1e-4, atol=1e-5)
        assert_same_gradients(gradients(family, transformer, view, batch), wanted)
    assert run.report().dense_reasons == {} and run.report().sparse_calls == 4


@torch.no_grad()
@each_batch
@pytest.mark.parametrize("view", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@each_family
def test_a_sparse_model_is_the_model_under_the_expanded_mask(
    family: Family, pattern: Pattern, view: tuple[int, int, int], batch: int
) -> None:
    transformer = family.build()
    with masked(transformer, pattern, family.grid(view)):
        expected = family.call(transformer, view, batch)
    with sparsify(transformer, pattern) as run:
        torch.testing.assert_close(family.call(transformer, view, batch), expected, rtol=1e-4, atol=1e-5)
    assert {c.tokens for c in run.report().sparse} == {family.grid(view).tokens}
    if pattern.plan(VideoGrid(*view)).density < 1:
        untouched = family.call(transformer, view, batch)
        assert (untouched - expected).abs().max() > 1e-4, "the mask changes nothing, so this test shows nothing"


@each_impl
@each_family
def test_gradients_are_those_under_the_expanded_mask(family: Family, impl: str) -> None:
    transformer, view = family.build(), GRIDS["5x7x11"]
    with masked(transformer, SPARSE, family.grid(view)):
        expected = gradients(family, transformer, view, 2)
    with sparsify(transformer, SPARSE, impl=impl):
        assert_same_gradients(gradients(family, transformer, view, 2), expected)
        transformer.train()
        transformer.enable_gradient_checkpointing()
        assert_same_gradients(gradients(family, transformer, view, 2), expected)


@torch.no_grad()
@each_impl
@each_family
def test_a_sparse_model_in_bfloat16(family: Family, impl: str) -> None:
    transformer, view = family.build(), GRIDS["5x7x11"]
    with masked(transformer, SPARSE, family.grid(view)):
        exact = family.call(transformer, view, 2)
        plain = family.call(transformer.to(torch.bfloat16), view, 2)
    with sparsify(transformer, SPARSE, impl=impl):
        found = family.call(transformer, view, 2)
    assert found.dtype == torch.bfloat16
    error, allowed = ((x.float() - exact).abs().max() for x in (found, plain))
    assert error <= 2 * allowed + torch.finfo(torch.bfloat16).eps * exact.abs().max()


@torch.no_grad()
@each_family
def test_autocast_runs_in_the_lower_precision(family: Family) -> None:
    transformer, view = family.build(), GRIDS["5x7x11"]
    with torch.autocast("cpu", torch.bfloat16):
        plain = family.call(transformer, view, 2)
        with sparsify(transformer, KEEPS_ALL, strict=True):
            found = family.call(transformer, view, 2)
    torch.testing.assert_close(found, plain, rtol=5e-2, atol=5e-2)


@torch.no_grad()
@each_family
def test_two_sizes_in_a_row(family: Family) -> None:
    transformer = family.build()
    with sparsify(transformer, SPARSE):
        found = [family.call(transformer, view, 1) for view in GRIDS.values()]
    for view, out in zip(GRIDS.values(), found, strict=True):
        with masked(transformer, SPARSE, family.grid(view)):
            torch.testing.assert_close(out, family.call(transformer, view, 1), rtol=1e-4, atol=1e-5)


# CogVideoX


@torch.no_grad()
def test_cogvideox_takes_a_latent_size_that_patches_do_not_divide() -> None:
    family, view = FAMILIES["cogvideox-5b"], (3, 5, 4)
    transformer, latents = family.build(), torch.randn(1, 3, 4, 11, 9)
    with masked(transformer, SPARSE, family.grid(view)):
        expected = family.call(transformer, view, 1, hidden_states=latents)
    with sparsify(transformer, SPARSE):
        found = family.call(transformer, view, 1, hidden_states=latents)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_cogvideox_reads_the_projections_that_the_model_reads() -> None:
    family, view = FAMILIES["cogvideox-fused"], GRIDS["2x5x3"]
    transformer = family.build()
    expected, attention = family.call(transformer, view, 1), transformer.transformer_blocks[0].attn1
    torch.nn.init.zeros_(attention.to_q.weight)
    with sparsify(transformer, KEEPS_ALL):
        torch.testing.assert_close(family.call(transformer, view, 1), expected, rtol=1e-4, atol=1e-5)
    transformer.unfuse_qkv_projections()
    unfused = family.call(transformer, view, 1)
    assert attention.fused_projections and (unfused - expected).abs().max() > 1e-4
    with sparsify(transformer, KEEPS_ALL):
        torch.testing.assert_close(family.call(transformer, view, 1), unfused, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["cogvideox-5b", "allegro"])
def test_a_call_with_an_attention_mask_is_dense_and_says_so(name: str) -> None:
    family, view = FAMILIES[name], GRIDS["2x5x3"]
    transformer = family.build()
    if name == "allegro":
        mask: dict[str, Any] = {"attention_mask": torch.ones(1, 2, 10, 6)}  # of latents
        mask["attention_mask"][:, 1] = 0
    else:
        tokens = TEXT + 30
        mask = {"attention_kwargs": {"attention_mask": torch.rand(1, tokens, tokens) < 0.8}}
    expected = family.call(transformer, view, 1, **mask)
    with sparsify(transformer, SPARSE) as run:
        assert torch.equal(family.call(transformer, view, 1, **mask), expected)
    assert run.report().dense_reasons == {"the call has an attention mask": 2}
    assert (family.call(transformer, view, 1) - expected).abs().max() > 1e-4


# Mochi

MASKS = {
    "bool": text_mask(2, 6)["encoder_attention_mask"],
    "int": text_mask(4, 1)["encoder_attention_mask"].int(),
    "no-text": text_mask(0, TEXT)["encoder_attention_mask"],  # how an empty negative prompt comes
    "scattered": torch.tensor([[0, 1, 1, 0, 1, 0, 0], [1, 0, 1, 1, 1, 1, 1]]).bool(),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_mochi_with_text_of_different_lengths(mask: torch.Tensor) -> None:
    transformer, view = MOCHI.build(), GRIDS["5x7x11"]
    for pattern in (KEEPS_ALL, SPARSE):
        with masked(transformer, pattern, MOCHI.grid(view)):
            expected = MOCHI.call(transformer, view, 2, encoder_attention_mask=mask)
        for impl in ("cpu", "reference"):
            with sparsify(transformer, pattern, impl=impl, strict=True):
                found = MOCHI.call(transformer, view, 2, encoder_attention_mask=mask)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_mochi_gives_the_rows_of_text_that_the_original_gives(mask: torch.Tensor) -> None:
    transformer, view = MOCHI.build(), GRIDS["2x5x3"]
    given: list[tuple[torch.Tensor, torch.Tensor]] = []
    for block in transformer.transformer_blocks:
        block.attn1.register_forward_hook(lambda module, args, out: given.append(out))
    MOCHI.call(transformer, view, 2, encoder_attention_mask=mask)
    expected, given[:] = list(given), []
    with sparsify(transformer, KEEPS_ALL):
        MOCHI.call(transformer, view, 2, encoder_attention_mask=mask)
    assert [text.shape[-1] for _, text in given] == [16, 32]  # the last layer leaves text unprojected
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_mochi_counts_its_growing_timesteps_as_steps_of_one_run() -> None:
    transformer, view = MOCHI.build(), GRIDS["2x5x3"]
    with sparsify(transformer, StepSchedule(SPARSE, sigmas=(0.0, 0.5))) as run:
        for timestep in (0.0, 0.0, 400.0, 400.0, 900.0, 0.0):  # the pairs are guidance's two calls
            MOCHI.call(transformer, view, 1, timestep=torch.tensor([timestep]))
    first = [call for call in run.report().calls if call.layer == 0]
    assert [(c.step, c.calls, c.reason is None) for c in first] == [(0, 3, False), (1, 2, False), (2, 1, True)]


class Pipeline:
    """What `sparsify` needs of a pipeline."""

    def __init__(self, **parts: Any):
        self.__dict__.update(parts)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_mochi_finds_its_steps_in_its_scheduler(dtype: torch.dtype) -> None:
    transformer, view = MOCHI.build(), GRIDS["2x5x3"]
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    scheduler.set_timesteps(5)
    pipe = Pipeline(transformer=transformer, scheduler=scheduler)
    with sparsify(pipe, StepSchedule(SPARSE, dense_steps=1, dense_last_steps=1)) as run:
        for timestep in scheduler.timesteps:
            MOCHI.call(transformer, view, 1, timestep=timestep[None].to(dtype))  # as the pipeline rounds it
    first = [(call.step, call.reason is None) for call in run.report().calls if call.layer == 0]
    assert first == [(0, False), (1, True), (2, True), (3, True), (4, False)]
