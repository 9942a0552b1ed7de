"""A LoRA of a tiny random pipeline, and where it is saved. Each test file makes its fixtures of these functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler, WanPipeline
from peft import LoraConfig

from vidsparse import LoraRecipe, PooledComplement, Radial, StepSchedule, save_lora
from vidsparse.shapes import model as shapes

RECIPE = LoraRecipe(
    pattern=StepSchedule(Radial(density=0.2, tile=(1, 8, 8)), dense_steps=1, dense_layers=(0,)),
    correction=PooledComplement(),
    frames=129,
    trained_frames=33,
    positions="riflex",
    base="shapes",
)
TARGETS = ["to_q", "to_v", "to_out.0"]


def pipeline(**changes: Any) -> Any:
    """A random pipeline of `shapes`' kind, with two blocks."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return WanPipeline(
        tokenizer=shapes.build_tokenizer(),
        text_encoder=shapes.build_text_encoder(),
        transformer=shapes.build_transformer(**{"num_layers": 2} | changes),
        vae=shapes.build_vae(),
        scheduler=scheduler,
    )


def add_lora(transformer: torch.nn.Module, adapter_name: str = "default", seed: int = 0) -> None:
    """A LoRA that changes something, with an alpha that is not its rank."""
    config = LoraConfig(r=2, lora_alpha=6, target_modules=TARGETS, init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer.add_adapter(config, adapter_name=adapter_name)  # type: ignore[operator]


@torch.no_grad()
def call(transformer: torch.nn.Module, frames: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(1, shapes.LATENT_CHANNELS, frames, 4, 4, generator=generator)
    text = torch.randn(1, 5, shapes.TEXT_WIDTH, generator=generator)
    output: torch.Tensor = transformer.eval()(hidden, torch.tensor([500.0]), text, return_dict=False)[0]
    return output


def trained_pipeline() -> Any:
    """A pipeline with a LoRA."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = pipeline()
        add_lora(pipe.transformer)
    return pipe


def saved_lora(trained: Any, tmp_path: Path) -> Path:
    """Where its LoRA is."""
    save_lora(tmp_path / "lora", trained, RECIPE)
    return tmp_path / "lora"
