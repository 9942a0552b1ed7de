"""Adapters of families whose video self-attention holds no text: LTX, LTX-2, Cosmos, Kandinsky 5, VACE, SkyReels-V2.

The oracle is diffusers' own processor, with the block map expanded to tokens as the mask of its attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
import torch

from vidsparse import Dense, Pattern, Radial, SlidingTile, StepSchedule, VideoGrid, attn_processors, sparsify
from vidsparse.doctor import masked
from vidsparse_pipelines import adapter_for

SPARSE = Radial(density=0.3, tile=(1, 4, 4))
ALL = SlidingTile(window=(99, 99, 99))
GRIDS = {"5x7x11": (5, 7, 11), "one-frame": (1, 5, 6)}
TEXT_TOKENS = 7
SOUND_TOKENS = 5

Noise = Callable[..., torch.Tensor]
Inputs = Callable[[tuple[int, int, int], int, Noise], dict[str, Any]]


@dataclass(frozen=True)
class Family:
    """A tiny model: its class and configuration, and its inputs for a grid (frames, height, width) and a batch."""

    model: str
    config: dict[str, Any]
    inputs: Inputs
    timestep: float = 500.0

    def build(self, **changes: Any) -> Any:
        cls = getattr(diffusers, self.model, None)
        if cls is None:
            pytest.skip(f"this diffusers has no {self.model}")
        with torch.random.fork_rng():
            torch.manual_seed(1)
            transformer = cls(**(self.config | changes))
            for name, parameter in transformer.named_parameters():
                # Attention far from uniform; modulation that lets it through (Kandinsky starts with zeros).
                if any(part in name for part in ("to_q", "to_k", "to_v", "modulation", "gate_logits", "pos_emb_")):
                    torch.nn.init.normal_(parameter, std=0.3)
        return transformer.eval()

    def call(self, transformer: Any, view: tuple[int, int, int] = (5, 7, 11), **changes: Any) -> torch.Tensor:
        """One forward pass with random inputs, the same for the same sizes; of sound and video, both."""
        batch, timestep = changes.pop("batch", 1), torch.as_tensor(changes.pop("timestep", self.timestep))
        generator = torch.Generator().manual_seed(2)
        dtype = next(next(iter(attentions(transformer).values())).parameters()).dtype

        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(dtype)

        arguments = self.inputs(view, batch, noise) | {
            "timestep": timestep.expand(batch) if timestep.ndim == 0 else timestep,
            "return_dict": False,
        }
        out = transformer(**(arguments | changes))
        return torch.cat([part.flatten() for part in out]) if isinstance(out, tuple) else out


def wan(view: tuple[int, int, int], batch: int, noise: Noise) -> dict[str, Any]:
    hidden = noise(batch, 4, view[0], 2 * view[1], 2 * view[2])
    return {"hidden_states": hidden, "encoder_hidden_states": noise(batch, TEXT_TOKENS, 16)}


def vace(view: tuple[int, int, int], batch: int, noise: Noise) -> dict[str, Any]:
    return wan(view, batch, noise) | {"control_hidden_states": noise(batch, 6, view[0], 2 * view[1], 2 * view[2])}


def cosmos(view: tuple[int, int, int], batch: int, noise: Noise) -> dict[str, Any]:
    return wan(view, batch, noise) | {"fps": 30}


def kandinsky(view: tuple[int, int, int], batch: int, noise: Noise) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, view[0], 2 * view[1], 2 * view[2], 4),
        "encoder_hidden_states": noise(batch, TEXT_TOKENS, 16),
        "pooled_projections": noise(batch, 8),
        "visual_rope_pos": tuple(torch.arange(n) for n in view),
        "text_rope_pos": torch.arange(TEXT_TOKENS),
    }


def ltx(view: tuple[int, int, int], batch: int, noise: Noise) -> dict[str, Any]:
    frames, height, width = view
    return {
        "hidden_states": noise(batch, frames * height * width, 4),
        "encoder_hidden_states": noise(batch, TEXT_TOKENS, 16),
        "encoder_attention_mask": torch.ones(batch, TEXT_TOKENS),
        "num_frames": frames,
        "height": height,
        "width": width,
    }


def ltx2(view: tuple[int, int, int], batch: int, noise: Noise) -> dict[str, Any]:
    return ltx(view, batch, noise) | {
        "audio_hidden_states": noise(batch, SOUND_TOKENS, 4),
        "audio_encoder_hidden_states": noise(batch, TEXT_TOKENS, 16),
        "audio_num_frames": SOUND_TOKENS,
        "sigma": torch.full((batch,), 500.0),
    }


HEADS = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2}
WAN = HEADS | {"in_channels": 4, "out_channels": 4, "text_dim": 16, "freq_dim": 32, "ffn_dim": 32}
WAN |= {"rope_max_seq_len": 64}
COSMOS = HEADS | {"in_channels": 4, "out_channels": 4, "text_embed_dim": 16, "adaln_lora_dim": 8}
COSMOS |= {"max_size": (16, 64, 64), "concat_padding_mask": False}  # that needs torchvision
LTX = HEADS | {"in_channels": 4, "out_channels": 4, "cross_attention_dim": 24, "caption_channels": 16}
LTX2 = LTX | {"audio_in_channels": 4, "audio_out_channels": 4, "audio_num_attention_heads": 2}
LTX2 |= {"audio_attention_head_dim": 12, "audio_cross_attention_dim": 24}
LTX23 = {"rope_type": "split", "gated_attn": True, "audio_gated_attn": True, "perturbed_attn": True}
LTX23 |= {"cross_attn_mod": True, "audio_cross_attn_mod": True}
KANDINSKY = {"in_text_dim": 16, "in_text_dim2": 8, "time_dim": 16, "model_dim": 24, "ff_dim": 32}
KANDINSKY |= {"num_text_blocks": 1, "num_visual_blocks": 2, "axes_dims": (4, 4, 4)}

FAMILIES = {
    "ltx": Family("LTXVideoTransformer3DModel", LTX, ltx),
    "ltx2": Family("LTX2VideoTransformer3DModel", LTX2, ltx2),
    "ltx2.3": Family("LTX2VideoTransformer3DModel", LTX2 | LTX23, ltx2),
    "cosmos1": Family("CosmosTransformer3DModel", COSMOS, cosmos, timestep=0.1),
    "cosmos2": Family("CosmosTransformer3DModel", COSMOS | {"extra_pos_embed_type": None}, cosmos, timestep=0.5),
    "kandinsky5": Family("Kandinsky5Transformer3DModel", KANDINSKY, kandinsky),
    "vace": Family("WanVACETransformer3DModel", WAN | {"vace_layers": [0], "vace_in_channels": 6}, vace),
    "skyreels": Family("SkyReelsV2Transformer3DModel", WAN, wan),
}
LAYERS = {name: 3 if name == "vace" else 2 for name in FAMILIES}
every_family = pytest.mark.parametrize("name", FAMILIES)


def attentions(transformer: Any) -> dict[str, torch.nn.Module]:
    return adapter_for(transformer).self_attentions(transformer)


def gradients(family: Family, transformer: Any, **changes: Any) -> dict[str, torch.Tensor]:
    transformer.zero_grad()
    family.call(transformer, **changes).square().mean().backward()
    return {name: p.grad.clone() for name, p in transformer.named_parameters() if p.grad is not None}


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        atol = 1e-4 * float(wanted.abs().max()) + 1e-8
        torch.testing.assert_close(found[name], wanted, rtol=1e-3, atol=atol, msg=name)


def low_precision(transformer: Any) -> Any:
    """The transformer in bfloat16, but for what `from_pretrained` keeps in float32."""
    kept = transformer._keep_in_fp32_modules or []
    transformer.to(torch.bfloat16)
    for name, module in transformer.named_modules():
        if any(part in name.split(".") for part in kept):
            module.float()
    return transformer


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
            with pytest.raises(NotImplementedError, match="context parallelism is on"):
                family.call(transformer)
        if hasattr(original, "_attention_backend"):
            module.processor._attention_backend = "native"
            assert original._attention_backend == "native"


# Noise


class Spy(Dense):
    """Dense, and notes the contexts it is asked for."""

    seen: list[Any]

    def is_dense(self, context: Any) -> bool:
        self.seen.append(context)
        return True


def contexts(family: Family, transformer: Any, timesteps: list[Any]) -> list[Any]:
    """The context of the first layer at each of these timesteps."""
    spy = Spy()
    object.__setattr__(spy, "seen", [])
    with torch.no_grad(), sparsify(transformer, spy):
        for timestep in timesteps:
            family.call(transformer, (3, 2, 2), timestep=timestep)
    return [context for context in spy.seen if context.layer == 0]


def test_cosmos_1_is_told_the_logarithm_of_the_noise() -> None:
    scheduler = diffusers.EDMEulerScheduler(sigma_max=80.0, sigma_data=1.0, final_sigmas_type="sigma_min")
    scheduler.set_timesteps(6)
    family = FAMILIES["cosmos1"]
    found = contexts(family, family.build(), list(scheduler.timesteps))
    sigmas = scheduler.sigmas[:6]
    assert [context.sigma for context in found] == pytest.approx((sigmas / (1 + sigmas)).tolist(), rel=1e-4)
    assert [context.step for context in found] == list(range(6))


def test_cosmos_2_is_told_the_time_of_flow_matching() -> None:
    # The first frame is a condition with noise of its own, more than what the others have left in the last step.
    family = FAMILIES["cosmos2"]
    frames = torch.tensor([0.1, 1.0, 1.0])
    timesteps = [torch.where(frames < 1, frames, noise).view(1, 1, 3, 1, 1) for noise in (0.98, 0.5, 0.05)]
    found = contexts(family, family.build(), timesteps)
    assert [(context.step, context.sigma) for context in found] == [
        (step, pytest.approx(sigma)) for step, sigma in enumerate((0.98, 0.5, 0.05))
    ]


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


# What single families do


def video_ids(frames: int, height: int, width: int, start: int = 0) -> torch.Tensor:
    """Coordinates [1, 3, tokens] as LTX's condition pipeline makes them, times in seconds."""
    pipeline = diffusers.LTXConditionPipeline
    ids = pipeline._prepare_video_ids(1, frames, height, width)
    scaled: torch.Tensor = pipeline._scale_video_ids(ids, frame_index=start).float()
    scaled[:, 0] /= 25
    return scaled


CONDITIONS = {
    "none": [(5, 7, 11, 0)],
    "before": [(1, 7, 11, 8), (2, 7, 11, 24), (5, 7, 11, 0)],
    "after": [(5, 7, 11, 0), (1, 7, 11, -1)],
}


@torch.no_grad()
@pytest.mark.parametrize("parts", CONDITIONS.values(), ids=CONDITIONS)
@pytest.mark.parametrize("name", ["ltx", "ltx2"])
def test_coordinates_tell_the_video_from_its_conditions(name: str, parts: list[tuple[int, int, int, int]]) -> None:
    family = FAMILIES[name]
    coords = torch.cat([video_ids(*part) for part in parts], dim=2)
    coords = coords.repeat_interleave(2, dim=0)
    before = sum(part[0] for part in parts[: parts.index((5, 7, 11, 0))]) * 77
    grid = VideoGrid(5, 7, 11, prefix=before, suffix=coords.shape[2] - 385 - before)
    changes = {
        "hidden_states": torch.randn(2, grid.tokens, 4),
        "video_coords": coords if name == "ltx" else torch.stack((coords, coords + 1), dim=-1),
        "num_frames": None,
        "height": None,
        "width": None,
        "batch": 2,
    }
    transformer = family.build()
    with masked(transformer, SPARSE, grid):
        expected = family.call(transformer, **changes)
    with sparsify(transformer, SPARSE, strict=True) as run:
        torch.testing.assert_close(family.call(transformer, **changes), expected, rtol=1e-4, atol=1e-4)
    assert {call.tokens for call in run.report().calls} == {grid.tokens}
    assert run.report().density == SPARSE.plan(grid).density


@torch.no_grad()
def test_coordinates_of_no_grid_run_dense() -> None:
    family = FAMILIES["ltx"]
    transformer = family.build()
    coords = video_ids(5, 7, 11)[..., torch.randperm(385)]
    expected = family.call(transformer, video_coords=coords)
    with sparsify(transformer, SPARSE) as run:
        assert torch.equal(family.call(transformer, video_coords=coords), expected)
        family.call(transformer)
    reasons = {"the video coordinates are those of no grid of frames x height x width": 2}
    assert run.report().dense_reasons == reasons and run.report().sparse_calls == 2


@torch.no_grad()
def test_ltx2_key_frames_after_the_video_are_a_suffix() -> None:
    family = FAMILIES["ltx2"]
    transformer, grid = family.build(), VideoGrid(5, 7, 11, suffix=20)
    coords = transformer.rope.prepare_video_coords(1, 5, 7, 11, torch.device("cpu"))
    changes = {
        "hidden_states": torch.randn(1, grid.tokens, 4),
        "video_coords": torch.cat((coords, coords[:, :, :20]), dim=2),
    }
    with masked(transformer, SPARSE, grid):
        expected = family.call(transformer, **changes)
    with sparsify(transformer, SPARSE, strict=True):
        torch.testing.assert_close(family.call(transformer, **changes), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("mask", [None, [1.0, 0.0], [0.0, 0.0]], ids=["whole-batch", "one-of-two", "given-for-all"])
def test_ltx2_spatio_temporal_guidance(mask: list[float] | None) -> None:
    family = FAMILIES["ltx2.3"]
    transformer = family.build()
    changes = {"batch": 2, "spatio_temporal_guidance_blocks": [1]}
    changes["perturbation_mask"] = None if mask is None else torch.tensor(mask)
    with masked(transformer, SPARSE, VideoGrid(5, 7, 11)):
        expected = family.call(transformer, **changes)
    with sparsify(transformer, SPARSE, strict=True) as run:
        torch.testing.assert_close(family.call(transformer, **changes), expected, rtol=1e-4, atol=1e-4)
    assert run.report().sparse_calls == (2 if mask == [1.0, 0.0] else 1)


@torch.no_grad()
def test_ltx2_patches_of_latents() -> None:
    family = FAMILIES["ltx2"]
    transformer = family.build(patch_size=2, patch_size_t=1)
    changes = {"height": 13, "width": 22}  # 7 x 11 patches
    with masked(transformer, SPARSE, VideoGrid(5, 7, 11)):
        expected = family.call(transformer, **changes)
    with sparsify(transformer, SPARSE, strict=True):
        torch.testing.assert_close(family.call(transformer, **changes), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_self_attention_mask_of_ltx2_runs_dense() -> None:
    family = FAMILIES["ltx2"]
    transformer = family.build()
    changes = {"video_self_attention_mask": torch.rand(1, 12, 12), "num_frames": 3, "height": 2, "width": 2}
    expected = family.call(transformer, (3, 2, 2), **changes)
    with sparsify(transformer, SPARSE) as run:
        assert torch.equal(family.call(transformer, (3, 2, 2), **changes), expected)
    assert run.report().dense_reasons == {"the call has an attention mask": 2}


@torch.no_grad()
def test_skyreels_with_blocks_of_frames_runs_dense() -> None:
    family = FAMILIES["skyreels"]
    transformer, view = family.build(), (4, 3, 5)
    transformer._set_ar_attention(2)
    changes = {"timestep": torch.tensor([[300.0, 300.0, 800.0, 800.0]]), "enable_diffusion_forcing": True}
    expected = family.call(transformer, view, **changes)
    with sparsify(transformer, SPARSE) as run:
        assert torch.equal(family.call(transformer, view, **changes), expected)
    assert run.report().dense_reasons == {"the call has an attention mask": 2}


@torch.no_grad()
def test_kandinsky_with_attention_of_its_own_runs_dense() -> None:
    family = FAMILIES["kandinsky5"]
    transformer, view = family.build(), (2, 8, 8)
    own = {"sparse_params": {"to_fractal": False, "sta_mask": torch.ones(2, 2, dtype=torch.bool), "P": 0.9}}
    message = r"nabla.* is on; .*attention_type='regular'"
    with sparsify(transformer, SPARSE, strict=True), pytest.raises(NotImplementedError, match=message):
        family.call(transformer, view, **own)


@torch.no_grad()
def test_cosmos_with_a_condition_mask_and_control() -> None:
    family = FAMILIES["cosmos2"]
    transformer = family.build(in_channels=5, controlnet_block_every_n=1)
    changes = {
        "condition_mask": torch.ones(1, 1, 5, 14, 22),
        "block_controlnet_hidden_states": [torch.randn(1, 385, 24) for _ in range(2)],
    }
    with masked(transformer, SPARSE, VideoGrid(5, 7, 11)):
        expected = family.call(transformer, **changes)
    with sparsify(transformer, SPARSE, strict=True):
        torch.testing.assert_close(family.call(transformer, **changes), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["vace", "skyreels"])
def test_pixels_that_fill_no_patch(name: str) -> None:
    family = FAMILIES[name]
    transformer, changes = family.build(), {"hidden_states": torch.randn(1, 4, 4, 11, 9)}
    if name == "vace":
        changes["control_hidden_states"] = torch.randn(1, 6, 4, 11, 9)
    with masked(transformer, SPARSE, VideoGrid(4, 5, 4)):
        expected = family.call(transformer, **changes)
    with sparsify(transformer, SPARSE, strict=True):
        torch.testing.assert_close(family.call(transformer, **changes), expected, rtol=1e-4, atol=1e-4)


def test_layers_of_vace_are_in_the_order_they_run() -> None:
    transformer = FAMILIES["vace"].build()
    assert list(attentions(transformer)) == ["vace_blocks.0.attn1", "blocks.0.attn1", "blocks.1.attn1"]
