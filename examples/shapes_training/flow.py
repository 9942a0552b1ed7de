"""The loss of the transformer: flow matching on latents, and the outlines that its hidden states must tell."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from latents import Example, Pool, Statistics, crosses
from outlines import OutlineReader, outlines
from precision import lower_precision

from vidsparse.grid import VideoGrid
from vidsparse.shapes.model import MAX_WORDS

if TYPE_CHECKING:
    from diffusers import WanPipeline, WanTransformer3DModel

LEVELS = (0.97, 0.92, 0.85, 0.5)  # noise at which held-out videos are asked about


class Prompts:
    """Prompt embeddings as `WanPipeline` makes them: zeros after the last word, up to a length."""

    def __init__(self, pipe: WanPipeline, device: str):
        self.encoder, self.tokenizer, self.device = pipe.text_encoder.float(), pipe.tokenizer, device
        self.known: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self, prompts: list[str], length: int = MAX_WORDS) -> torch.Tensor:
        for prompt in prompts:
            if prompt not in self.known:
                ids = self.tokenizer(prompt, return_tensors="pt")
                self.known[prompt] = self.encoder(ids.input_ids, ids.attention_mask).last_hidden_state[0]
        padded = [F.pad(e, (0, 0, 0, length - len(e))) for e in (self.known[p] for p in prompts)]
        return torch.stack(padded).to(self.device)


@dataclass(frozen=True)
class Flow:
    """What a training step asks of the transformer.

    Attributes:
        transformer, reader: what is trained.
        prompts, statistics: how prompts become embeddings, and latents are normalised.
        batch: videos of a step; their noise levels are a draw from each of as many strata.
        parts: in which the videos of a step go through the transformer.
        levels: of noise that are drawn.
        shift: of the noise levels; more is more noise.
        device: where the transformer is.
    """

    transformer: WanTransformer3DModel
    reader: OutlineReader
    prompts: Prompts
    statistics: Statistics
    batch: int
    parts: int
    levels: tuple[float, float]
    shift: float
    device: str

    def loss(
        self, pool: Pool, rng: random.Random, part: int = 0, latent_frames: int | None = None
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of one part of a step, on videos drawn from `pool`, and what it consists of for the log.

        `latent_frames` cuts the clips to their first latent frames: what the autoencoder, which is causal, makes of the
        shorter clip.
        """
        strata = torch.arange(part, self.batch, self.parts)
        chosen = rng.choices(range(len(pool)), pool.weights, k=len(strata))
        examples = [pool.examples[i] for i in chosen]
        latent = self.statistics.normalise(pool.latents[chosen, :, :latent_frames].to(self.device))
        texts = ["" if rng.random() < 0.1 else scene.caption for scene, _ in examples]
        # The pipeline pads to 512 words unless told otherwise: the model must not care.
        condition = self.prompts(texts, 512 if rng.random() < 0.05 else MAX_WORDS)
        low, high = (level / (self.shift - (self.shift - 1) * level) for level in self.levels)
        uniform = low + (high - low) * (torch.rand(len(strata)) + strata) / self.batch
        sigma = (self.shift * uniform / (1 + (self.shift - 1) * uniform)).to(self.device)
        drawn = outlines(examples, *self.grid(latent).view, self.device)
        errors = self.errors(latent, torch.randn_like(latent), sigma, condition)
        with lower_precision(latent.device.type):
            seen = self.reader.loss(drawn)
        high = sigma > 0.75
        logged = {"flow": errors, "high_noise": errors[high], "low_noise": errors[~high], "outlines": seen}
        if latent_frames is not None:
            logged = {f"short_{name}": value for name, value in logged.items()}
        details = {name: value.detach().mean().item() for name, value in logged.items() if value.numel()}
        return errors.mean() + seen / 2, details

    def errors(
        self, latent: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        """Mean squared error of the predicted flow, noise minus latent, for each video: float32 [batch]."""
        flow = self.predict(latent, noise, sigma, condition)
        return (flow - (noise - latent)).square().mean(dim=(1, 2, 3, 4))

    def predict(
        self, latent: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        """The predicted flow, float32 of the shape of `latent`."""
        level = sigma[:, None, None, None, None]
        noisy = (1 - level) * latent + level * noise
        with lower_precision(latent.device.type):
            flow: torch.Tensor = self.transformer(noisy, 1000 * sigma, condition).sample
        return flow.float()

    def grid(self, latent: torch.Tensor) -> VideoGrid:
        """The tokens of latents [batch, channels, frames, height, width]."""
        patch = self.transformer.config.patch_size[1]
        return VideoGrid(latent.shape[2], latent.shape[3] // patch, latent.shape[4] // patch)

    @torch.no_grad()
    def examine(self, pool: Pool) -> dict[str, float]:
        """Flow loss on held-out videos, the same noise each time, by noise level and by what the objects do."""
        frames = 4 * pool.latents.shape[2] - 3
        found: dict[str, list[float]] = {}
        for i, example in enumerate(pool.examples):
            latent = self.statistics.normalise(pool.latents[i : i + 1].to(self.device))
            noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(i)).to(self.device)
            condition = self.prompts([example[0].caption])
            for level in (level for level in LEVELS if self.levels[0] <= level <= self.levels[1]):
                sigma = torch.tensor([level], device=self.device)
                error = self.errors(latent, noise, sigma, condition).item()
                for name in ("all", kind(example, frames)):
                    found.setdefault(f"{name}_{level}", []).append(error)
        return {name: sum(errors) / len(errors) for name, errors in sorted(found.items())}


def kind(example: Example, frames: int) -> str:
    """What the one object of a video does: still, bouncing, crossing the border, or moving inside."""
    motion = example[0].objects[0].motion
    if motion in ("still", "bouncing"):
        return motion
    return "crossing" if crosses(example, frames) else "inside"
