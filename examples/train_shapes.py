"""Train every part of the `shapes` text-to-video model from nothing, on a CPU or a GPU.

    python examples/train_shapes.py vae          # the autoencoder, on crops
    python examples/train_shapes.py text         # the text encoder, by describing the scene (a minute)
    python examples/train_shapes.py latents      # encode the videos that the transformer learns from
    python examples/train_shapes.py patch4       # the transformer with tokens of 4x4 latents: prompts, motion, layout
    python examples/train_shapes.py patch2       # the same transformer at 2x2
    python examples/train_shapes.py patch1       # and at 1x1: what ships
    python examples/train_shapes.py export       # write the pipeline folder
    python examples/train_shapes.py unpack       # or start from the pipeline that ships: then latents, patch1, export

Every stage continues from its own checkpoint in --folder, which also gets one JSON line per logged step.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from vidsparse.shapes import model as parts
from vidsparse.shapes.outlines import OutlineReader, outlines
from vidsparse.shapes.render import SIZE, training_example, training_video
from vidsparse.shapes.scene import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, training_scene
from vidsparse.shapes.stored_attention import store_attention
from vidsparse.shapes.training import SEED, Stage, optimizers, save

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan
    from transformers import UMT5EncoderModel

    from vidsparse.shapes.render import Trajectory
    from vidsparse.shapes.scene import Scene


def videos(rng: random.Random, count: int, frames: int, size: int) -> torch.Tensor:
    """Draw crops that show an object: float32 [count, 3, frames, size, size]."""
    batch = []
    while len(batch) < count:
        _, video = training_video(rng, two_objects=0.5)
        f = rng.randrange(video.shape[1] - frames + 1)
        top, left = (rng.randrange(SIZE - size + 1) for _ in range(2))
        crop = video[:, f : f + frames, top : top + size, left : left + size]
        if (crop - crop[:, :1, :1, :1]).abs().amax() > 0.3 or rng.random() < 0.1:
            batch.append(crop)
    return torch.stack(batch)


def train_vae(arguments: argparse.Namespace) -> None:
    torch.manual_seed(SEED)
    vae = parts.build_vae().to(arguments.device)

    def loss_of(rng: random.Random) -> tuple[torch.Tensor, dict[str, float]]:
        # Causal convolutions carry far in time: without clips as long as the video, colours drift after a few frames.
        video = videos(rng, *rng.choices([(2, 33, 24), (4, 9, 32), (1, 17, 64)], [5, 3, 2])[0]).to(arguments.device)
        with torch.autocast(arguments.device, torch.bfloat16):
            posterior = vae.encode(video).latent_dist
            decoded = vae.decode(posterior.sample()).sample.float()
        difference = decoded - video
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        squared = difference.square().mean()
        loss = torch.sqrt(difference.square() + 1e-4).mean() + squared + 5e-4 * kl
        details = {"psnr": -10 * torch.log10(squared / 4).item(), "kl": kl.item()}
        if video.shape[2] > 16:
            details["late_psnr"] = -10 * torch.log10(difference[:, :, 12:].square().mean() / 4).item()
        return loss, details

    Stage("vae", arguments.folder, {"vae": vae}, optimizers(vae, arguments.lr)).run(
        loss_of, arguments.steps, arguments.log_every, arguments.decay
    )


def frozen_vae(folder: Path) -> AutoencoderKLWan:
    """The trained autoencoder (averaged weights) with its latent statistics, which `encode_latents` measures."""
    state = torch.load(folder / "vae.pt", weights_only=True, map_location="cpu")["averages"]["vae"]
    statistics = folder / "statistics.json"
    vae = parts.build_vae(**(json.loads(statistics.read_text()) if statistics.is_file() else {}))
    vae.load_state_dict(state)
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def encode_latents(arguments: argparse.Namespace) -> None:
    """Encode --steps training videos into shards of 256: float16 latents, normalised, and their prompts."""
    vae = frozen_vae(arguments.folder).to(arguments.device)
    shards = arguments.folder / "latents"
    shards.mkdir(exist_ok=True)
    for shard in range(arguments.steps // 256):
        path = shards / f"{shard:04d}.pt"
        if path.is_file():
            continue
        rng = random.Random(f"{SEED}-{shard}")
        scenes, latents = [], []
        for _ in range(256 // 4):
            drawn = [training_video(rng) for _ in range(4)]
            with torch.autocast(arguments.device, torch.bfloat16):
                encoded = vae.encode(torch.stack([video for _, video in drawn]).to(arguments.device)).latent_dist
            latents.append(encoded.mean.float().cpu())
            scenes += [scene.caption for scene, _ in drawn]
        latent = torch.cat(latents)
        statistics = arguments.folder / "statistics.json"
        if not statistics.is_file():
            by_channel = latent.transpose(0, 1).flatten(1)
            numbers = {"mean": by_channel.mean(1).tolist(), "std": by_channel.std(1).tolist()}
            statistics.write_text(json.dumps(numbers))
        numbers = {k: torch.tensor(v)[:, None, None, None] for k, v in json.loads(statistics.read_text()).items()}
        save({"latents": ((latent - numbers["mean"]) / numbers["std"]).half(), "prompts": scenes}, path)
        print(f"shard {shard}: {len(scenes)} videos", flush=True)


def train_text(arguments: argparse.Namespace) -> None:
    """Teach the text encoder to say, at each word, what the word's object is: colour, shape, motion, background."""
    torch.manual_seed(SEED)
    encoder, tokenizer = parts.build_text_encoder(), parts.build_tokenizer()
    answers = (list(COLOURS), list(SHAPES), list(MOTIONS), list(BACKGROUNDS))
    reader = torch.nn.Linear(parts.TEXT_WIDTH, sum(map(len, answers)))
    everything = torch.nn.ModuleDict({"encoder": encoder, "reader": reader})
    optimizer = torch.optim.AdamW(everything.parameters(), lr=3e-3, betas=(0.9, 0.98))

    def loss_of(rng: random.Random) -> tuple[torch.Tensor, dict[str, float]]:
        scenes = [training_scene(rng, two_objects=0.5) for _ in range(64)]
        tokens = tokenizer([s.caption for s in scenes], padding=True, return_tensors="pt")
        labels = torch.full((*tokens.input_ids.shape, 4), -100)
        for row, scene in zip(labels, scenes, strict=True):
            row[:, 3] = answers[3].index(scene.background)
            position = 0
            for o in scene.objects:
                words = len(o.caption.split())
                of_object = [a.index(n) for a, n in zip(answers[:3], (o.colour, o.shape, o.motion), strict=True)]
                row[position : position + words, :3] = torch.tensor(of_object)
                position += words + 1  # the "and" between two objects
        hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        guesses = reader(hidden).split([len(a) for a in answers], dim=-1)
        losses = [F.cross_entropy(g.flatten(0, 1), labels[..., i].flatten()) for i, g in enumerate(guesses)]
        return torch.stack(losses).sum(), {}

    Stage("text", arguments.folder, {"text": everything}, [optimizer]).run(
        loss_of, arguments.steps, arguments.log_every, arguments.decay
    )


def frozen_text_encoder(folder: Path) -> UMT5EncoderModel:
    state = torch.load(folder / "text.pt", weights_only=True, map_location="cpu")["modules"]["text"]
    encoder = parts.build_text_encoder()
    encoder.load_state_dict({k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")})
    return encoder.eval().requires_grad_(False)


class Prompts:
    """Prompt embeddings as `WanPipeline` makes them: zeros after the last word, up to a length."""

    def __init__(self, folder: Path):
        self.encoder, self.tokenizer = frozen_text_encoder(folder), parts.build_tokenizer()
        self.known: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self, prompts: list[str], length: int) -> torch.Tensor:
        for prompt in prompts:
            if prompt not in self.known:
                ids = self.tokenizer(prompt, return_tensors="pt")
                self.known[prompt] = self.encoder(ids.input_ids, ids.attention_mask).last_hidden_state[0]
        return torch.stack([F.pad(e, (0, 0, 0, length - len(e))) for e in (self.known[p] for p in prompts)])


def widen_positions(rope: torch.nn.Module, patch: int) -> None:
    """Give each token of a coarse model the position of its patch's centre in the fine model's grid."""
    sizes = [rope.t_dim, rope.h_dim, rope.w_dim]
    for name, function in (("freqs_cos", torch.cos), ("freqs_sin", torch.sin)):
        angle = torch.atan2(rope.freqs_sin[1].double(), rope.freqs_cos[1].double())
        place = torch.arange(len(rope.freqs_cos), dtype=torch.float64)[:, None]
        time, height, width = angle.split(sizes)
        centre = patch * place + (patch - 1) / 2
        table = torch.cat((place * time, centre * height, centre * width), dim=1)
        getattr(rope, name).copy_(function(table))


def refine(state: dict[str, torch.Tensor], patch: int) -> dict[str, torch.Tensor]:
    """Start a model of half the patch size from a coarser one: each token stands for a quarter of what it stood for."""
    half = patch // 2
    fine = dict(state)
    kernel = state["patch_embedding.weight"].unflatten(-1, (2, half)).unflatten(-3, (2, half))
    fine["patch_embedding.weight"] = kernel.sum(dim=(-4, -2))
    for name in ("proj_out.weight", "proj_out.bias"):
        # The head writes [row of the patch, column of the patch, channel].
        head = state[name].unflatten(0, (2, half, 2, half, -1))
        fine[name] = head.mean(dim=(0, 2)).flatten(0, 2)
    return fine


def known_videos(folder: Path) -> tuple[torch.Tensor, list[tuple[Scene, tuple[Trajectory, ...]]]]:
    """The encoded videos [count, channels, latent frames, height, width], float16, and what each of them shows."""
    paths = sorted((folder / "latents").glob("*.pt"))
    if not paths:
        raise SystemExit(f"no latents in {folder}: run the stage `latents` first")
    shards = [torch.load(path, weights_only=True) for path in paths]
    examples = []
    for path, shard in zip(paths, shards, strict=True):
        rng = random.Random(f"{SEED}-{int(path.stem)}")
        drawn = [training_example(rng) for _ in shard["prompts"]]
        if [scene.caption for scene, _ in drawn] != shard["prompts"]:
            raise SystemExit(f"{path} was encoded by another version of this script: delete it and encode it again")
        examples += drawn
    return torch.cat([shard["latents"] for shard in shards]), examples


def train_transformer(arguments: argparse.Namespace) -> None:
    """Flow matching on latents: predict noise minus latent at a noise level drawn with shift 3."""
    torch.manual_seed(SEED)
    patch = int(arguments.stage.removeprefix("patch"))
    transformer = parts.build_transformer(patch)
    widen_positions(transformer.rope, patch)
    reader = OutlineReader(transformer.blocks, transformer.patch_embedding.out_channels)
    coarser, unpacked = arguments.folder / f"patch{2 * patch}.pt", arguments.folder / "transformer.pt"
    if patch == 1 and unpacked.is_file():
        transformer.load_state_dict(
            torch.load(unpacked, weights_only=True, map_location="cpu")["averages"]["transformer"]
        )
    elif coarser.is_file() and not (arguments.folder / f"{arguments.stage}.pt").is_file():
        averages = torch.load(coarser, weights_only=True, map_location="cpu")["averages"]
        transformer.load_state_dict(refine(averages["transformer"], 2 * patch))
        reader.load_state_dict(averages["reader"])
    transformer.to(arguments.device)
    prompts = Prompts(arguments.folder)
    latents, examples = known_videos(arguments.folder)
    tokens = (latents.shape[2], latents.shape[3] // patch, latents.shape[4] // patch)
    reader.to(arguments.device)
    if arguments.device == "cpu":
        store_attention(transformer.blocks)
    if arguments.compile:
        for block in transformer.blocks:
            block.compile()
    # What is hard to draw is seen more often.
    hard = [any(o.shape == "cross" or o.motion == "bouncing" for o in scene.objects) for scene, _ in examples]
    weights = [2 if h else 1 for h in hard]
    skip = ("patch_embedding", "proj_out", "scale_shift_table")

    def loss_of(rng: random.Random) -> tuple[torch.Tensor, dict[str, float]]:
        chosen = rng.choices(range(len(latents)), weights, k=arguments.batch)
        latent = latents[chosen].float().to(arguments.device)
        texts = ["" if rng.random() < 0.1 else examples[i][0].caption for i in chosen]
        # The pipeline pads to 512 words unless told otherwise: the model must not care.
        condition = prompts(texts, 512 if rng.random() < 0.05 else parts.MAX_WORDS).to(arguments.device)
        # One draw a stratum: the noise levels of a batch cover the range evenly.
        uniform = (torch.rand(len(chosen)) + torch.arange(len(chosen))) / len(chosen)
        sigma = (3 * uniform / (1 + 2 * uniform)).to(arguments.device)
        noise = torch.randn_like(latent)
        drawn = torch.stack([outlines(*examples[i], *tokens) for i in chosen]).to(arguments.device)
        level = sigma[:, None, None, None, None]
        with torch.autocast(arguments.device, torch.bfloat16):
            flow = transformer((1 - level) * latent + level * noise, 1000 * sigma, condition).sample
            seen = reader.loss(drawn)
        errors = (flow.float() - (noise - latent)).square().mean(dim=(1, 2, 3, 4))
        high = sigma > 0.75
        logged = {"flow": errors, "high_noise": errors[high], "low_noise": errors[~high], "outlines": seen}
        return errors.mean() + seen / 2, {name: part.mean().item() for name, part in logged.items() if part.numel()}

    Stage(
        arguments.stage,
        arguments.folder,
        {"transformer": transformer, "reader": reader},
        [*optimizers(transformer, arguments.lr, skip), *optimizers(reader, arguments.lr)],
    ).run(loss_of, arguments.steps, arguments.log_every, arguments.decay)


def export(arguments: argparse.Namespace) -> None:
    """Put the averaged weights of all parts into one pipeline folder, float16."""
    from diffusers import UniPCMultistepScheduler, WanPipeline

    vae = frozen_vae(arguments.folder)
    transformer = parts.build_transformer()
    state = torch.load(arguments.folder / "patch1.pt", weights_only=True)
    transformer.load_state_dict(state["averages"]["transformer"])
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipe = WanPipeline(
        tokenizer=parts.build_tokenizer(),
        text_encoder=frozen_text_encoder(arguments.folder).half(),
        vae=vae.half(),
        transformer=transformer.half(),
        scheduler=scheduler,
    )
    made = arguments.out.with_name(f"{arguments.out.name}.new")
    shutil.rmtree(made, ignore_errors=True)
    pipe.save_pretrained(made, safe_serialization=True)
    # transformers 5 writes a class that version 4 does not have; both know this one.
    for config in (made / "model_index.json", made / "tokenizer" / "tokenizer_config.json"):
        config.write_text(config.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    shutil.copy(arguments.folder / "log.jsonl", made / "training.jsonl")
    shutil.rmtree(arguments.out, ignore_errors=True)
    made.rename(arguments.out)
    size = sum(f.stat().st_size for f in arguments.out.rglob("*") if f.is_file())
    print(f"{arguments.out}: {size / 1e6:.1f} MB")


def unpack(arguments: argparse.Namespace) -> None:
    """The reverse of `export`: checkpoints from a pipeline folder, so that `latents` and `patch1` can go on from it."""
    pipe = parts.load_pipeline(torch.float32, arguments.out)
    numbers = {"mean": pipe.vae.config.latents_mean, "std": pipe.vae.config.latents_std}
    (arguments.folder / "statistics.json").write_text(json.dumps(numbers))
    encoder = {f"encoder.{key}": value for key, value in pipe.text_encoder.state_dict().items()}
    save({"modules": {"text": encoder}}, arguments.folder / "text.pt")
    save({"averages": {"vae": pipe.vae.state_dict()}}, arguments.folder / "vae.pt")
    save({"averages": {"transformer": pipe.transformer.state_dict()}}, arguments.folder / "transformer.pt")


@dataclass(frozen=True)
class Recipe:
    """A stage and its settings: steps (or videos), learning rate, videos of a step, and the part of the steps in which
    the rate falls to zero."""

    function: Callable[[argparse.Namespace], None]
    steps: int = 0
    lr: float = 4e-3
    batch: int = 16
    decay: float = 0.3


RECIPES = {
    "vae": Recipe(train_vae, 2000),
    "text": Recipe(train_text, 500),
    "latents": Recipe(encode_latents, 8192),
    "patch4": Recipe(train_transformer, 716, batch=32, decay=0.0),
    "patch2": Recipe(train_transformer, 6700, lr=2e-3, decay=0.25),
    "patch1": Recipe(train_transformer, 4150, lr=2e-3, batch=8, decay=0.6),
    "export": Recipe(export),
    "unpack": Recipe(unpack),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=RECIPES)
    parser.add_argument("--steps", type=int, help="steps of this stage in all, or videos to encode")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--batch", type=int, help="videos of a transformer step")
    parser.add_argument("--decay", type=float, help="part of the steps in which the learning rate falls to zero")
    parser.add_argument("--folder", type=Path, default=Path("runs/shapes"))
    parser.add_argument(
        "--out", type=Path, default=parts.FOLDER, help="the pipeline that export writes and unpack reads"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile the transformer's blocks; needs a C++ compiler")
    parser.add_argument("--log-every", type=int, default=50)
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.stage]
    for name in ("steps", "lr", "batch", "decay"):
        if getattr(arguments, name) is None:
            setattr(arguments, name, getattr(recipe, name))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    recipe.function(arguments)


if __name__ == "__main__":
    main()
