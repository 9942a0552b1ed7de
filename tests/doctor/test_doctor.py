"""The doctor: every family passes every check, and so do the variants of its checkpoints and classes from elsewhere."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from foreign import WIDTH, Foreign, ForeignAdapter
from twins import class_or_skip, ignores_warnings, twin

from vidsparse import Radial, VideoGrid
from vidsparse.doctor import CHECKS, Twin, diagnose, examine, masked
from vidsparse.doctor.support import around, support_table
from vidsparse.doctor.twin import defaults
from vidsparse.runtime import registry
from vidsparse_pipelines import ADAPTERS

ROOT = Path(__file__).parents[2]
pytestmark = ignores_warnings
# What checkpoints of a class have besides the defaults.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "wan image": ("WanTransformer3DModel", {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}),
    "wan first and last frame": (
        "WanTransformer3DModel",
        {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120, "pos_embed_seq_len": 514},
    ),
    "wan 5B": ("WanTransformer3DModel", {"in_channels": 48, "out_channels": 48, "patch_size": [1, 2, 2]}),
    "skyreels diffusion forcing": ("SkyReelsV2Transformer3DModel", {"inject_sample_info": True}),
    "cogvideox 5B": ("CogVideoXTransformer3DModel", {"use_rotary_positional_embeddings": True}),
    "cogvideox 5B image": (
        "CogVideoXTransformer3DModel",
        {"in_channels": 32, "use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True},
    ),
    "cogvideox 1.5 image": (
        "CogVideoXTransformer3DModel",
        {
            "in_channels": 32,
            "ofs_embed_dim": 512,
            "patch_bias": False,
            "patch_size_t": 2,
            "use_rotary_positional_embeddings": True,
        },
    ),
    "consisid": (
        "ConsisIDTransformer3DModel",
        {"in_channels": 32, "is_train_face": True, "use_rotary_positional_embeddings": True},
    ),
    "hunyuan image, concatenated": (
        "HunyuanVideoTransformer3DModel",
        {"in_channels": 33, "image_condition_type": "latent_concat", "guidance_embeds": False},
    ),
    "hunyuan image, replaced": ("HunyuanVideoTransformer3DModel", {"image_condition_type": "token_replace"}),
    "hunyuan 1.5 text": ("HunyuanVideo15Transformer3DModel", {"task_type": "t2v", "use_meanflow": True}),
    "ltx 2.3": (
        "LTX2VideoTransformer3DModel",
        {
            "audio_cross_attn_mod": True,
            "audio_gated_attn": True,
            "cross_attn_mod": True,
            "gated_attn": True,
            "perturbed_attn": True,
            "rope_type": "split",
            "use_prompt_embeddings": False,
        },
    ),
    "anyflow image": ("AnyFlowFARTransformer3DModel", {"image_dim": 1280}),
    "cosmos 2": ("CosmosTransformer3DModel", {"extra_pos_embed_type": None}),
    "cosmos 2.5 control": (
        "CosmosTransformer3DModel",
        {
            "controlnet_block_every_n": 7,
            "crossattn_proj_in_channels": 100352,
            "extra_pos_embed_type": None,
            "img_context_dim_in": 1152,
            "use_crossattn_projection": True,
        },
    ),
    "cosmos 3 omni": (
        "Cosmos3OmniTransformer",
        {"action_dim": 12, "action_gen": True, "sound_dim": 64, "sound_gen": True},
    ),
    "cosmos 3 nemotron": (
        "Cosmos3OmniTransformer",
        {"hidden_act": "relu2", "qk_norm_for_text": False, "use_und_k_norm_for_gen": True},
    ),
    "kandinsky image": (
        "Kandinsky5Transformer3DModel",
        {"attention_type": "nabla", "in_visual_dim": 16, "out_visual_dim": 16, "visual_cond": True},
    ),
}


@functools.cache
def variant_twin(variant: str) -> Twin:
    name, settings = VARIANTS[variant]
    if lacking := settings.keys() - defaults(class_or_skip(name)).keys():
        pytest.skip(f"this diffusers has no {', '.join(lacking)}")
    saved = {"_class_name": name, "_diffusers_version": "0.36.0", "a_setting_of_later": 3}
    return Twin(class_or_skip(name), settings | saved)


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_family_passes_every_check_that_applies(name: str) -> None:
    results = diagnose(class_or_skip(name))
    assert not {result.check: result.detail for result in results if result.outcome == "failed"}
    row = support_table({name: results}).splitlines()[-1]
    assert row in table_of_families(), "run: vidsparse doctor --support docs/families.md"


@pytest.mark.parametrize("check", ["grid", "layers", "sparse", "batch", "bfloat16", "backward"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.usefixtures("uncompiled")
def test_the_variants_of_a_family_pass(variant: str, check: str) -> None:
    result = examine(variant_twin(variant), check)
    assert result.outcome != "failed", result.detail


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_twin_is_small_and_keeps_what_attention_is_made_of(name: str) -> None:
    own, small = defaults(class_or_skip(name)), twin(name)
    assert sum(p.numel() for p in small.build().parameters()) < 10_000_000
    kept = ("head_dim", "patch", "rope", "axes", "norm", "rotary", "guidance", "image_condition", "pos_embed", "bias")
    changed = [key for key, value in own.items() if small.config[key] != value]
    assert not [key for key in changed if any(part in key for part in kept)]
    assert changed and small.adapter.family and small.adapter.tasks and small.adapter.layout


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_lora_changes_what_a_twin_computes(name: str) -> None:
    from vidsparse.doctor.changes import lora

    with_lora, without = twin(name).build(), twin(name).build()
    if not hasattr(with_lora, "add_adapter"):
        pytest.skip("diffusers has no adapters for it")
    lora(with_lora, torch.float32)
    found, expected = (next(iter(twin(name).outputs(model).values())) for model in (with_lora, without))
    assert (found - expected).abs().max() > 1e-2


# Classes from elsewhere


class ForeignWithTwin(ForeignAdapter):
    def tiny(self, config: Any) -> dict[str, Any]:
        return {}

    def example(self, transformer: Any, view: tuple[int, int, int], batch: int, noise: Any) -> dict[str, Any]:
        return {"hidden_states": noise(batch, *view, WIDTH), "timestep": 500.0}


def test_a_registered_class_is_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._REGISTERED, "Foreign", ForeignWithTwin)
    outcomes = {result.check: result.outcome for result in diagnose(Foreign)}
    refused = {"checkpointing", "fused projections", "LoRA", "float8 storage", "group offload", "backend"}
    assert outcomes == {check: "not applicable" if check in refused else "ok" for check in CHECKS}
    assert "| Foreign | `Foreign` |" in support_table({"Foreign": diagnose(Foreign)})


def test_a_class_without_adapter_or_twin_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotImplementedError, match=r"no adapter for Foreign; .*register_adapter"):
        diagnose(Foreign)
    monkeypatch.setitem(registry._REGISTERED, "Foreign", ForeignAdapter)
    with pytest.raises(NotImplementedError, match=r"ForeignAdapter describes no twin; define .* tiny and example"):
        diagnose(Foreign)


# The definition


def test_masked_refuses_a_grid_that_no_attention_has() -> None:
    it = twin("WanTransformer3DModel")
    model, pattern = it.build(), Radial(density=0.3, tile=(1, 2, 4))
    message = "no attention of WanTransformer3DModel had the 65 tokens"
    with pytest.raises(RuntimeError, match=message), masked(model, pattern, VideoGrid(5, 13, 1)):
        it.outputs(model)
    plain = torch.nn.functional.scaled_dot_product_attention
    with pytest.raises(KeyboardInterrupt), masked(model, pattern, it.grid()):
        raise KeyboardInterrupt
    assert torch.nn.functional.scaled_dot_product_attention is plain
    assert not any(module._forward_hooks for module in model.modules())


def table_of_families() -> list[str]:
    if f"diffusers=={diffusers.__version__};" not in (ROOT / "constraints.txt").read_text():
        pytest.skip("the table is made with the diffusers of constraints.txt")
    page = ROOT / "docs/families.md"
    before, after = around(page)
    return page.read_text(encoding="utf-8")[len(before) : -len(after)].strip().splitlines()


def test_the_table_has_the_rows_of_all_families_in_their_order() -> None:
    found = table_of_families()
    expected = support_table(dict.fromkeys(ADAPTERS, ())).splitlines()
    assert found[:2] == expected[:2]
    columns = [[row.split("|")[1:3] for row in rows[2:]] for rows in (found, expected)]
    assert columns[0] == columns[1], "run: vidsparse doctor --support docs/families.md"
