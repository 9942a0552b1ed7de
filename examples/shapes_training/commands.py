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
from export import assemble, export, profile_of
from latents import SHARD, Example, Pool, Statistics, encode, encode_shards, read_pool, read_shard, write_shard
from pattern import PATTERN, find_pattern, read_pattern, write_pattern
from plan import PLANS
from precision import precision
from safetensors.torch import load_file, save_file
from strip import draw_strip
from transformer import Training, Weights, file_of, newest_weights

from vidsparse.shapes.model import load_pipeline
from vidsparse.shapes.render import draw_trajectories
from vidsparse.shapes.scene import held_out_scenes
from vidsparse.shapes.shipped import FOLDER
from vidsparse.shapes.world import World

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan, WanPipeline
    from plan import Plan

WEIGHTS = Path(__file__).parent / "weights"
EXPORTED = FOLDER
AUTOENCODER, STATISTICS = "autoencoder.safetensors", "statistics.json"


def newest(out: Path, name: str) -> Path:
    """The file of that name in the folder of a run, or in this folder's weights; it may be in neither."""
    return out / name if (out / name).is_file() else WEIGHTS / name


def load_autoencoder(out: Path) -> AutoencoderKLWan:
    """The newest autoencoder, in float32; before the first fine-tuning that of `shapes`."""
    vae = load_pipeline().vae.eval().requires_grad_(False)
    path = newest(out, AUTOENCODER)
    if path.is_file():
        vae.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return vae


def expert(out: Path, plan: Plan, name: str) -> Weights:
    """The newest weights of an expert; before its first checkpoint those that it begins with."""
    weights = newest_weights(name, out, WEIGHTS)
    if weights is not None:
        return weights
    start = plan.phase(name).start
    if not start:
        raise FileNotFoundError(f"no weights in {out}: run the command `train` first")
    return expert(out, plan, start)


def pipeline(given: Namespace) -> WanPipeline:
    """What has been learnt by now, in float32 on the CPU."""
    plan, statistics = given.plan, Statistics.read(newest(given.out, STATISTICS))
    experts = tuple(expert(given.out, plan, name) for name in plan.experts)
    return assemble(load_autoencoder(given.out), experts, plan.boundary, statistics)


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
    """Train the experts by the plan, or one phase, and before that what they begin with."""
    vae = load_autoencoder(given.out).to(given.device, precision(given.device))
    asked = held_out(given.out, vae, given.plan.world)
    path = given.out / STATISTICS
    if not newest(given.out, STATISTICS).is_file():
        Statistics.measure(read_pool(given.out / "latents").latents).write(path)
    statistics = Statistics.read(newest(given.out, STATISTICS))
    kept = given.out if given.plan is PLANS["cuda"] else WEIGHTS  # a GPU has the time to begin anew
    training = Training(given.plan, load_pipeline(), statistics, given.out, kept, asked, given.device)
    for phase in (given.phase,) if given.phase else given.plan.experts:
        weights = training.run(phase, given.until)
        print(f"{weights.phase}: {weights.step} steps", flush=True)
        if not weights.done:
            break


def pattern(given: Namespace) -> None:
    """Search the pattern of the second expert, on a held-out video."""
    vae, plan = load_autoencoder(given.out).to(given.device, precision(given.device)), given.plan
    asked = held_out(given.out, vae, plan.world)
    statistics = Statistics.read(newest(given.out, STATISTICS))
    phase = plan.phase(plan.experts[1])
    training = Training(plan, load_pipeline(), statistics, given.out, WEIGHTS, asked, given.device)
    flow = training.flow(phase, expert(given.out, plan, phase.name))
    write_pattern(find_pattern(flow, asked.some(3), phase.density), given.out / PATTERN)


def strip(given: Namespace) -> None:
    """Generate held-out prompts and write nine frames of each to strip.png."""
    pipe = pipeline(given).to(given.device, precision(given.device))
    draw_strip(pipe, given.plan.world, given.out / "strip.png", given.prompts, given.sampling_steps)


def keep(given: Namespace) -> None:
    """Copy the newest weights and statistics into the repository."""
    for name in (*map(file_of, given.plan.experts), AUTOENCODER, STATISTICS, PATTERN):
        if (given.out / name).is_file():
            shutil.copy(given.out / name, WEIGHTS / name)
            print(f"{name}: {(WEIGHTS / name).stat().st_size / 1e6:.1f} MB")


def export_weights(given: Namespace) -> None:
    """Write the newest weights as the model `shapes` of the package, with the profile of its pattern."""
    pipe, found = pipeline(given), read_pattern(given.out, WEIGHTS)
    profile = None if found is None else profile_of(pipe, found, given.plan.boundary)
    export(pipe, EXPORTED, profile)
    size = sum(path.stat().st_size for path in EXPORTED.rglob("*") if path.is_file())
    print(f"{EXPORTED}: {size / 1e6:.1f} MB")


def everything(given: Namespace) -> None:
    """The autoencoder, the latents, the transformer and a strip, one after the other."""
    for command in (autoencoder, latents, train, strip):
        command(given)


COMMANDS: dict[str, Callable[[Namespace], None]] = {
    "autoencoder": autoencoder,
    "check": check,
    "latents": latents,
    "train": train,
    "pattern": pattern,
    "strip": strip,
    "keep": keep,
    "export": export_weights,
    "all": everything,
}
