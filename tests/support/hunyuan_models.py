"""Tiny random HunyuanVideo, HunyuanVideo 1.5 and FramePack, and a forward pass of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers import (
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoFramepackTransformer3DModel,
    HunyuanVideoTransformer3DModel,
)

from vidsparse import Radial, VideoGrid

SPARSE = Radial(density=0.3, tile=(1, 4, 4))
VIEWS = {"3x5x7": (3, 5, 7), "odd-pixels": (2, 5, 7), "one-frame": (1, 5, 6)}  # tokens of the video
ODD = {"odd-pixels": 1}  # latent rows and columns beyond the last whole patch
TEXT = 9
LENGTHS = (5, 9, 1)  # real tokens of the prompt, by sample
TINY: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 1,
    "num_refiner_layers": 1,
    "mlp_ratio": 2.0,
    "text_embed_dim": 16,
    "rope_axes_dim": (4, 4, 4),
}

Build = Callable[..., torch.Tensor]


def hunyuan(random: Build, batch: int, size: tuple[int, int, int]) -> dict[str, Any]:
    return {"pooled_projections": random(batch, 8), "guidance": torch.full((batch,), 6.0)}


def hunyuan_15(random: Build, batch: int, size: tuple[int, int, int]) -> dict[str, Any]:
    glyphs = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])[:batch]
    return {
        "encoder_hidden_states_2": random(batch, 4, 10),
        "encoder_attention_mask_2": glyphs,
        "image_embeds": torch.zeros_like(random(batch, 3, 6)),
    }


def hunyuan_15_image(random: Build, batch: int, size: tuple[int, int, int]) -> dict[str, Any]:
    return hunyuan_15(random, batch, size) | {"image_embeds": random(batch, 3, 6)}


def framepack(random: Build, batch: int, size: tuple[int, int, int]) -> dict[str, Any]:
    arguments = hunyuan(random, batch, size) | {
        "image_embeds": random(batch, 3, 6),
        "indices_latents": torch.arange(8, 8 + size[0]),
    }
    for name, first, frames in (("clean", 7, 2), ("history_2x", 5, 3), ("history_4x", 0, 5)):
        arguments[f"latents_{name}"] = random(batch, 4, frames, *size[1:])
        arguments[f"indices_latents_{name}"] = torch.arange(first, first + frames)
    return arguments


@dataclass(frozen=True)
class Family:
    """A model, what its forward pass wants besides the video and the prompt, and the text that must come of it."""

    model: type[torch.nn.Module]
    adapter: tuple[str, str]
    arguments: Callable[[Build, int, tuple[int, int, int]], dict[str, Any]]
    real: tuple[int, ...]  # real tokens around the video, by sample, where a batch has padding
    extra: tuple[int, int] = (0, TEXT)  # tokens before and after the video, padding included
    patch: int = 2
    cuts_padding: bool = False  # a batch of one has no padding
    settings: dict[str, Any] = field(default_factory=dict)

    def tiny(self, **changes: Any) -> Any:
        """The same random weights for the same settings."""
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return self.model(**(TINY | self.settings | changes)).eval()

    def size(self, name: str = "3x5x7") -> tuple[int, int, int]:
        """Latents."""
        frames, height, width = VIEWS[name]
        more = ODD.get(name, 0) if self.patch > 1 else 0
        return frames, self.patch * height + more, self.patch * width + more

    def grid(self, name: str = "3x5x7", batch: int = 1) -> VideoGrid:
        prefix, suffix = self.extra
        if self.cuts_padding:
            height, width = VIEWS[name][1:]
            # Two clean frames, three at half and five at a quarter of the resolution, each rounded up.
            prefix = 2 * height * width + 2 * -(-height // 2) * -(-width // 2) + 2 * -(-height // 4) * -(-width // 4)
            suffix = self.real[0] if batch == 1 else suffix
        return VideoGrid(*VIEWS[name], prefix=prefix, suffix=suffix)

    def valid(self, name: str = "3x5x7", batch: int = 1) -> torch.Tensor:
        return self.grid(name, batch).prefix + torch.tensor(self.real[:batch])


SKYREELS = {"in_channels": 9, "image_condition_type": "latent_concat"}
SINGLE: dict[str, Any] = {"num_single_layers": 1, "pooled_projection_dim": 8}
FIFTEEN: dict[str, Any] = {"text_embed_2_dim": 10, "image_embed_dim": 6}
HUNYUAN = HunyuanVideoTransformer3DModel, ("vidsparse_pipelines.hunyuan_video", "HunyuanVideoAdapter"), hunyuan, LENGTHS
ADAPTER_15 = "vidsparse_pipelines.hunyuan_video_15", "HunyuanVideo15Adapter"
FAMILIES = {
    "hunyuan": Family(*HUNYUAN, settings=SINGLE),
    "hunyuan-concat": Family(*HUNYUAN, settings=SINGLE | SKYREELS),
    "hunyuan-replace": Family(*HUNYUAN, settings=SINGLE | {"image_condition_type": "token_replace"}),
    "hunyuan15": Family(
        HunyuanVideo15Transformer3DModel, ADAPTER_15, hunyuan_15, (7, 9, 5), (0, TEXT + 7), patch=1, settings=FIFTEEN
    ),
    "hunyuan15-image": Family(
        HunyuanVideo15Transformer3DModel,
        ADAPTER_15,
        hunyuan_15_image,
        (10, 12, 8),
        (0, TEXT + 7),
        patch=1,
        settings=FIFTEEN,
    ),
    "framepack": Family(
        HunyuanVideoFramepackTransformer3DModel,
        ("vidsparse_pipelines.framepack", "FramepackAdapter"),
        framepack,
        (8, 12, 4),
        (0, TEXT + 3),
        cuts_padding=True,
        settings=SINGLE | {"has_image_proj": True, "image_proj_dim": 6, "has_clean_x_embedder": True},
    ),
}
ONE_EACH = pytest.mark.parametrize(
    "family",
    [FAMILIES[name] for name in ("hunyuan", "hunyuan15", "framepack")],
    ids=["hunyuan", "hunyuan15", "framepack"],
)


def call(family: Family, transformer: Any, name: str = "3x5x7", batch: int = 1, **changes: Any) -> torch.Tensor:
    """One forward pass with random inputs, the same for the same size and batch."""
    generator = torch.Generator().manual_seed(2)
    parameter = next(transformer.parameters())

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(parameter)

    size = family.size(name)
    arguments: dict[str, Any] = {
        "hidden_states": random(batch, transformer.config.in_channels, *size),
        "timestep": torch.full((batch,), 500.0).to(parameter),
        "encoder_hidden_states": random(batch, TEXT, 16),
        "encoder_attention_mask": (torch.arange(TEXT) < torch.tensor(LENGTHS[:batch])[:, None]).long(),
        "return_dict": False,
    } | family.arguments(random, batch, size)
    out: torch.Tensor = transformer(**(arguments | changes))[0]
    return out
