"""Small random pipelines of LTX-2."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from models_without_text import LTX2, LTX23
from pipelines_with_inputs import WIDTH, words

from vidsparse.shapes import model as shapes

# One guidance of each kind is off but that by the other stream, whose second call has the streams isolated.
ISOLATED = {"guidance_scale": 1.0, "audio_guidance_scale": 1.0, "stg_scale": 0.0, "audio_stg_scale": 0.0}
ISOLATED |= {"modality_scale": 3.0, "audio_modality_scale": 3.0, "max_sequence_length": shapes.MAX_WORDS}


def _parts(**changes: Any) -> dict[str, Any]:
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLLTX2Video(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        patch_size=1,
        spatio_temporal_scaling=(True, True, True, False),
        downsample_type=("spatiotemporal",) * 4,
        upsample_residual=(False, False, False),
        upsample_factor=(1, 1, 1),
    )
    vae.latents_mean.copy_(torch.linspace(-0.5, 0.5, 8))
    vae.latents_std.copy_(torch.linspace(0.5, 1.5, 8))
    sound = diffusers.AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1,), num_res_blocks=1, in_channels=2, latent_channels=2, mel_bins=8
    )
    connectors = LTX2TextConnectors(
        caption_channels=WIDTH,
        text_proj_in_factor=3,
        video_connector_num_attention_heads=4,
        video_connector_attention_head_dim=WIDTH // 4,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=4,
        audio_connector_attention_head_dim=WIDTH // 4,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
        video_hidden_dim=WIDTH,
        audio_hidden_dim=WIDTH,
    )
    settings = LTX2 | {"in_channels": 8, "out_channels": 8, "caption_channels": WIDTH} | changes
    return words() | {
        "vae": vae,
        "audio_vae": sound,
        "vocoder": LTX2Vocoder(in_channels=16, hidden_channels=8, upsample_kernel_sizes=[4], upsample_factors=[2]),
        "connectors": connectors,
        "transformer": diffusers.LTX2VideoTransformer3DModel(**settings),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }


def ltx2() -> Any:
    return diffusers.LTX2Pipeline(**_parts())


def ltx23() -> Any:
    return diffusers.LTX2Pipeline(**_parts(**LTX23))


def ltx2_image() -> Any:
    return diffusers.LTX2ImageToVideoPipeline(**_parts())
