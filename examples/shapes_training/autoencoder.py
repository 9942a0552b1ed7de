"""Fine-tunes the autoencoder of `shapes` for a world, near to the latents that it had, and measures it there.

What the transformer has learnt of latents then keeps its meaning, and latents may be encoded again later.
"""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from optimization import SAVE_SECONDS, SEED, Stage, optimizers
from precision import lower_precision

from vidsparse.shapes.render import training_video
from vidsparse.shapes.world import World

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

LEARNING_RATE = 3e-4  # 1e-3 taught the first hundreds of steps, and cost 2 dB when they went on with it
STAY = 5e-3  # weight of the squared distance from the latents before
# Videos, frames and side of the crops of a step, and how often. Causal convolutions carry far in time: without clips as
# long as the video, colours drift after a few frames.
CROPS = (((2, 33, 32), 5), ((4, 9, 48), 3), ((1, 17, 128), 1))


def crops(rng: random.Random, world: World, count: int, frames: int, size: int) -> torch.Tensor:
    """Draw crops that show an object: float32 [count, 3, frames, size, size]."""
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


def train_autoencoder(
    vae: AutoencoderKLWan, world: World, folder: Path, steps: int, device: str, until: float = math.inf
) -> AutoencoderKLWan:
    """Fine-tune an autoencoder on crops of drawn videos; return it with the averaged weights."""
    vae.to(device)
    before = copy.deepcopy(vae).requires_grad_(False)
    vae.requires_grad_(True)

    def loss_of(rng: random.Random) -> tuple[torch.Tensor, dict[str, float]]:
        count, frames, size = rng.choices([c for c, _ in CROPS], [w for _, w in CROPS])[0]
        # The world of a trial plan is shorter and smaller than some crops.
        frames, size = min(frames, world.frames), min(size, world.size)
        video = crops(rng, world, count, frames, size).to(device)
        with lower_precision(device):
            with torch.no_grad():
                old = before.encode(video).latent_dist.mean.float()
            posterior = vae.encode(video).latent_dist
            decoded = vae.decode(posterior.sample()).sample.float()
        mean = posterior.mean.float()
        kl = 0.5 * (mean.square() + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        drift = (mean - old).square().mean()
        difference = decoded - video
        squared = difference.square().mean()
        loss = torch.sqrt(difference.square() + 1e-4).mean() + squared + 5e-4 * kl + STAY * drift
        details = {f"psnr_{frames}": -10 * torch.log10(squared.detach() / 4).item(), "drift": drift.item()}
        if frames > 16:
            details["psnr_late"] = -10 * torch.log10(difference[:, :, 12:].detach().square().mean() / 4).item()
        return loss, details

    stage = Stage("autoencoder", folder, {"vae": vae}, optimizers(vae, LEARNING_RATE))
    stage.run(loss_of, steps, until=until, save_every=SAVE_SECONDS[device])
    vae.load_state_dict(stage.averages["vae"])
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
        with lower_precision(device):
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
