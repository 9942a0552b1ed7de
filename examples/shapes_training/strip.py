"""Generates videos of held-out prompts with the transformer as it is, and shows nine frames of each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vidsparse.shapes import judge
from vidsparse.shapes.model import MAX_WORDS
from vidsparse.shapes.scene import held_out_scenes
from vidsparse.shapes.world import World

if TYPE_CHECKING:
    from diffusers import WanPipeline


def draw_strip(pipe: WanPipeline, world: World, path: Path, prompts: int, steps: int, guidance: float = 2.0) -> None:
    """Write a PNG with a row for each prompt, and print what the judge says of each video."""
    import imageio.v3 as imageio

    pipe.set_progress_bar_config(disable=True)
    rows = []
    for i, scene in enumerate(held_out_scenes()[:: 64 // prompts][:prompts]):
        frames = pipe(
            scene.caption,
            height=world.size,
            width=world.size,
            num_frames=world.frames,
            num_inference_steps=steps,
            guidance_scale=guidance,
            max_sequence_length=MAX_WORDS,
            generator=torch.Generator().manual_seed(i),
            output_type="pt",
        ).frames[0]
        video = frames.float().cpu().transpose(0, 1) * 2 - 1
        print(scene.caption, judge.score(video, scene), flush=True)
        shown = torch.linspace(0, world.frames - 1, 9).round().long()
        rows.append(video[:, shown].transpose(1, 2).flatten(2))
    picture = (torch.cat(rows, dim=1).clamp(-1, 1) + 1) * 127.5
    imageio.imwrite(path, picture.byte().permute(1, 2, 0).numpy())
