"""SkyReels-V2 (`SkyReelsV2Transformer3DModel`): text, image and video to video. Every token is video."""

from __future__ import annotations

from vidsparse_pipelines.wan import WanAdapter


class SkyReelsV2Adapter(WanAdapter):
    """Self-attention (`attn1`) of each block: its modules, layout and processor are those of Wan.

    Diffusion forcing gives each frame a timestep; the noisiest counts. Its autoregressive mode (`num_frame_per_block`
    above 1) masks attention by blocks of frames, and so runs dense.
    """
