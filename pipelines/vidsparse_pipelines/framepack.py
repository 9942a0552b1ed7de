"""FramePack (`HunyuanVideoFramepackTransformer3DModel`): clean history before the noisy video, text after it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from vidsparse.runtime.adapter import Noise
from vidsparse_pipelines.hunyuan_video import HunyuanVideoAdapter
from vidsparse_pipelines.sequence_plan import divided, joined_output

# Latents of the history -> the convolution of `clean_x_embedder` that makes tokens of them, and whether it pads them.
HISTORY = {
    "latents_clean": ("proj", False),
    "latents_history_2x": ("proj_2x", True),
    "latents_history_4x": ("proj_4x", True),
}


class FramepackAdapter(HunyuanVideoAdapter):
    """Joint attention of history, noisy video and text. The grid is that of the noisy video; the history is exact."""

    family = "FramePack"
    tasks = "image to video"
    frame_rate = 30
    layout = "history before the video, image and text after it, padding masked in a batch"

    def self_attentions(self, transformer: torch.nn.Module) -> dict[str, torch.nn.Module]:
        """As in HunyuanVideo.

        Raises:
            NotImplementedError: a transformer without the layers that make tokens of the history and the image.
        """
        for layer, setting in (("clean_x_embedder", "has_clean_x_embedder"), ("image_projection", "has_image_proj")):
            if getattr(transformer, layer, None) is None:
                raise NotImplementedError(
                    f"a FramePack transformer without {layer} has an unknown token layout; build it with {setting}=True"
                )
        return super().self_attentions(transformer)

    def extra_tokens(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> tuple[int, int]:
        """The tokens of the history; those of the image and the text, without padding in a batch of one."""
        history = 0
        for name, (convolution, pads) in HISTORY.items():
            latents, indices = call.get(name), call.get(f"indices_{name}")
            if latents is not None and indices is not None:
                kernel = getattr(transformer.clean_x_embedder, convolution).kernel_size
                sizes = zip(latents.shape[-3:], kernel, strict=True)
                history += math.prod(-(-size // side) if pads else size // side for size, side in sizes)
        text_mask = call["encoder_attention_mask"]
        # For a batch of one the model cuts the padding off and gives its attention no mask.
        text = int(text_mask.sum(dtype=torch.int)) if len(text_mask) == 1 else call["encoder_hidden_states"].shape[1]
        return history, call["image_embeds"].shape[1] + text

    def parallel_plan(self, transformer: torch.nn.Module) -> dict[str, Any]:
        """History and video are one sequence; the text is whole. A batch of one: others have a mask of all tokens."""
        blocks: Any = transformer.single_transformer_blocks
        rotary = [divided(0, 2), divided(0, 2)]
        return {
            "transformer_blocks.*": {"freqs_cis": rotary},
            "single_transformer_blocks.*": {"image_rotary_emb": rotary},
            "transformer_blocks.0": {"hidden_states": divided(1, 3)},
            # The text too, because a plan joins all outputs or none; nothing reads it any more.
            f"single_transformer_blocks.{len(blocks) - 1}": [
                joined_output(),
                joined_output(),
            ],
        }

    def tiny(self, config: Mapping[str, Any]) -> dict[str, Any]:
        embedders = {"has_clean_x_embedder": True, "has_image_proj": True, "image_proj_dim": 16}
        return super().tiny(config) | embedders

    def example(
        self, transformer: torch.nn.Module, view: tuple[int, int, int], batch: int, noise: Noise
    ) -> dict[str, Any]:
        call = super().example(transformer, view, batch, noise)
        config: Any = transformer.config
        channels, _, *size = call["hidden_states"].shape[1:]
        call |= {
            "image_embeds": noise(batch, 3, config.image_proj_dim),
            "indices_latents": torch.arange(8, 8 + view[0]),
        }
        for name, frames in zip(HISTORY, ((7, 8), (5, 6, 7), (0, 1, 2, 3, 4)), strict=True):
            call[name] = noise(batch, channels, len(frames), *size)
            call[f"indices_{name}"] = torch.tensor(frames)
        return call
