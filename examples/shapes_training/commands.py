"""What `python examples/shapes_training COMMAND` does: each command reads and writes the folder --out."""

from __future__ import annotations

import json
import random
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from autoencoder import measure, train_autoencoder
from latents import SHARD, Example, Pool, Statistics, encode, encode_shards, read_pool, read_shard, write_shard
from precision import precision
from safetensors.torch import load_file, save_file
from strip import draw_strip, pipeline
from transformer import Training, Weights

from vidsparse.shapes.model import load_pipeline
from vidsparse.shapes.render import draw_trajectories
from vidsparse.shapes.scene import held_out_scenes
from vidsparse.shapes.world import World

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

WEIGHTS = Path(__file__).parent / "weights"
TRANSFORMER, AUTOENCODER, STATISTICS = "transformer.safetensors", "autoencoder.safetensors", "statistics.json"


def newest(out: Path, name: str) -> Path:
    """The file of that name in the folder of a run, or in this folder's weights; it may be in neither."""
    return out / name if (out / name).is_file() else WEIGHTS / name


def load_autoencoder(out: Path) -> AutoencoderKLWan:
    """The newest autoencoder, in float32; before the first fine-tuning the one that ships."""
    vae = load_pipeline().vae.eval().requires_grad_(False)
    path = newest(out, AUTOENCODER)
    if path.is_file():
        vae.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return vae


def start(out: Path) -> Weights:
    """The newest weights of the transformer; before the first phase those of the model that ships."""
    path = newest(out, TRANSFORMER)
    return Weights.read(path) if path.is_file() else Weights(load_pipeline().transformer.state_dict(), 1, {})


def autoencoder(given: Namespace) -> None:
    """Fine-tune the autoencoder and say how good it then is."""
    world = given.plan.world
    vae = train_autoencoder(load_autoencoder(given.out), world, given.out, given.steps, given.device, given.until)
    save_file({k: v.half().cpu().contiguous() for k, v in vae.state_dict().items()}, given.out / AUTOENCODER)
    check(given)


def check(given: Namespace) -> None:
    """Measure the autoencoder on drawn videos of the usual length and of four times that."""
    vae, world = load_autoencoder(given.out), given.plan.world
    for frames, videos in ((world.frames, 8), (4 * world.frames - 3, 2)):
        print(json.dumps(measure(vae, world, frames, videos, given.device)), flush=True)


def latents(given: Namespace) -> None:
    """Draw and encode videos, those that the log asks about first."""
    vae, world = load_autoencoder(given.out).to(given.device, precision(given.device)), given.plan.world
    held_out(given.out, vae, world)
    encode_shards(vae, world, given.out / "latents", range(-(-given.videos // SHARD)), world.frames)


def held_out(out: Path, vae: AutoencoderKLWan, world: World) -> Pool:
    """Every second of the held-out scenes, encoded."""
    path = out / "held_out.pt"
    if not path.is_file():
        rng = random.Random(0)

        def examples() -> Iterator[Example]:
            for scene in held_out_scenes()[::2]:
                yield scene, draw_trajectories(scene, rng, world.frames, world)

        write_shard(encode(vae, world, examples(), world.frames), path)
    return read_shard(path)


def train(given: Namespace) -> None:
    """Train the transformer by the plan."""
    vae = load_autoencoder(given.out).to(given.device, precision(given.device))
    asked = held_out(given.out, vae, given.plan.world)
    path = given.out / STATISTICS
    if not newest(given.out, STATISTICS).is_file():
        Statistics.measure(read_pool(given.out / "latents").latents).write(path)
    statistics = Statistics.read(newest(given.out, STATISTICS))
    training = Training(given.plan, load_pipeline(), statistics, given.out, asked, given.device)
    weights = training.run(start(given.out), given.until)
    print(f"{weights.phase}: {weights.step} steps", flush=True)


def strip(given: Namespace) -> None:
    """Generate held-out prompts and write nine frames of each to strip.png."""
    statistics = Statistics.read(newest(given.out, STATISTICS))
    pipe = pipeline(load_autoencoder(given.out), start(given.out), statistics, given.device)
    draw_strip(pipe, given.plan.world, given.out / "strip.png", given.prompts, given.sampling_steps)


def keep(given: Namespace) -> None:
    """Copy the newest weights and statistics into the repository."""
    for name in (TRANSFORMER, AUTOENCODER, STATISTICS):
        if (given.out / name).is_file():
            shutil.copy(given.out / name, WEIGHTS / name)
            print(f"{name}: {(WEIGHTS / name).stat().st_size / 1e6:.1f} MB")


def everything(given: Namespace) -> None:
    """The autoencoder, the latents, the transformer and a strip, one after the other."""
    for command in (autoencoder, latents, train, strip):
        command(given)


COMMANDS: dict[str, Callable[[Namespace], None]] = {
    "autoencoder": autoencoder,
    "check": check,
    "latents": latents,
    "train": train,
    "strip": strip,
    "keep": keep,
    "all": everything,
}
