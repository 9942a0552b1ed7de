"""Folders of small random pipelines that start from an image or a video, and files for them to start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import hunyuan_models
import imageio.v2 as imageio
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from models_without_text import LTX
from PIL import Image
from small_videos import write_video as write_small_video
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaModel,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from vidsparse.shapes import model as shapes

WIDTH = shapes.TEXT_WIDTH


def words() -> dict[str, Any]:
    return {"tokenizer": shapes.build_tokenizer(), "text_encoder": shapes.build_text_encoder()}


def wan(**changes: Any) -> dict[str, Any]:
    """Parts of Wan; the changes are those of the transformer."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    transformer = shapes.build_transformer(num_layers=2, num_attention_heads=1, **changes)
    return words() | {"vae": shapes.build_vae(), "scheduler": scheduler, "transformer": transformer}


def wan_image() -> Any:
    """As Wan 2.2: the latents of the image beside those of the video, and its mask."""
    return diffusers.WanImageToVideoPipeline(**wan(in_channels=2 * shapes.LATENT_CHANNELS + 4))


def wan_first_last(encoded: int | None = 514) -> Any:
    """As Wan 2.1: with an encoder of images; `encoded` is None in a checkpoint for the first image alone."""
    torch.manual_seed(1)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=2
    )
    return diffusers.WanImageToVideoPipeline(
        **wan(in_channels=2 * shapes.LATENT_CHANNELS + 4, image_dim=16, pos_embed_seq_len=encoded),
        image_encoder=CLIPVisionModel(vision).eval(),
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    )


def wan_expand() -> Any:
    """As the 5B model of Wan 2.2, which is for words and images alike."""
    return diffusers.WanPipeline(**wan(patch=2), expand_timesteps=True)


def vace() -> Any:
    parts, channels = wan(), shapes.LATENT_CHANNELS
    parts["transformer"] = diffusers.WanVACETransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=1,
        attention_head_dim=64,
        in_channels=channels,
        out_channels=channels,
        text_dim=WIDTH,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
        vace_layers=[0, 1],
        vace_in_channels=2 * channels + 16,
    )
    return diffusers.WanVACEPipeline(**parts)


def ltx() -> Any:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False, False, False, False, False),
        upsample_residual=(False, False, False, False),
        upsample_factor=(1, 1, 1, 1),
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
    )
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    transformer = diffusers.LTXVideoTransformer3DModel(
        **LTX | {"in_channels": 8, "out_channels": 8, "caption_channels": WIDTH}
    )
    parts = words() | {"vae": vae, "transformer": transformer, "scheduler": FlowMatchEulerDiscreteScheduler()}
    return diffusers.LTXPipeline(**parts)


def _cogvideox(**changes: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    settings: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 8,
        "text_embed_dim": WIDTH,
        "num_layers": 2,
        "sample_width": 8,
        "sample_height": 8,
        "sample_frames": 9,
        "max_text_seq_length": shapes.MAX_WORDS,
        "use_rotary_positional_embeddings": True,
    }
    transformer = diffusers.CogVideoXTransformer3DModel(**settings | changes)
    return words() | {"vae": vae, "transformer": transformer, "scheduler": diffusers.CogVideoXDDIMScheduler()}


def cogvideox() -> Any:
    return diffusers.CogVideoXPipeline(**_cogvideox())


def cogvideox_image() -> Any:
    return diffusers.CogVideoXImageToVideoPipeline(**_cogvideox(in_channels=8))


def skyreels() -> Any:
    parts = wan()
    parts["transformer"] = diffusers.SkyReelsV2Transformer3DModel(
        **dict(parts["transformer"].config) | {"inject_sample_info": False}
    )
    return diffusers.SkyReelsV2DiffusionForcingPipeline(**parts)


def _hunyuan(**changes: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    return {
        "tokenizer": shapes.build_tokenizer(),
        "text_encoder": LlamaModel(LlamaConfig(vocab_size=200, num_hidden_layers=3, **size)).eval(),
        "tokenizer_2": shapes.build_tokenizer(),
        "text_encoder_2": CLIPTextModel(CLIPTextConfig(vocab_size=200, num_hidden_layers=1, projection_dim=8, **size)),
        "vae": vae,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
        "transformer": hunyuan_models.FAMILIES["framepack" if "has_image_proj" in changes else "hunyuan"].tiny(
            pooled_projection_dim=16, guidance_embeds=True, **changes
        ),
    }


def hunyuan_skyreels() -> Any:
    """HunyuanVideo with the latents of the image beside those of the video."""
    return diffusers.HunyuanSkyreelsImageToVideoPipeline(**_hunyuan(in_channels=8))


def framepack() -> Any:
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    return diffusers.HunyuanVideoFramepackPipeline(
        **_hunyuan(has_image_proj=True, image_proj_dim=16),
        image_encoder=SiglipVisionModel(vision).eval(),
        feature_extractor=SiglipImageProcessorPil(size={"height": 32, "width": 32}),
    )


PIPELINES: dict[str, Callable[[], Any]] = {
    build.__name__: build
    for build in (
        wan_image,
        wan_first_last,
        wan_expand,
        vace,
        ltx,
        cogvideox,
        cogvideox_image,
        skyreels,
        hunyuan_skyreels,
        framepack,
    )
}


def save(name: str, folder: Path) -> Path:
    """A random pipeline in a folder; the same weights for the same name."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        PIPELINES[name]().save_pretrained(folder)
    return folder


def write_image(path: Path, width: int = 64, height: int = 48, colour: tuple[int, int, int] = (200, 60, 20)) -> Path:
    """A picture of one colour, whose right half is darker."""
    pixels = np.full((height, width, 3), colour, np.uint8)
    pixels[:, width // 2 :] //= 3
    Image.fromarray(pixels).save(path)
    return path


def write_video(path: Path, frames: int = 9, width: int = 48, height: int = 32, fps: int = 24) -> Path:
    """A video that becomes brighter, six levels with each frame."""
    write_small_video(path, frames, height, width, fps)
    return path


def write_still(path: Path, frames: int = 9, width: int = 48, height: int = 32) -> Path:
    """A white video."""
    imageio.mimwrite(path, [np.full((height, width, 3), 255, np.uint8)] * frames, format="FFMPEG", macro_block_size=1)
    return path
