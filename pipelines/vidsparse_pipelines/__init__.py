"""Adapters: one file for each diffusers model family."""

from __future__ import annotations

# Class name of the transformer -> module and class of its adapter, which vidsparse.runtime.registry imports.
ADAPTERS: dict[str, tuple[str, str]] = {
    "AllegroTransformer3DModel": ("vidsparse_pipelines.allegro", "AllegroAdapter"),
    "AnyFlowFARTransformer3DModel": ("vidsparse_pipelines.anyflow_far", "AnyFlowFARAdapter"),
    "CogVideoXTransformer3DModel": ("vidsparse_pipelines.cogvideox", "CogVideoXAdapter"),
    "ConsisIDTransformer3DModel": ("vidsparse_pipelines.cogvideox", "ConsisIDAdapter"),
    "Cosmos3OmniTransformer": ("vidsparse_pipelines.cosmos3", "Cosmos3Adapter"),
    "CosmosTransformer3DModel": ("vidsparse_pipelines.cosmos", "CosmosAdapter"),
    "HeliosTransformer3DModel": ("vidsparse_pipelines.helios", "HeliosAdapter"),
    "HunyuanVideo15Transformer3DModel": ("vidsparse_pipelines.hunyuan_video_15", "HunyuanVideo15Adapter"),
    "HunyuanVideoFramepackTransformer3DModel": ("vidsparse_pipelines.framepack", "FramepackAdapter"),
    "HunyuanVideoTransformer3DModel": ("vidsparse_pipelines.hunyuan_video", "HunyuanVideoAdapter"),
    "Kandinsky5Transformer3DModel": ("vidsparse_pipelines.kandinsky5", "Kandinsky5Adapter"),
    "LTX2VideoTransformer3DModel": ("vidsparse_pipelines.ltx2", "LTX2Adapter"),
    "LTXVideoTransformer3DModel": ("vidsparse_pipelines.ltx", "LTXAdapter"),
    "MiniMaxH3Transformer3DModel": ("vidsparse_pipelines.minimax_h3", "MiniMaxH3Adapter"),
    "MochiTransformer3DModel": ("vidsparse_pipelines.mochi", "MochiAdapter"),
    "SkyReelsV2Transformer3DModel": ("vidsparse_pipelines.skyreels_v2", "SkyReelsV2Adapter"),
    "WanTransformer3DModel": ("vidsparse_pipelines.wan", "WanAdapter"),
    "WanVACETransformer3DModel": ("vidsparse_pipelines.wan_vace", "WanVACEAdapter"),
}
