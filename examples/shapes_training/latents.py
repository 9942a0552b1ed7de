"""Draws videos of a world, encodes them, and keeps the latents: shards of 32, which training reads as a pool."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from optimization import SEED, save

from vidsparse.shapes.render import SIZE, Trajectory, render, training_example
from vidsparse.shapes.scene import Scene, SceneObject
from vidsparse.shapes.world import World

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

SHARD, BATCH = 32, 8  # videos of a file, and of a call of the encoder
Example = tuple[Scene, tuple[Trajectory, ...]]


@dataclass(frozen=True)
class Pool:
    """Encoded videos: raw latents, float16 [count, channels, latent frames, height, width], and what each shows."""

    latents: torch.Tensor
    examples: tuple[Example, ...]

    @cached_property
    def weights(self) -> list[int]:
        """How often each is drawn: what is hard, a cross or something that bounces, twice as often as the rest."""
        return [
            2 if any(o.shape == "cross" or o.motion == "bouncing" for o in s.objects) else 1 for s, _ in self.examples
        ]

    def to(self, device: str) -> Pool:
        """The same pool with its latents on a device."""
        return Pool(self.latents.to(device), self.examples)

    def some(self, count: int) -> Pool:
        """So many videos of it, evenly spaced."""
        chosen = torch.linspace(0, len(self) - 1, min(count, len(self))).long()
        return Pool(self.latents[chosen], tuple(self.examples[i] for i in chosen))

    def __len__(self) -> int:
        return len(self.examples)


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each channel of the latents."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalise(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [batch, channels, ...] with mean 0 and deviation 1, in float32."""
        mean, std = (torch.tensor(x, device=latents.device)[:, None, None, None] for x in (self.mean, self.std))
        return (latents.float() - mean) / std

    @staticmethod
    def measure(latents: torch.Tensor) -> Statistics:
        """Measure latents [batch, channels, ...]."""
        channels = latents.transpose(0, 1).flatten(1).float()
        return Statistics(tuple(channels.mean(dim=1).tolist()), tuple(channels.std(dim=1).tolist()))

    @staticmethod
    def read(path: Path) -> Statistics:
        """Read a file that `write` wrote."""
        return Statistics(**{key: tuple(values) for key, values in json.loads(path.read_text()).items()})

    def write(self, path: Path) -> None:
        """Write a JSON file."""
        path.write_text(json.dumps({"mean": self.mean, "std": self.std}, indent=1) + "\n")


def crosses(example: Example, frames: int) -> bool:
    """Whether an object touches the border of the frame in a clip of so many frames."""
    scene, paths = example
    for o, path in zip(scene.objects, paths, strict=True):
        centre, reach = path.centres(o.motion, frames), 1.25 * path.radius
        if ((centre < reach) | (centre > SIZE - reach)).any():
            return True
    return False


@torch.no_grad()
def encode(vae: AutoencoderKLWan, world: World, examples: Iterable[Example], frames: int) -> Pool:
    """Render and encode examples, on the device and in the dtype of the autoencoder."""
    drawn = tuple(examples)
    latents = []
    for first in range(0, len(drawn), BATCH):
        batch = [render(*example, frames, world=world, device=vae.device) for example in drawn[first : first + BATCH]]
        latents.append(vae.encode(torch.stack(batch).to(vae.dtype)).latent_dist.mean.half().cpu())
    return Pool(torch.cat(latents), drawn)


def encode_shards(vae: AutoencoderKLWan, world: World, folder: Path, shards: range, frames: int) -> None:
    """Encode the shards that `folder` lacks. A shard's number decides its videos, so several processes may share."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in shards:
        path = folder / f"{shard:04d}.pt"
        if path.is_file():
            continue
        rng = random.Random(f"{SEED}-{shard}")
        drawn = (training_example(rng, frames, world=world) for _ in range(SHARD))
        write_shard(encode(vae, world, drawn, frames), path)
        print(f"{path.name}: {SHARD} videos", flush=True)


def write_shard(pool: Pool, path: Path) -> None:
    """Write a pool as one file."""
    shown = [
        ([astuple(o) for o in scene.objects], scene.background, [astuple(p) for p in paths])
        for scene, paths in pool.examples
    ]
    save({"latents": pool.latents, "examples": shown}, path)


def read_shard(path: Path) -> Pool:
    """Read what `write_shard` wrote."""
    shard = torch.load(path, weights_only=True)
    examples = tuple(
        (Scene(tuple(SceneObject(*o) for o in objects), background), tuple(Trajectory(*p) for p in paths))
        for objects, background, paths in shard["examples"]
    )
    return Pool(shard["latents"], examples)


def read_pool(folder: Path) -> Pool:
    """Read all shards of a folder."""
    shards = [read_shard(path) for path in sorted(folder.glob("*.pt"))]
    if not shards:
        raise FileNotFoundError(f"no latents in {folder}: run the command `latents` first")
    return Pool(torch.cat([s.latents for s in shards]), tuple(example for s in shards for example in s.examples))
