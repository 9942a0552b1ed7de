"""Fine-tunes the decoder of the `shapes` autoencoder for a world, and measures the autoencoder on it.

The encoder stays as it is: latents, and what the transformer has learnt of them, keep their meaning.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from optimization import SAVE_SECONDS, SEED, Stage, optimizers

from vidsparse.shapes.render import training_video
from vidsparse.shapes.world import World

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

LEARNING_RATE = 1e-3
# Videos, frames and side of the crops of a step, and how often. Causal convolutions carry far in time: without clips as
# long as the video, colours drift after a few frames.
CROPS = (((2, 33, 32), 5), ((4, 9, 48), 3), ((1, 17, 128), 1))


def crops(rng: random.Random, world: World, count: int, frames: int, size: int) -> torch.Tensor:
    """Draw crops that show an object: float32 [count, 3, frames, size, size]."""
    size = min(size, world.size)
    batch: list[torch.Tensor] = []
    while len(batch) < count:
        _, video = training_video(rng, frames, two_objects=0.5, world=world)
        for _ in range(4):
            top, left = (rng.randrange(0, world.size - size + 1, 4) for _ in range(2))
            crop = video[:, :, top : top + size, left : left + size]
            if (crop - crop[:, :1, :1, :1]).abs().amax() > 0.3 or rng.random() < 0.1:
                batch.append(crop)
    return torch.stack(batch[:count])


def psnr(decoded: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of every frame: float32 [frames], from videos [batch, 3, frames, h, w]."""
    return -10 * torch.log10((decoded.clamp(-1, 1) - video).square().mean(dim=(0, 1, 3, 4)) / 4)


def train_decoder(
    vae: AutoencoderKLWan, world: World, folder: Path, steps: int, device: str, until: float = math.inf
) -> AutoencoderKLWan:
    """Fine-tune the decoder on crops of drawn videos; return the autoencoder with the averaged weights."""
    vae.to(device).requires_grad_(False)
    decoder = torch.nn.ModuleDict({"conv": vae.post_quant_conv, "decoder": vae.decoder}).requires_grad_(True)

    def loss_of(rng: random.Random) -> tuple[torch.Tensor, dict[str, float]]:
        count, frames, size = rng.choices([c for c, _ in CROPS], [w for _, w in CROPS])[0]
        video = crops(rng, world, count, frames, size).to(device)
        with torch.autocast(device, torch.bfloat16):
            with torch.no_grad():
                latent = vae.encode(video).latent_dist.mean
            decoded = vae.decode(latent).sample.float()
        difference = decoded - video
        squared = difference.square().mean()
        loss = torch.sqrt(difference.square() + 1e-4).mean() + squared
        details = {f"psnr_{frames}": -10 * torch.log10(squared.detach() / 4).item()}
        if frames > 16:
            details["psnr_late"] = -10 * torch.log10(difference[:, :, 12:].detach().square().mean() / 4).item()
        return loss, details

    stage = Stage("decoder", folder, {"decoder": decoder}, optimizers(decoder, LEARNING_RATE))
    stage.run(loss_of, steps, until=until, save_every=SAVE_SECONDS[device])
    decoder.load_state_dict(stage.averages["decoder"])
    return vae.requires_grad_(False)


@torch.no_grad()
def measure(vae: AutoencoderKLWan, world: World, frames: int, videos: int, device: str) -> dict[str, float]:
    """PSNR in dB of drawn videos after encoding and decoding: mean, first, last and worst frame."""
    vae.to(device).eval()
    rng = random.Random(SEED + 1)
    rows = []
    for _ in range(videos):
        _, video = training_video(rng, frames, two_objects=0.5, world=world)
        video = video[None].to(device)
        with torch.autocast(device, torch.bfloat16):
            decoded = vae.decode(vae.encode(video).latent_dist.mean).sample.float()
        rows.append(psnr(decoded, video))
    frame = torch.stack(rows).mean(dim=0)
    return {
        "frames": frames,
        "mean": frame.mean().item(),
        "first": frame[0].item(),
        "last": frame[-1].item(),
        "worst": torch.stack(rows).min().item(),
    }
