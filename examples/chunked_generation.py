"""A video made chunk by chunk: new frames attend to the kept keys and values of all frames before them.

    python examples/chunked_generation.py --chunks 5 --out chunks.mp4

It runs `shapes` twice, with dense and with sparse attention, and prints the seconds of each chunk and how far its
frames are from the dense ones. `ChunkedKV` is what a loop of your own needs for a transformer of Wan's layout; here
each of the two experts has one.

`shapes` was trained on whole videos, not to continue one: later chunks need not look good. What this shows is that the
chunks with sparse attention follow those with dense attention, and how closely. The keys that the first expert
keeps are of frames without noise, on which it was never trained: it knows noise from 0.8 on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import export_to_video

import vidsparse
from vidsparse.shapes.model import SAMPLING, load_pipeline
from vidsparse_pipelines.rotary import rotate_pairs


class ChunkedKV:
    """A transformer of Wan whose calls are chunks of a video: each sees the chunks before it, which are kept.

    Inside `with`, it has processors of its own. The keys and values of all layers of the chunks that are kept, and of
    the last chunk that was called, stay in memory, in the dtype of the model: 2 * batch * tokens * width * bytes for
    each layer.

    Args:
        transformer: a `WanTransformer3DModel`.
        pattern: decides which of the kept tiles a chunk sees, with one map for all heads: `vidsparse.LightForcing`, a
            pattern that needs only the size of the video, or `vidsparse.Dense`.

    Attributes:
        frames: how many latent frames are kept.
        densities: density of each sparse attention call.
    """

    def __init__(self, transformer: Any, pattern: vidsparse.Pattern):
        grid, keys = vidsparse.VideoGrid(1, 1, 1), vidsparse.VideoGrid(2, 1, 1)
        context = vidsparse.Context(key_grid=keys)
        trial = (torch.zeros(1, tokens, 1, 1) for tokens in (grid.tokens, keys.tokens))
        plan = None if pattern.is_dense(context) else pattern.select(*trial, grid, context)
        if plan is not None and getattr(plan, "key_grid", None) != keys:
            raise ValueError(
                f"{pattern!r} gives no single map for a chunk and the frames before it; take LightForcing(), "
                "Radial(density=0.3) or Dense()"
            )
        self.transformer, self.pattern = transformer, pattern
        self.layers = [block.attn1 for block in transformer.blocks]
        self.kept: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * len(self.layers)
        self.frames = 0
        self.densities: list[float] = []

    def __enter__(self) -> ChunkedKV:
        self.originals = [attention.processor for attention in self.layers]
        for layer, attention in enumerate(self.layers):
            attention.processor = ChunkedProcessor(self, layer)
        return self

    def __exit__(self, *error: object) -> None:
        for attention, original in zip(self.layers, self.originals, strict=True):
            attention.processor = original

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """The transformer's output for a chunk [batch, channels, frames, height, width], after the kept ones."""
        frames, height, width = latents.shape[-3:]
        patch = self.transformer.config.patch_size
        self.grid = vidsparse.VideoGrid(frames // patch[0], height // patch[1], width // patch[2])
        # Positions go on from the kept frames.
        whole = latents[:, :, :1].expand(-1, -1, self.frames * patch[0] + frames, -1, -1)
        self.rotary = [x[:, -self.grid.tokens :] for x in self.transformer.rope(whole)]
        self.last: list[Any] = [None] * len(self.layers)  # keys and values of this chunk
        out: torch.Tensor = self.transformer(latents, timestep.expand(len(latents)), text, return_dict=False)[0]
        return out

    def keep(self, latents: torch.Tensor, text: torch.Tensor) -> None:
        """Keep a finished chunk: its keys and values are those of a call without noise."""
        self(latents, torch.zeros(1), text)
        self.frames += self.grid.frames
        for layer in range(len(self.layers)):  # one by one, so that one layer alone is in memory twice
            self.kept[layer], self.last[layer] = self._with_kept(layer, *self.last[layer]), None

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attention of the chunk in a layer to the kept keys and its own, all [batch, tokens, heads, head_dim]."""
        self.last[layer] = key, value
        key, value = self._with_kept(layer, key, value)
        keys = replace(self.grid, frames=self.frames + self.grid.frames) if self.frames else None
        grids = {"grid": keys or self.grid, "key_grid": keys}
        context = vidsparse.Context(layer, len(self.layers), heads=query.shape[2], value=value, **grids)
        if self.pattern.is_dense(context):
            query, key, value = (x.transpose(1, 2) for x in (query, key, value))
            return torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        block_map = self.pattern.select(query, key, self.grid, context)
        assert isinstance(block_map, vidsparse.BlockMap)  # checked at the start
        self.densities.append(block_map.density)
        return vidsparse.sparse_attention(query, key, value, block_map)

    def _with_kept(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Key and value of a layer after those that are kept of it."""
        if (kept := self.kept[layer]) is None:
            return key, value
        return torch.cat((kept[0], key), dim=1), torch.cat((kept[1], value), dim=1)


class ChunkedProcessor:
    """Replaces diffusers' `WanAttnProcessor` in self-attention."""

    def __init__(self, chunks: ChunkedKV, layer: int):
        self.chunks, self.layer = chunks, layer

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        query, key = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states))
        query, key, value = (x.unflatten(-1, (attn.heads, -1)) for x in (query, key, attn.to_v(hidden_states)))
        query, key = (rotate_pairs(x, *self.chunks.rotary) for x in (query, key))
        out = self.chunks.attend(self.layer, query, key, value).flatten(2)
        for module in attn.to_out:
            out = module(out)
        return out


@torch.no_grad()
def generate(
    pipe: Any, pattern: vidsparse.Pattern, prompt: str, chunks: int, frames: int, size: int, steps: int
) -> tuple[torch.Tensor, list[float], list[float]]:
    """A video of `chunks` chunks of `frames` latent frames, of `size` x `size` pixels.

    Returns:
        Its frames [frames, 3, height, width] in [0, 1]; the seconds of each chunk; its mean density (1: dense).
    """
    side, guidance = size // pipe.vae_scale_factor_spatial, SAMPLING["guidance_scale"]
    text = torch.cat(pipe.encode_prompt(prompt, max_sequence_length=SAMPLING["max_sequence_length"]))
    noise = torch.Generator().manual_seed(0)
    boundary = pipe.config.boundary_ratio * pipe.scheduler.config.num_train_timesteps
    made, seconds, densities = [], [], []
    with ChunkedKV(pipe.transformer, pattern) as high, ChunkedKV(pipe.transformer_2, pattern) as low:
        for _ in range(chunks):
            begun, high.densities, low.densities = time.perf_counter(), [], []
            latents = torch.randn(1, pipe.transformer.config.in_channels, frames, side, side, generator=noise)
            pipe.scheduler.set_timesteps(steps)
            for timestep in pipe.scheduler.timesteps:
                expert = high if timestep >= boundary else low
                with_prompt, without = expert(latents.expand(2, -1, -1, -1, -1), timestep, text).chunk(2)
                predicted = without + guidance * (with_prompt - without)
                latents = pipe.scheduler.step(predicted, timestep, latents, return_dict=False)[0]
            for expert in (high, low):
                expert.keep(latents.expand(2, -1, -1, -1, -1), text)
            made.append(latents)
            seconds.append(time.perf_counter() - begun)
            found = high.densities + low.densities
            densities.append(sum(found) / len(found) if found else 1.0)
    config = pipe.vae.config
    mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (config.latents_mean, config.latents_std))
    video = pipe.vae.decode(torch.cat(made, dim=2) * std + mean, return_dict=False)[0]
    return (video[0].transpose(0, 1) / 2 + 0.5).clamp(0, 1), seconds, densities


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="a red circle moving left on a blue background")
    parser.add_argument("--chunks", type=int, default=5, help="default: 5")
    parser.add_argument("--frames", type=int, default=3, help="latent frames of a chunk (default: 3)")
    parser.add_argument("--size", type=int, default=128, help="height and width in pixels (default: 128)")
    parser.add_argument("--steps", type=int, default=8, help="denoising steps of a chunk (default: 8)")
    parser.add_argument("--density", type=float, default=0.3, help="of all chunks but the first (default: 0.3)")
    parser.add_argument("--base-density", type=float, default=0.2, help="of ever later chunks (default: 0.2)")
    parser.add_argument("--keep-frames", type=int, default=6, help="earlier frames that a tile sees (default: 6)")
    parser.add_argument("--out", type=Path, default=Path("chunks.mp4"), help="default: chunks.mp4")
    options = parser.parse_args(arguments)
    pattern = vidsparse.LightForcing(
        options.density,
        options.base_density,
        frames=options.chunks * options.frames,
        chunk=options.frames,
        keep_frames=options.keep_frames,
        tile=(1, 4, 4),  # frames of the first expert have 16x16 tokens at 128 pixels
    )
    pipe = load_pipeline()
    settings = options.prompt, options.chunks, options.frames, options.size, options.steps
    dense, dense_seconds, _ = generate(pipe, vidsparse.Dense(), *settings)
    sparse, sparse_seconds, densities = generate(pipe, pattern, *settings)
    print("chunk  density  dense s  sparse s  PSNR to dense")
    for i, density in enumerate(densities):
        # The first latent frame makes one frame, each other one four.
        first, after = (max(0, 1 + 4 * (n * options.frames - 1)) for n in (i, i + 1))
        error = (dense[first:after] - sparse[first:after]).square().mean()
        psnr = "the same" if error == 0 else f"{-10 * error.log10():.1f} dB"
        print(f"{i:5}  {density:7.3f}  {dense_seconds[i]:7.2f}  {sparse_seconds[i]:8.2f}  {psnr:>13}")
    export_to_video([*sparse.permute(0, 2, 3, 1).numpy()], str(options.out), fps=12)


if __name__ == "__main__":
    main()
