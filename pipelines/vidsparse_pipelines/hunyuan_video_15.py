"""HunyuanVideo 1.5 (`HunyuanVideo15Transformer3DModel`): image, glyph and prompt tokens follow the video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vidsparse.runtime.adapter import TEXT_TOKENS, Noise, text_mask
from vidsparse_pipelines.hunyuan_video import HunyuanVideoAdapter


class HunyuanVideo15Adapter(HunyuanVideoAdapter):
    """Joint attention of the dual-stream blocks; this model has no others.

    The model sorts the tokens of its three encoders so that the real ones come first, all padding last. In text to
    video, the image tokens are padding.
    """

    family = "HunyuanVideo 1.5"
    layout = "image, glyphs and text after the video, padding last and masked in each sample"
    processors = ("HunyuanVideo15AttnProcessor2_0",)
    vae_stride = (4, 16)
    block_states: Mapping[str, tuple[str, ...]] = {
        "HunyuanVideo15TransformerBlock": ("hidden_states", "encoder_hidden_states")
    }

    def extra_tokens(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> tuple[int, int]:
        encoders = "image_embeds", "encoder_hidden_states_2", "encoder_hidden_states"
        return 0, sum(call[name].shape[1] for name in encoders)

    def real_keys(self, mask: torch.Tensor, batch: int, tokens: int) -> torch.Tensor | None:
        # The mask covers the last tokens. The model also hides keys from padded queries, whose output is not used.
        if mask.ndim != 2 or mask.shape[0] != batch or mask.shape[1] > tokens:
            return None
        return torch.nn.functional.pad(mask.bool(), (tokens - mask.shape[1], 0), value=True)

    def tiny(self, config: Mapping[str, Any]) -> dict[str, Any]:
        layers = {"num_layers": 2, "num_refiner_layers": 1, "num_attention_heads": 2, "mlp_ratio": 1.0}
        return layers | {"text_embed_dim": 16, "text_embed_2_dim": 16, "image_embed_dim": 16}

    def example(
        self, transformer: torch.nn.Module, view: tuple[int, int, int], batch: int, noise: Noise
    ) -> dict[str, Any]:
        config: Any = transformer.config
        size = (side * patch for side, patch in zip(view, self.patch(config), strict=True))
        glyphs, image = 4, noise(batch, 3, config.image_embed_dim)
        timestep = torch.full((batch,), 500.0).to(image)  # this model computes its embedding in the dtype of these
        return {
            "hidden_states": noise(batch, config.in_channels, *size),
            "timestep": timestep,
            "timestep_r": timestep - 100 if config.get("use_meanflow") else None,
            "encoder_hidden_states": noise(batch, TEXT_TOKENS, config.text_embed_dim),
            "encoder_attention_mask": text_mask(batch).long(),
            "encoder_hidden_states_2": noise(batch, glyphs, config.text_embed_2_dim),
            "encoder_attention_mask_2": text_mask(batch, glyphs).long(),
            "image_embeds": image if config.task_type == "i2v" else torch.zeros_like(image),
            "return_dict": False,
        }
