"""Small random pipelines that make a video chunk by chunk: AnyFlow-FAR, Helios."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from vidsparse.shapes import model as shapes


def _parts(transformer: str, scheduler: Any, **config: Any) -> dict[str, Any]:
    if not hasattr(diffusers, transformer):
        pytest.skip(f"this diffusers has no {transformer}")
    sizes = {"num_attention_heads": 2, "attention_head_dim": 24, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2}
    channels = {"in_channels": shapes.LATENT_CHANNELS, "out_channels": shapes.LATENT_CHANNELS}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = getattr(diffusers, transformer)(**sizes, **channels, text_dim=shapes.TEXT_WIDTH, **config).eval()
        for name, parameter in model.named_parameters():
            if "to_q" in name or "to_k" in name:  # attention far from uniform
                torch.nn.init.normal_(parameter, std=0.3)
    return {
        "tokenizer": shapes.build_tokenizer(),
        "text_encoder": shapes.build_text_encoder(),
        "vae": shapes.build_vae(),
        "scheduler": scheduler,
        "transformer": model,
    }


def anyflow_far() -> Any:
    """Chunks of 1, 2, 2 and 1 latent frames, of which the last two before a chunk are kept as they are."""
    scheduler = diffusers.FlowMapEulerDiscreteScheduler()
    pipe = diffusers.AnyFlowFARPipeline(
        **_parts("AnyFlowFARTransformer3DModel", scheduler, chunk_partition=(1, 2, 2, 1), full_chunk_limit=3)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def helios(**config: Any) -> Any:
    scheduler = diffusers.HeliosScheduler(stages=1, stage_range=[0, 1], gamma=1 / 3)
    pipe = diffusers.HeliosPipeline(**_parts("HeliosTransformer3DModel", scheduler, rope_dim=(8, 8, 8), **config))
    pipe.set_progress_bar_config(disable=True)
    return pipe
