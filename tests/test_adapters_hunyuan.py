"""HunyuanVideo, HunyuanVideo 1.5 and FramePack on tiny random models.

The oracle is diffusers' own processor whose attention gets the block map, expanded to tokens, as its mask. Rows of
padded text may hold anything: nobody reads them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers import (
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoFramepackTransformer3DModel,
    HunyuanVideoTransformer3DModel,
)

import vidsparse_pipelines
import vidsparse_pipelines.hunyuan_video
from vidsparse import Dense, Pattern, Radial, RadialRaster, SlidingTile, VideoGrid, attn_processors, sparsify

SPARSE = Radial(density=0.3, tile=(1, 4, 4))
KEEPS_ALL = SlidingTile(window=(99, 99, 99))
PATTERNS: dict[str, Pattern] = {
    "radial": SPARSE,
    "raster": RadialRaster(block=16),
    "sliding": SlidingTile(window=(2, 5, 5), tile=(1, 3, 4)),
}
VIEWS = {"3x5x7": (3, 5, 7), "odd-pixels": (2, 5, 7), "one-frame": (1, 5, 6)}  # tokens of the video
ODD = {"odd-pixels": 1}  # latent rows and columns beyond the last whole patch
TEXT = 9
LENGTHS = (5, 9, 1)  # real tokens of the prompt, by sample
BATCHES = pytest.mark.parametrize("batch", [1, 2, 3], ids=["batch1", "batch2", "batch3"])
IMPLS = pytest.mark.parametrize("impl", ["cpu", "reference"])
TINY: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 1,
    "num_refiner_layers": 1,
    "mlp_ratio": 2.0,
    "text_embed_dim": 16,
    "rope_axes_dim": (4, 4, 4),
}

Build = Callable[..., torch.Tensor]


def hunyuan(random: Build, batch: int, size: tuple[int, int, int]) -> dict[str, Any]:
    return {"pooled_projections": random(batch, 8), "guidance": torch.full((batch,), 6.0)}


def hunyuan_15(random: Build, batch: int, size: tuple[int, int, int]) -> dict[str, Any]:
    glyphs = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])[:batch]
    return {
        "encoder_hidden_states_2": random(batch, 4, 10),
        "encoder_attention_mask_2": glyphs,
        "image_embeds": torch.zeros_like(random(batch, 3, 6)),
    }


def hunyuan_15_image(random: Build, batch: int, size: tuple[int, int, int]) -> dict[str, Any]:
    return hunyuan_15(random, batch, size) | {"image_embeds": random(batch, 3, 6)}


def framepack(random: Build, batch: int, size: tuple[int, int, int]) -> dict[str, Any]:
    arguments = hunyuan(random, batch, size) | {
        "image_embeds": random(batch, 3, 6),
        "indices_latents": torch.arange(8, 8 + size[0]),
    }
    for name, first, frames in (("clean", 7, 2), ("history_2x", 5, 3), ("history_4x", 0, 5)):
        arguments[f"latents_{name}"] = random(batch, 4, frames, *size[1:])
        arguments[f"indices_latents_{name}"] = torch.arange(first, first + frames)
    return arguments


@dataclass(frozen=True)
class Family:
    """A model, what its forward pass wants besides the video and the prompt, and the text that must come of it."""

    model: type[torch.nn.Module]
    adapter: tuple[str, str]
    arguments: Callable[[Build, int, tuple[int, int, int]], dict[str, Any]]
    real: tuple[int, ...]  # real tokens around the video, by sample, where a batch has padding
    extra: tuple[int, int] = (0, TEXT)  # tokens before and after the video, padding included
    patch: int = 2
    cuts_padding: bool = False  # a batch of one has no padding
    settings: dict[str, Any] = field(default_factory=dict)

    def tiny(self, **changes: Any) -> Any:
        """The same random weights for the same settings."""
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return self.model(**(TINY | self.settings | changes)).eval()

    def size(self, name: str = "3x5x7") -> tuple[int, int, int]:
        """Latents."""
        frames, height, width = VIEWS[name]
        more = ODD.get(name, 0) if self.patch > 1 else 0
        return frames, self.patch * height + more, self.patch * width + more

    def grid(self, name: str = "3x5x7", batch: int = 1) -> VideoGrid:
        prefix, suffix = self.extra
        if self.cuts_padding:
            height, width = VIEWS[name][1:]
            # Two clean frames, three at half and five at a quarter of the resolution, each rounded up.
            prefix = 2 * height * width + 2 * -(-height // 2) * -(-width // 2) + 2 * -(-height // 4) * -(-width // 4)
            suffix = self.real[0] if batch == 1 else suffix
        return VideoGrid(*VIEWS[name], prefix=prefix, suffix=suffix)

    def valid(self, name: str = "3x5x7", batch: int = 1) -> torch.Tensor:
        return self.grid(name, batch).prefix + torch.tensor(self.real[:batch])


SKYREELS = {"in_channels": 9, "image_condition_type": "latent_concat"}
SINGLE: dict[str, Any] = {"num_single_layers": 1, "pooled_projection_dim": 8}
FIFTEEN: dict[str, Any] = {"text_embed_2_dim": 10, "image_embed_dim": 6}
HUNYUAN = HunyuanVideoTransformer3DModel, ("vidsparse_pipelines.hunyuan_video", "HunyuanVideoAdapter"), hunyuan, LENGTHS
ADAPTER_15 = "vidsparse_pipelines.hunyuan_video_15", "HunyuanVideo15Adapter"
FAMILIES = {
    "hunyuan": Family(*HUNYUAN, settings=SINGLE),
    "hunyuan-concat": Family(*HUNYUAN, settings=SINGLE | SKYREELS),
    "hunyuan-replace": Family(*HUNYUAN, settings=SINGLE | {"image_condition_type": "token_replace"}),
    "hunyuan15": Family(
        HunyuanVideo15Transformer3DModel, ADAPTER_15, hunyuan_15, (7, 9, 5), (0, TEXT + 7), patch=1, settings=FIFTEEN
    ),
    "hunyuan15-image": Family(
        HunyuanVideo15Transformer3DModel,
        ADAPTER_15,
        hunyuan_15_image,
        (10, 12, 8),
        (0, TEXT + 7),
        patch=1,
        settings=FIFTEEN,
    ),
    "framepack": Family(
        HunyuanVideoFramepackTransformer3DModel,
        ("vidsparse_pipelines.framepack", "FramepackAdapter"),
        framepack,
        (8, 12, 4),
        (0, TEXT + 3),
        cuts_padding=True,
        settings=SINGLE | {"has_image_proj": True, "image_proj_dim": 6, "has_clean_x_embedder": True},
    ),
}
EACH = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
ONE_EACH = pytest.mark.parametrize(
    "family",
    [FAMILIES[name] for name in ("hunyuan", "hunyuan15", "framepack")],
    ids=["hunyuan", "hunyuan15", "framepack"],
)


def call(family: Family, transformer: Any, name: str = "3x5x7", batch: int = 1, **changes: Any) -> torch.Tensor:
    """One forward pass with random inputs, the same for the same size and batch."""
    generator = torch.Generator().manual_seed(2)
    parameter = next(transformer.parameters())

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(parameter)

    size = family.size(name)
    arguments: dict[str, Any] = {
        "hidden_states": random(batch, transformer.config.in_channels, *size),
        "timestep": torch.full((batch,), 500.0).to(parameter),
        "encoder_hidden_states": random(batch, TEXT, 16),
        "encoder_attention_mask": (torch.arange(TEXT) < torch.tensor(LENGTHS[:batch])[:, None]).long(),
        "return_dict": False,
    } | family.arguments(random, batch, size)
    out: torch.Tensor = transformer(**(arguments | changes))[0]
    return out


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


@torch.no_grad()
@ONE_EACH
def test_a_mask_is_looked_at_once_in_a_forward_pass(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, transformer = [], family.tiny(num_layers=3)
    leading = vidsparse_pipelines.hunyuan_video._leading
    monkeypatch.setattr(
        "vidsparse_pipelines.hunyuan_video._leading", lambda keys: looks.append(keys.shape) or leading(keys)
    )
    with sparsify(transformer, SPARSE, strict=True):
        call(family, transformer, batch=2)
    assert looks == [(2, family.grid(batch=2).tokens)]


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("hunyuan15", "hole"),
        *((name, kind) for name in ("hunyuan", "framepack") for kind in ("hole", "video", "pairs")),
    ],
)
def test_other_masks_run_dense_with_a_reason_or_raise_if_strict(name: str, kind: str) -> None:
    family = FAMILIES[name]
    transformer, grid = family.tiny(), family.grid(batch=2)
    attention, text = transformer.transformer_blocks[0].attn, grid.suffix
    # That of HunyuanVideo 1.5 is a mask of the text alone.
    mask = torch.ones(2, text, dtype=torch.bool) if name == "hunyuan15" else torch.ones(2, 1, 1, grid.tokens).bool()
    if kind == "hole":
        mask[1, ..., -2] = False
    elif kind == "video":
        mask[1, ..., -text - 1 :] = False
    else:
        mask = mask.expand(-1, -1, grid.tokens, -1)
    arguments = torch.randn(2, grid.tokens - text, 24), torch.randn(2, text, 24), mask
    expected = attention(*arguments)
    with sparsify(transformer, SPARSE) as run:
        call(family, transformer, batch=2)
        run.reset()
        found = attention(*arguments)
    assert run.report().dense_reasons == {"the attention mask hides other tokens than padding after the text": 1}
    assert all(torch.equal(out, wanted) for out, wanted in zip(found, expected, strict=True))
    with sparsify(transformer, SPARSE, strict=True):
        call(family, transformer, batch=2)
        with pytest.raises(NotImplementedError, match="hides other tokens than padding"):
            attention(*arguments)


@torch.no_grad()
@ONE_EACH
def test_calls_without_text_and_context_parallelism_run_dense(family: Family) -> None:
    transformer = family.tiny()
    with sparsify(transformer, SPARSE, strict=True):
        call(family, transformer)
        attention = transformer.transformer_blocks[0].attn
        with pytest.raises(NotImplementedError, match="no text tokens"):
            attention(torch.randn(1, 105, 24))
        attention.processor._parallel_config = "ulysses"
        with pytest.raises(NotImplementedError, match="context parallelism is on"):
            call(family, transformer)


def test_attention_outside_the_transformer_has_no_grid() -> None:
    family = FAMILIES["hunyuan"]
    attention = (transformer := family.tiny()).transformer_blocks[0].attn
    with sparsify(transformer, SPARSE), pytest.raises(RuntimeError, match="outside the transformer's forward"):
        attention(torch.randn(1, 105, 24), torch.randn(1, TEXT, 24), torch.ones(1, 1, 1, 105 + TEXT, dtype=torch.bool))


@pytest.mark.parametrize(
    ("setting", "layer"), [("has_clean_x_embedder", "clean_x_embedder"), ("has_image_proj", "image_projection")]
)
def test_framepack_without_its_embedders_has_no_known_layout(setting: str, layer: str) -> None:
    family = FAMILIES["framepack"]
    transformer = family.tiny(**{setting: False})
    message = f"without {layer} has an unknown token layout; build it with {setting}=True"
    with pytest.raises(NotImplementedError, match=message):
        sparsify(transformer, SPARSE)
