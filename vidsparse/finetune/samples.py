"""Sample videos of a model in training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Prompt(NamedTuple):
    """A prompt and its embeddings [1, words, width], with and without text."""

    text: str
    embeds: torch.Tensor
    negative_embeds: torch.Tensor


@torch.no_grad()
def read_prompts(pipe: Any, texts: tuple[str, ...], sampling: Mapping[str, Any]) -> tuple[Prompt, ...]:
    """Embed prompts, where the text encoder is now."""
    words = {k: v for k, v in sampling.items() if k == "max_sequence_length"}
    return tuple(Prompt(text, *pipe.encode_prompt(text, device=pipe.text_encoder.device, **words)) for text in texts)


@torch.no_grad()
def write_samples(
    pipe: Any, prompts: tuple[Prompt, ...], folder: Path, step: int, sampling: Mapping[str, Any], fps: int, seed: int
) -> list[Path]:
    """Write one mp4 for each prompt, `step-STEP-NUMBER.mp4`, with the transformer as it is."""
    from diffusers.utils.export_utils import export_to_video

    folder.mkdir(parents=True, exist_ok=True)
    transformer, text_encoder, written = pipe.transformer, pipe.text_encoder, []
    home, training = pipe.vae.device, transformer.training
    # Without its text encoder, which has done its work, the pipeline finds all its models on one device.
    pipe.text_encoder = None
    pipe.vae.to(transformer.device)
    transformer.eval()
    try:
        for number, prompt in enumerate(prompts):
            embeds = (x.to(transformer.device) for x in (prompt.embeds, prompt.negative_embeds))
            generator = torch.Generator().manual_seed(seed + number)
            frames = pipe(**_embedded(*embeds), generator=generator, output_type="np", **sampling).frames[0]
            path = folder / f"step-{step:07d}-{number}.mp4"
            temporary = path.with_name(f".{path.stem}-{os.getpid()}.mp4")
            try:
                export_to_video(list(frames), str(temporary), fps=fps)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            written.append(path)
    finally:
        pipe.text_encoder = text_encoder
        pipe.vae.to(home)
        transformer.train(training)
    return written


def _embedded(embeds: torch.Tensor, negative_embeds: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"prompt_embeds": embeds, "negative_prompt_embeds": negative_embeds}
