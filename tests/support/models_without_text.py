"""Tiny random models whose video self-attention holds no text: LTX, LTX-2, Cosmos, Kandinsky 5, VACE, SkyReels-V2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
import torch
from adapter_checks import attentions

from vidsparse import Radial

SPARSE = Radial(density=0.3, tile=(1, 4, 4))
TEXT_TOKENS = 7
SOUND_TOKENS = 5

Noise = Callable[..., torch.Tensor]
Inputs = Callable[[tuple[int, int, int], int, Noise], dict[str, Any]]


@dataclass(frozen=True)
class Family:
    """A tiny model: its class and configuration, and its inputs for a grid (frames, height, width) and a batch."""

    model: str
    config: dict[str, Any]
    inputs: Inputs
    timestep: float = 500.0

    def build(self, **changes: Any) -> Any:
        cls = getattr(diffusers, self.model, None)
        if cls is None:
            pytest.skip(f"this diffusers has no {self.model}")
        with torch.random.fork_rng():
            torch.manual_seed(1)
            transformer = cls(**(self.config | changes))
            for name, parameter in transformer.named_parameters():
                # Attention far from uniform; modulation that lets it through (Kandinsky starts with zeros).
                if any(part in name for part in ("to_q", "to_k", "to_v", "modulation", "gate_logits", "pos_emb_")):
                    torch.nn.init.normal_(parameter, std=0.3)
        return transformer.eval()

    def call(self, transformer: Any, view: tuple[int, int, int] = (5, 7, 11), **changes: Any) -> torch.Tensor:
        """One forward pass with random inputs, the same for the same sizes; of sound and video, both."""
        batch, timestep = changes.pop("batch", 1), torch.as_tensor(changes.pop("timestep", self.timestep))
        generator = torch.Generator().manual_seed(2)
        dtype = next(next(iter(attentions(transformer).values())).parameters()).dtype

        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(dtype)

        arguments = self.inputs(view, batch, noise) | {
            "timestep": timestep.expand(batch) if timestep.ndim == 0 else timestep,
            "return_dict": False,
        }
        out = transformer(**(arguments | changes))
        return torch.cat([part.flatten() for part in out]) if isinstance(out, tuple) else out


def wan(view: tuple[int, int, int], batch: int, noise: Noise) -> dict[str, Any]:
    hidden = noise(batch, 4, view[0], 2 * view[1], 2 * view[2])
    return {"hidden_states": hidden, "encoder_hidden_states": noise(batch, TEXT_TOKENS, 16)}


def vace(view: tuple[int, int, int], batch: int, noise: Noise) -> dict[str, Any]:
    return wan(view, batch, noise) | {"control_hidden_states": noise(batch, 6, view[0], 2 * view[1], 2 * view[2])}


def cosmos(view: tuple[int, int, int], batch: int, noise: Noise) -> dict[str, Any]:
    return wan(view, batch, noise) | {"fps": 30}


def kandinsky(view: tuple[int, int, int], batch: int, noise: Noise) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, view[0], 2 * view[1], 2 * view[2], 4),
        "encoder_hidden_states": noise(batch, TEXT_TOKENS, 16),
        "pooled_projections": noise(batch, 8),
        "visual_rope_pos": tuple(torch.arange(n) for n in view),
        "text_rope_pos": torch.arange(TEXT_TOKENS),
    }


def ltx(view: tuple[int, int, int], batch: int, noise: Noise) -> dict[str, Any]:
    frames, height, width = view
    return {
        "hidden_states": noise(batch, frames * height * width, 4),
        "encoder_hidden_states": noise(batch, TEXT_TOKENS, 16),
        "encoder_attention_mask": torch.ones(batch, TEXT_TOKENS),
        "num_frames": frames,
        "height": height,
        "width": width,
    }


def ltx2(view: tuple[int, int, int], batch: int, noise: Noise) -> dict[str, Any]:
    return ltx(view, batch, noise) | {
        "audio_hidden_states": noise(batch, SOUND_TOKENS, 4),
        "audio_encoder_hidden_states": noise(batch, TEXT_TOKENS, 16),
        "audio_num_frames": SOUND_TOKENS,
        "sigma": torch.full((batch,), 500.0),
    }


HEADS = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2}
WAN = HEADS | {"in_channels": 4, "out_channels": 4, "text_dim": 16, "freq_dim": 32, "ffn_dim": 32}
WAN |= {"rope_max_seq_len": 64}
COSMOS = HEADS | {"in_channels": 4, "out_channels": 4, "text_embed_dim": 16, "adaln_lora_dim": 8}
COSMOS |= {"max_size": (16, 64, 64), "concat_padding_mask": False}  # that needs torchvision
LTX = HEADS | {"in_channels": 4, "out_channels": 4, "cross_attention_dim": 24, "caption_channels": 16}
LTX2 = LTX | {"audio_in_channels": 4, "audio_out_channels": 4, "audio_num_attention_heads": 2}
LTX2 |= {"audio_attention_head_dim": 12, "audio_cross_attention_dim": 24}
LTX23 = {"rope_type": "split", "gated_attn": True, "audio_gated_attn": True, "perturbed_attn": True}
LTX23 |= {"cross_attn_mod": True, "audio_cross_attn_mod": True}
KANDINSKY = {"in_text_dim": 16, "in_text_dim2": 8, "time_dim": 16, "model_dim": 24, "ff_dim": 32}
KANDINSKY |= {"num_text_blocks": 1, "num_visual_blocks": 2, "axes_dims": (4, 4, 4)}

FAMILIES = {
    "ltx": Family("LTXVideoTransformer3DModel", LTX, ltx),
    "ltx2": Family("LTX2VideoTransformer3DModel", LTX2, ltx2),
    "ltx2.3": Family("LTX2VideoTransformer3DModel", LTX2 | LTX23, ltx2),
    "cosmos1": Family("CosmosTransformer3DModel", COSMOS, cosmos, timestep=0.1),
    "cosmos2": Family("CosmosTransformer3DModel", COSMOS | {"extra_pos_embed_type": None}, cosmos, timestep=0.5),
    "kandinsky5": Family("Kandinsky5Transformer3DModel", KANDINSKY, kandinsky),
    "vace": Family("WanVACETransformer3DModel", WAN | {"vace_layers": [0], "vace_in_channels": 6}, vace),
    "skyreels": Family("SkyReelsV2Transformer3DModel", WAN, wan),
}
