"""LTX-2: text and image to video. The sound is cut off: it is computed, and the video does not see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vidsparse.finetune.draws.example import Example
from vidsparse.finetune.families.ltx import LTXImageTask, LTXTask
from vidsparse.finetune.families.task import MAIN, Tensors, View, device_of, first_frame, image_latents

FRAME_RATE = 24.0  # the default of the pipeline, which positions and the length of the sound are counted by


@dataclass(frozen=True)
class LTX2Task(LTXTask):
    """Text to video with `isolate_modalities`, as in the call of the pipeline that its guidance compares with.

    The video gets the same answer from Lightricks' trainer, which leaves the sound away where videos have none. The
    text is what the connectors make of Gemma's layers, one embedding for each stream.
    """

    family = "LTX-2"
    pipelines = ("LTX2Pipeline",)
    text_parts = ("text_encoder", "connectors")
    targets = tuple(f"{attention}.to_{part}" for attention in ("attn1", "attn2") for part in ("q", "k", "v", "out.0"))
    untrained = r".*(audio|av_cross_attn).*"
    two_points = (1024, 4096, 0.95, 2.05)

    @torch.no_grad()
    def encode_text(self, pipe: Any, caption: str, words: int | None) -> Tensors:
        asked = dict(do_classifier_free_guidance=False, max_sequence_length=words)
        layers, mask, *_ = pipe.encode_prompt(caption, device=device_of(pipe.text_encoder), **asked)
        place = device_of(pipe.connectors)
        side = getattr(pipe.tokenizer, "padding_side", "left")
        found = pipe.connectors(layers.to(place), mask.to(place), padding_side=side)
        return {name: x[0].cpu() for name, x in zip((MAIN, "sound", "mask"), found, strict=True)}

    def arguments(self, noisy: torch.Tensor, example: Example, dtype: torch.dtype) -> dict[str, Any]:
        arguments = super().arguments(noisy, example, dtype)
        del arguments["rope_interpolation_scale"]
        sound = self._sound(noisy.shape[2])
        return arguments | {
            "sigma": arguments["timestep"],
            "fps": FRAME_RATE,
            "audio_hidden_states": noisy.new_zeros(1, sound, self.config["audio_in_channels"]).to(dtype),
            "audio_num_frames": sound,
            "audio_encoder_hidden_states": example.more["sound"].to(dtype),
            "audio_encoder_attention_mask": example.more["mask"],
            "isolate_modalities": True,
            "use_cross_timestep": True,
        }

    def _sound(self, frames: int) -> int:
        """Latents of the sound of so many latent frames."""
        known, seconds = self.config, ((frames - 1) * self.stride[0] + 1) / FRAME_RATE
        rate: float = known["audio_sampling_rate"] / known["audio_hop_length"] / known["audio_scale_factor"]
        return round(seconds * rate)

    def text_width(self, config: Mapping[str, Any]) -> int:
        return int(config["caption_channels" if config.get("use_prompt_embeddings", True) else "cross_attention_dim"])

    def blank_inputs(self, config: Mapping[str, Any], view: View, words: int) -> Tensors:
        joint = config.get("use_prompt_embeddings", True)
        sound = torch.empty(1, words, config["caption_channels" if joint else "audio_cross_attention_dim"])
        return super().blank_inputs(config, view, words) | {"sound": sound}


@dataclass(frozen=True)
class LTX2ImageTask(LTXImageTask, LTX2Task):
    """Image to video: as in LTX-Video, from an image that was compressed as the pipeline compresses it."""

    pipelines = ("LTX2ImageToVideoPipeline",)
    packages = ("av",)

    def video_facts(self) -> tuple[Any, ...]:
        return tuple(self.pipeline.get("text_encoder") or ())  # its kind says how much images are compressed

    def condition(self, pipe: Any, video: torch.Tensor) -> Tensors:
        import numpy as np
        from diffusers.pipelines.ltx2 import utils
        from PIL import Image

        rate = utils.resolve_default_image_crf(pipe.text_encoder)
        image = Image.fromarray(utils.apply_image_conditioning_crf(np.array(first_frame(video)), rate))
        return {"first": image_latents(pipe, image, video)}

    def arguments(self, noisy: torch.Tensor, example: Example, dtype: torch.dtype) -> dict[str, Any]:
        arguments = super().arguments(noisy, example, dtype)
        return arguments | {"audio_timestep": arguments["sigma"]}
