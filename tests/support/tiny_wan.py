"""A tiny random Wan transformer and pipeline, what runs them, and the oracle of their sparse attention.

The oracle is diffusers' own processor with the block map, expanded to tokens, as its attention mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

from vidsparse import Pattern, Radial, VideoGrid
from vidsparse.shapes.model import build_text_encoder, build_tokenizer, build_transformer, build_vae

SPARSE = Radial(density=0.3, tile=(1, 4, 4))
SIZES = {"5x7x11": (5, 14, 22), "odd-pixels": (4, 11, 9), "one-frame": (1, 10, 12)}  # latents, patched (1, 2, 2)
TEXT_TOKENS = 7
WITHOUT_PROMPT = {"encoder_hidden_states": torch.zeros(1, TEXT_TOKENS, 16)}  # the other call of guidance


def tiny(**changes: Any) -> WanTransformer3DModel:
    """Two layers of two heads; the same random weights for the same settings."""
    settings: dict[str, Any] = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 32,
        "ffn_dim": 32,
        "num_layers": 2,
        "rope_max_seq_len": 64,
    }
    with torch.random.fork_rng():
        torch.manual_seed(1)
        transformer = WanTransformer3DModel(**(settings | changes))
        for name, parameter in transformer.named_parameters():
            if ".attn1.to_" in name:
                torch.nn.init.normal_(parameter, std=0.3)  # so that attention is far from uniform
    return transformer.eval()


def call(transformer: torch.nn.Module, sizes: tuple[int, int, int] = SIZES["5x7x11"], **changes: Any) -> torch.Tensor:
    """One forward pass with random inputs, the same for the same sizes."""
    batch, timestep = changes.pop("batch", 1), torch.as_tensor(changes.pop("timestep", 500.0))
    generator = torch.Generator().manual_seed(2)
    parameter = next(transformer.parameters())
    place = "cpu" if parameter.is_meta else parameter.device, parameter.dtype  # accelerate offloads to meta
    arguments = {
        "hidden_states": torch.randn(batch, 4, *sizes, generator=generator).to(*place),
        "encoder_hidden_states": torch.randn(batch, TEXT_TOKENS, 16, generator=generator).to(*place),
        "timestep": timestep.expand(batch) if timestep.ndim == 0 else timestep,
        "return_dict": False,
    }
    out: torch.Tensor = transformer(**(arguments | changes))[0]
    return out


def tokens_of(sizes: tuple[int, int, int]) -> VideoGrid:
    return VideoGrid(sizes[0], sizes[1] // 2, sizes[2] // 2)


@contextmanager
def masked(transformer: Any, pattern: Pattern, grid: VideoGrid) -> Iterator[None]:
    """The oracle: the model's own self-attention, given the expanded block map as its mask."""
    mask = pattern.plan(grid).token_mask()
    originals = [block.attn1.processor for block in transformer.blocks]

    def with_mask(original: Any) -> Callable[..., torch.Tensor]:
        def processor(
            attn: Any, hidden: Any, text: Any = None, no_mask: Any = None, rotary: Any = None
        ) -> torch.Tensor:
            out: torch.Tensor = original(attn, hidden, text, mask, rotary)
            return out

        return processor

    for block, original in zip(transformer.blocks, originals, strict=True):
        block.attn1.processor = with_mask(original)
    try:
        yield
    finally:
        for block, original in zip(transformer.blocks, originals, strict=True):
            block.attn1.processor = original


def state(transformer: Any) -> tuple[list[int], int]:
    """Identities of all processors, and the number of hooks."""
    processors = [id(p) for p in transformer.attn_processors.values()]
    return processors, len(transformer._forward_pre_hooks) + len(transformer._forward_hooks)


class Pipeline:
    """What `sparsify` needs of a pipeline."""

    def __init__(self, **parts: Any):
        self.__dict__.update(parts)


def wan_pipeline(experts: int = 1, scheduler: Any = None) -> WanPipeline:
    torch.manual_seed(3)
    transformers = [build_transformer(num_layers=2, num_attention_heads=1).eval() for _ in range(experts)]
    pipe = WanPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=build_text_encoder().eval(),
        vae=build_vae().eval(),
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=transformers[0],
        transformer_2=transformers[1] if experts == 2 else None,
        boundary_ratio=0.5 if experts == 2 else None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: WanPipeline, steps: int = 4, size: int = 32, **changes: Any) -> torch.Tensor:
    settings = dict(height=size, width=size, num_frames=9, guidance_scale=3.0, max_sequence_length=32)
    generator = torch.Generator().manual_seed(4)
    prompt = "a red circle moving left on a blue background"
    latents: torch.Tensor = pipe(
        prompt, num_inference_steps=steps, generator=generator, output_type="latent", **(settings | changes)
    ).frames
    return latents
