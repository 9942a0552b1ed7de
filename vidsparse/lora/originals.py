"""What the layers of each family are called in its original code, which LoRAs of other trainers are named after.

The names are those of diffusers' own converters: `loaders/lora_conversion_utils.py` and `loaders/single_file_utils.py`.
Families whose original names are in neither have no entry: their files are read with diffusers' names alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Original:
    """The names of the layers of one family, where `*` stands for the number of a block.

    Attributes:
        layers: name in diffusers -> name in the original code. Several with one original are stacked there, in this
            order.
        parts: part of a name, of whole words between dots -> what replaces it in all names that `layers` lacks.
        optional: names in diffusers that only some models of the family have, besides those of `layers`.
        swapped: endings of original layers whose two halves of rows are in the other order in diffusers.
        by_head: endings of original layers whose rows DiffSynth-Studio leaves in the order of the checkpoint: query,
            key and value of the first head, then of the second.
        alpha_in_header: a file without an alpha for each layer may have one for all in its header.
    """

    layers: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    swapped: tuple[str, ...] = ()
    by_head: tuple[str, ...] = ()
    alpha_in_header: bool = False

    def name(self, layer: str) -> str:
        """The original name of a layer of diffusers; the same where nothing is known."""
        if layer in self.layers:
            return self.layers[layer]
        for part, original in self.parts.items():
            layer = re.sub(rf"(?<![^.]){re.escape(part)}(?![^.])", original, layer)
        return layer

    def is_swapped(self, original: str) -> bool:
        """Whether the halves of an original layer's rows are in the other order in diffusers."""
        return original.endswith(self.swapped) if self.swapped else False

    def is_by_head(self, original: str) -> bool:
        """Whether DiffSynth-Studio leaves the rows of an original layer in the order of heads."""
        return original.endswith(self.by_head) if self.by_head else False


def _named(diffusers: str, original: str, names: Mapping[str, str]) -> dict[str, str]:
    """The names below a module."""
    return {f"{diffusers}.{ours}": f"{original}.{theirs}" for ours, theirs in names.items()}


def _stacked(diffusers: str, names: str, original: str) -> dict[str, str]:
    """Layers that the original code has as one."""
    return {f"{diffusers}.{name}": original for name in names.split()}


_LINEAR_1_2 = {"linear_1": "0", "linear_2": "2"}

_WAN = Original(
    layers={
        **_named("condition_embedder.time_embedder", "time_embedding", _LINEAR_1_2),
        **_named("condition_embedder.text_embedder", "text_embedding", _LINEAR_1_2),
        "condition_embedder.time_proj": "time_projection.1",
        **_named(
            "condition_embedder.image_embedder",
            "img_emb.proj",
            {"norm1": "0", "ff.net.0.proj": "1", "ff.net.2": "3", "norm2": "4"},
        ),
        "proj_out": "head.head",
        "scale_shift_table": "head.modulation",
        "vace_blocks.*.proj_in": "vace_blocks.*.before_proj",
        "vace_blocks.*.proj_out": "vace_blocks.*.after_proj",
    },
    parts={
        "attn1": "self_attn",
        "attn2": "cross_attn",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "o",
        "add_k_proj": "k_img",
        "add_v_proj": "v_img",
        "norm_added_k": "norm_k_img",
        "ffn.net.0.proj": "ffn.0",
        "ffn.net.2": "ffn.2",
        "norm2": "norm3",
        "scale_shift_table": "modulation",
    },
    optional=tuple(f"blocks.*.attn2.{name}" for name in ("add_k_proj", "add_v_proj", "norm_added_k")),
)

_QKV, _ADDED = "to_q to_k to_v", "add_q_proj add_k_proj add_v_proj"
_FEED_FORWARD = {"net.0.proj": "fc1", "net.2": "fc2"}
_MLP = {"linear_1": "mlp.0", "linear_2": "mlp.2"}
_REFINER = "context_embedder.token_refiner.refiner_blocks.*", "txt_in.individual_token_refiner.blocks.*"

_HUNYUAN_VIDEO = Original(
    layers={
        "x_embedder.proj": "img_in.proj",
        **_named("time_text_embed.timestep_embedder", "time_in", _MLP),
        **_named("time_text_embed.guidance_embedder", "guidance_in", _MLP),
        **_named("time_text_embed.text_embedder", "vector_in", {"linear_1": "in_layer", "linear_2": "out_layer"}),
        "context_embedder.proj_in": "txt_in.input_embedder",
        **_named("context_embedder.time_text_embed.timestep_embedder", "txt_in.t_embedder", _MLP),
        **_named(
            "context_embedder.time_text_embed.text_embedder",
            "txt_in.c_embedder",
            {"linear_1": "linear_1", "linear_2": "linear_2"},
        ),
        **_stacked(f"{_REFINER[0]}.attn", _QKV, f"{_REFINER[1]}.self_attn_qkv"),
        **_named(*_REFINER, {"attn.to_out.0": "self_attn_proj", "norm_out.linear": "adaLN_modulation.1"}),
        **_named(f"{_REFINER[0]}.ff", f"{_REFINER[1]}.mlp", _FEED_FORWARD),
        **_stacked("transformer_blocks.*.attn", _QKV, "double_blocks.*.img_attn_qkv"),
        **_stacked("transformer_blocks.*.attn", _ADDED, "double_blocks.*.txt_attn_qkv"),
        **_named(
            "transformer_blocks.*",
            "double_blocks.*",
            {
                "attn.to_out.0": "img_attn_proj",
                "attn.to_add_out": "txt_attn_proj",
                "attn.norm_q": "img_attn_q_norm",
                "attn.norm_k": "img_attn_k_norm",
                "attn.norm_added_q": "txt_attn_q_norm",
                "attn.norm_added_k": "txt_attn_k_norm",
                "norm1.linear": "img_mod.linear",
                "norm1_context.linear": "txt_mod.linear",
            },
        ),
        **_named("transformer_blocks.*.ff", "double_blocks.*.img_mlp", _FEED_FORWARD),
        **_named("transformer_blocks.*.ff_context", "double_blocks.*.txt_mlp", _FEED_FORWARD),
        **_stacked("single_transformer_blocks.*", "attn.to_q attn.to_k attn.to_v proj_mlp", "single_blocks.*.linear1"),
        **_named(
            "single_transformer_blocks.*",
            "single_blocks.*",
            {
                "proj_out": "linear2",
                "norm.linear": "modulation.linear",
                "attn.norm_q": "q_norm",
                "attn.norm_k": "k_norm",
            },
        ),
        "norm_out.linear": "final_layer.adaLN_modulation.1",
        "proj_out": "final_layer.linear",
    },
    swapped=("final_layer.adaLN_modulation.1",),
)

_LTX = Original(
    parts={"proj_in": "patchify_proj", "time_embed": "adaln_single", "norm_q": "q_norm", "norm_k": "k_norm"}
)

_LTX_2 = Original(
    parts={
        **_LTX.parts,
        "audio_proj_in": "audio_patchify_proj",
        "audio_time_embed": "audio_adaln_single",
        "prompt_adaln": "prompt_adaln_single",
        "audio_prompt_adaln": "audio_prompt_adaln_single",
        "av_cross_attn_video_scale_shift": "av_ca_video_scale_shift_adaln_single",
        "av_cross_attn_video_a2v_gate": "av_ca_a2v_gate_adaln_single",
        "av_cross_attn_audio_scale_shift": "av_ca_audio_scale_shift_adaln_single",
        "av_cross_attn_audio_v2a_gate": "av_ca_v2a_gate_adaln_single",
        "video_a2v_cross_attn_scale_shift_table": "scale_shift_table_a2v_ca_video",
        "audio_a2v_cross_attn_scale_shift_table": "scale_shift_table_a2v_ca_audio",
    },
    optional=tuple(
        f"{adaln}.{layer}"
        for adaln in ("prompt_adaln", "audio_prompt_adaln")
        for layer in ("linear", "emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2")
    ),
)

_MOCHI = Original(
    layers={
        "patch_embed.proj": "x_embedder.proj",
        **_named("time_embed.timestep_embedder", "t_embedder", _MLP),
        **_named("time_embed.pooler", "t5_y_embedder", {"to_kv": "to_kv", "to_q": "to_q", "to_out": "to_out"}),
        "time_embed.caption_proj": "t5_yproj",
        **_stacked("transformer_blocks.*.attn1", _QKV, "blocks.*.attn.qkv_x"),
        **_stacked("transformer_blocks.*.attn1", _ADDED, "blocks.*.attn.qkv_y"),
        **_named(
            "transformer_blocks.*",
            "blocks.*",
            {
                "norm1.linear": "mod_x",
                "norm1_context.linear": "mod_y",
                "attn1.norm_q": "attn.q_norm_x",
                "attn1.norm_k": "attn.k_norm_x",
                "attn1.to_out.0": "attn.proj_x",
                "attn1.norm_added_q": "attn.q_norm_y",
                "attn1.norm_added_k": "attn.k_norm_y",
                "attn1.to_add_out": "attn.proj_y",
                "ff.net.0.proj": "mlp_x.w1",
                "ff.net.2": "mlp_x.w2",
                "ff_context.net.0.proj": "mlp_y.w1",
                "ff_context.net.2": "mlp_y.w2",
            },
        ),
        "norm_out.linear": "final_layer.mod",
        "proj_out": "final_layer.linear",
    },
    swapped=("mlp_x.w1", "mlp_y.w1", "final_layer.mod"),
)

_COSMOS = Original(
    layers={"patch_embed.proj": "x_embedder.proj.1", "proj_out": "final_layer.linear"},
    parts={
        "time_embed.t_embedder": "t_embedder.1",
        "time_embed.norm": "t_embedding_norm",
        "transformer_blocks": "blocks",
        "attn1": "self_attn",
        "attn2": "cross_attn",
        "to_out.0": "output_proj",
        "to_q": "q_proj",
        "to_k": "k_proj",
        "to_v": "v_proj",
        "norm_q": "q_norm",
        "norm_k": "k_norm",
        "ff.net.0.proj": "mlp.layer1",
        "ff.net.2": "mlp.layer2",
        **{
            f"{norm}.linear_{i}": f"{layer}.{i}"
            for norm, layer in (
                ("norm1", "adaln_modulation_self_attn"),
                ("norm2", "adaln_modulation_cross_attn"),
                ("norm3", "adaln_modulation_mlp"),
                ("norm_out", "final_layer.adaln_modulation"),
            )
            for i in (1, 2)
        },
    },
)

_MINIMAX_H3 = Original(
    layers={
        "proj_in": "video_patch_proj",
        "audio_proj_in": "audio_patch_proj",
        "context_embedder": "condition_proj",
        **_named("time_embedder", "time_embedder", {"linear_1": "proj_in", "linear_2": "proj_out"}),
        "norm_out.norm": "final_layer.norm",
        "norm_out.linear": "final_layer.adaln_proj.linear",
        "proj_out": "final_layer.video_out",
        "audio_proj_out": "final_layer.audio_out",
        **_stacked("transformer_blocks.*.attn", _QKV, "blocks.*.attn.qkv_proj"),
        **_stacked("token_refiner.refiner_blocks.*.attn", _QKV, "token_refiner.blocks.*.attn.qkv_proj"),
    },
    parts={
        "transformer_blocks": "blocks",
        "refiner_blocks": "blocks",
        "norm_q": "q_norm",
        "norm_k": "k_norm",
        "to_out.0": "out_proj",
        "ff.net.0.proj": "mlp.fc1",
        "ff.net.2": "mlp.fc2",
    },
    swapped=("mlp.fc1",),
    by_head=("attn.qkv_proj",),
    alpha_in_header=True,
)

# Class of the transformer -> its original names.
ORIGINALS: Mapping[str, Original] = {
    "CosmosTransformer3DModel": _COSMOS,
    "HunyuanVideoFramepackTransformer3DModel": _HUNYUAN_VIDEO,
    "HunyuanVideoTransformer3DModel": _HUNYUAN_VIDEO,
    "LTX2TextConnectors": Original(layers={"text_proj_in": "text_embedding_projection.aggregate_embed"}),
    "LTX2VideoTransformer3DModel": _LTX_2,
    "LTXVideoTransformer3DModel": _LTX,
    "MiniMaxH3Transformer3DModel": _MINIMAX_H3,
    "MochiTransformer3DModel": _MOCHI,
    "SkyReelsV2Transformer3DModel": _WAN,
    "WanTransformer3DModel": _WAN,
    "WanVACETransformer3DModel": _WAN,
}
