"""Small random pipelines of each family that can be trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import hunyuan_models
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from models_without_text import KANDINSKY
from pipelines_with_inputs import WIDTH, _cogvideox, _hunyuan, ltx, wan, wan_expand, wan_first_last, wan_image, words
from trained_hunyuan_image import TEMPLATE, framepack, hunyuan_concatenated, hunyuan_replaced
from trained_ltx2 import ISOLATED, ltx2, ltx2_image, ltx23
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Qwen2_5_VLTextConfig,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from vidsparse.finetune import Bucket
from vidsparse.shapes import model as shapes


@dataclass(frozen=True)
class Case:
    """A pipeline, a size that it takes, and the arguments of `pipe(...)` that leave one call in each step.

    Attributes:
        hidden: where `hidden_states` holds the latents: "video" [B, C, F, H, W], "tokens", "frames" before channels,
            "last" channels.
        kept: latent frames that stay as they are in a generation.
        dropped: latent frames that it makes and leaves away.
        compared: number of the call of a step that a training makes.
        dense_steps: of ten, such that noise levels of a training fall on both sides.
    """

    build: Callable[[], Any]
    bucket: Bucket
    call: dict[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})
    hidden: str = "video"
    kept: int = 0
    dropped: int = 0
    compared: int = 0
    dense_steps: int = 5
    loads: bool = True  # whether the pipeline of diffusers loads LoRAs

    def pipe(self) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            pipe = self.build()
            for part in pipe.components.values():
                if isinstance(part, torch.nn.Module):
                    part.eval()
        pipe.set_progress_bar_config(disable=True)
        return pipe


def wan_expand_image() -> Any:
    return diffusers.WanImageToVideoPipeline(**wan(patch=2), expand_timesteps=True)


def wan_experts() -> Any:
    parts = wan(in_channels=2 * shapes.LATENT_CHANNELS + 4)
    other = shapes.build_transformer(num_layers=2, num_attention_heads=1, in_channels=2 * shapes.LATENT_CHANNELS + 4)
    return diffusers.WanImageToVideoPipeline(**parts, transformer_2=other, boundary_ratio=0.9)


def hunyuan_text() -> Any:
    return diffusers.HunyuanVideoPipeline(**_hunyuan())


def ltx_image() -> Any:
    return diffusers.LTXImageToVideoPipeline(**ltx().components)


def ltx_by_length() -> Any:
    pipe = ltx()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05)
    return pipe


def _hunyuan_15(image: bool) -> dict[str, Any]:
    from diffusers.guiders import ClassifierFreeGuidance

    tokenizer = shapes.build_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    size = dict(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_key_value_heads=2)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2]}
    text = Qwen2_5_VLTextConfig(vocab_size=200, num_hidden_layers=3, rope_scaling=rope, **size)
    glyphs = T5Config(vocab_size=200, d_model=10, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        spatial_compression_ratio=8,
        temporal_compression_ratio=4,
    )
    transformer = hunyuan_models.FAMILIES["hunyuan15"].tiny(
        in_channels=9, text_embed_dim=16, image_embed_dim=16, task_type="i2v" if image else "t2v", target_size=16
    )
    parts = {
        "text_encoder": Qwen2_5_VLTextModel(text),
        "tokenizer": tokenizer,
        "transformer": transformer,
        "vae": vae,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
        "text_encoder_2": T5EncoderModel(glyphs),
        "tokenizer_2": shapes.build_tokenizer(),
        "guider": ClassifierFreeGuidance(guidance_scale=1.0),
    }
    if image:
        vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
        parts["image_encoder"] = SiglipVisionModel(SiglipVisionConfig(**vision, image_size=32, patch_size=16))
        parts["feature_extractor"] = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    return parts


def _short(pipe: Any) -> Any:
    """With a short template and text, and few tokens of the image."""
    pipe.prompt_template_encode_start_idx, pipe.tokenizer_max_length, pipe.tokenizer_2_max_length = 2, 20, 6
    pipe.system_message, pipe.vision_num_semantic_tokens = "a", 4
    return pipe


def hunyuan_15() -> Any:
    return _short(diffusers.HunyuanVideo15Pipeline(**_hunyuan_15(image=False)))


def hunyuan_15_image() -> Any:
    return _short(diffusers.HunyuanVideo15ImageToVideoPipeline(**_hunyuan_15(image=True)))


def _velocity(pipe: Any) -> Any:
    """With the scheduler of the published models."""
    pipe.scheduler = diffusers.CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", snr_shift_scale=3.0
    )
    return pipe


def cogvideox() -> Any:
    return _velocity(diffusers.CogVideoXPipeline(**_cogvideox()))


def cogvideox_image() -> Any:
    return _velocity(diffusers.CogVideoXImageToVideoPipeline(**_cogvideox(in_channels=8)))


def cogvideox_15() -> Any:
    return _velocity(diffusers.CogVideoXPipeline(**_cogvideox(patch_size_t=2, patch_bias=False)))


def cogvideox_15_image() -> Any:
    changes = dict(in_channels=8, patch_size_t=2, patch_bias=False, ofs_embed_dim=8)
    parts = _cogvideox(**changes)
    parts["vae"].register_to_config(invert_scale_latents=True)
    return _velocity(diffusers.CogVideoXImageToVideoPipeline(**parts))


def mochi() -> Any:
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=12,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        add_attention_block=(False,) * 5,
        in_channels=15,
    )
    transformer = diffusers.MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1000)
    return diffusers.MochiPipeline(
        **words(), vae=vae, transformer=transformer, scheduler=scheduler, force_zeros_for_empty_prompt=False
    )


class _Processor(type(shapes.build_tokenizer())):  # type: ignore[misc]
    """A tokenizer that takes the arguments of a processor of images and text."""

    def __call__(self, text: Any = None, images: Any = None, videos: Any = None, **asked: Any) -> Any:
        return super().__call__(text, **asked)


def _kandinsky(cls: Any) -> Any:
    tokenizer = shapes.build_tokenizer()
    tokenizer.__class__ = _Processor
    size = dict(hidden_size=16, intermediate_size=16, num_attention_heads=2)
    text = Qwen2_5_VLTextConfig(
        vocab_size=200,
        num_hidden_layers=1,
        num_key_value_heads=2,
        rope_scaling={"rope_type": "default", "mrope_section": [1, 1, 2]},
        **size,
    )
    pipe = cls(
        transformer=diffusers.Kandinsky5Transformer3DModel(
            **KANDINSKY | {"in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim2": 16, "visual_cond": True}
        ),
        vae=_hunyuan()["vae"],
        text_encoder=Qwen2_5_VLTextModel(text),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModel(CLIPTextConfig(vocab_size=200, num_hidden_layers=1, projection_dim=16, **size)),
        tokenizer_2=shapes.build_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
    )
    pipe.prompt_template, pipe.prompt_template_encode_start_idx = "a {}", 1
    for parameter in pipe.transformer.parameters():
        if not parameter.any():  # gates begin at zero, where attention changes nothing
            torch.nn.init.normal_(parameter, std=0.2)
    return pipe


def kandinsky() -> Any:
    return _kandinsky(diffusers.Kandinsky5T2VPipeline)


def kandinsky_image() -> Any:
    return _kandinsky(diffusers.Kandinsky5I2VPipeline)


def _skyreels(cls: Any, **changes: Any) -> Any:
    parts = wan(**changes)
    config = dict(parts["transformer"].config) | {"inject_sample_info": cls.__name__.endswith("ForcingPipeline")}
    parts["transformer"] = diffusers.SkyReelsV2Transformer3DModel(**config)
    return parts


def skyreels() -> Any:
    return diffusers.SkyReelsV2Pipeline(**_skyreels(diffusers.SkyReelsV2Pipeline))


def skyreels_forcing() -> Any:
    cls = diffusers.SkyReelsV2DiffusionForcingPipeline
    return cls(**_skyreels(cls))


def skyreels_image() -> Any:
    cls, clip = diffusers.SkyReelsV2ImageToVideoPipeline, wan_first_last(None)
    parts = _skyreels(cls, in_channels=2 * shapes.LATENT_CHANNELS + 4, image_dim=16)
    return cls(**parts, image_encoder=clip.image_encoder, image_processor=clip.image_processor)


WORDS = {"guidance_scale": 1.0, "max_sequence_length": shapes.MAX_WORDS}
SEEN = {"max_sequence_length": shapes.MAX_WORDS, "prompt_template": TEMPLATE}
LARGER = Bucket(9, 32, 32)
CASES = {
    "wan-5b": Case(wan_expand, LARGER, WORDS),
    "wan-5b-image": Case(wan_expand_image, LARGER, WORDS, kept=1),
    "wan2.1-image": Case(lambda: wan_first_last(None), LARGER, WORDS),
    "wan2.2-image": Case(wan_image, LARGER, WORDS),
    "wan2.2-experts": Case(wan_experts, LARGER, WORDS, dense_steps=1),
    "hunyuan": Case(hunyuan_text, Bucket(9, 64, 64), {"max_sequence_length": shapes.MAX_WORDS}),
    "hunyuan-image": Case(hunyuan_concatenated, Bucket(9, 64, 64), SEEN | {"guidance_scale": 1.0}, dropped=1),
    "hunyuan-image-replaced": Case(hunyuan_replaced, Bucket(9, 64, 64), SEEN | {"guidance_scale": 6.0}, kept=1),
    "framepack": Case(
        framepack, Bucket(37, 64, 64), {"max_sequence_length": shapes.MAX_WORDS, "num_frames": 33}, kept=1
    ),
    "hunyuan15": Case(hunyuan_15, Bucket(9, 32, 32), {}, loads=False),
    "hunyuan15-image": Case(hunyuan_15_image, Bucket(9, 16, 16), {}, loads=False),
    "ltx": Case(ltx, LARGER, WORDS, "tokens"),
    "ltx-by-length": Case(ltx_by_length, LARGER, WORDS, "tokens"),
    "ltx-image": Case(ltx_image, LARGER, WORDS, "tokens", kept=1),
    "ltx2": Case(ltx2, Bucket(17, 32, 32), ISOLATED, "tokens", compared=1),
    "ltx2.3": Case(ltx23, Bucket(17, 32, 32), ISOLATED, "tokens", compared=1),
    "ltx2-image": Case(ltx2_image, Bucket(17, 32, 32), ISOLATED, "tokens", kept=1, compared=1),
    "cogvideox": Case(cogvideox, Bucket(9, 64, 64), WORDS, "frames"),
    "cogvideox-image": Case(cogvideox_image, Bucket(9, 64, 64), WORDS, "frames"),
    "cogvideox1.5": Case(cogvideox_15, Bucket(9, 64, 64), WORDS, "frames"),
    "cogvideox1.5-image": Case(cogvideox_15_image, Bucket(9, 64, 64), WORDS, "frames"),
    "mochi": Case(mochi, Bucket(13, 64, 64), WORDS, dense_steps=9),
    "kandinsky5": Case(kandinsky, Bucket(9, 64, 64), WORDS, "last"),
    "kandinsky5-image": Case(kandinsky_image, Bucket(9, 64, 64), WORDS, "last", kept=1),
    "skyreels": Case(skyreels, LARGER, WORDS),
    "skyreels-image": Case(skyreels_image, LARGER, WORDS),
    "skyreels-forcing": Case(skyreels_forcing, LARGER, WORDS | {"base_num_frames": 9, "ar_step": 0}),
}
