"""The trained weights as a pipeline, and as the folder that ships with the package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import torch
from latents import Statistics
from transformer import Weights, build

from vidsparse.generation.frames import pipeline_geometry
from vidsparse.patterns import Pattern, StepSchedule
from vidsparse.profiles import Profile
from vidsparse.runtime.model_settings import settings_of
from vidsparse.serialize import to_data
from vidsparse.shapes.model import build_vae, load_pipeline
from vidsparse.shapes.shipped import DEFAULT, FOLDER, SAMPLING

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan, WanPipeline

INDEX = "model_index.json"
KEPT = ("text_encoder", "tokenizer")  # of it: they stay as they are


def assemble(
    vae: AutoencoderKLWan, experts: tuple[Weights, Weights], boundary: float, statistics: Statistics, shift: float = 6.0
) -> WanPipeline:
    """A pipeline of two experts, in float32 on the CPU: the first has the noise levels from `boundary` on."""
    from diffusers import UniPCMultistepScheduler, WanPipeline

    for weights in experts:
        if weights.patch > 1 and not weights.plain:
            raise ValueError(f"{weights.phase} counts positions in latents, which no file of a pipeline can say")
    begun = load_pipeline()
    new = build_vae(list(statistics.mean), list(statistics.std)).eval()
    new.load_state_dict(vae.state_dict())
    high, low = (build(weights, weights.patch, "cpu", weights.plain)[0] for weights in experts)
    return WanPipeline(
        tokenizer=begun.tokenizer,
        text_encoder=begun.text_encoder,
        vae=new,
        scheduler=UniPCMultistepScheduler.from_config(begun.scheduler.config, flow_shift=shift),
        transformer=high,
        transformer_2=low,
        boundary_ratio=boundary,
    )


def profile_of(pipe: WanPipeline, pattern: Pattern, boundary: float) -> Profile:
    """The profile of the model with the pattern that its second expert was trained with; the first stays dense."""
    size = SAMPLING["num_frames"], SAMPLING["height"], SAMPLING["width"]
    return Profile(
        model=DEFAULT,
        transformer=type(pipe.transformer).__name__,
        config=settings_of(pipe.transformer_2),
        frames=size[0],
        height=size[1],
        width=size[2],
        steps=SAMPLING["num_inference_steps"],
        grid=pipeline_geometry(pipe).grid(*size).view,
        pattern=to_data(StepSchedule(pattern, sigmas=(0.0, boundary))),
        found={"command": "python examples/shapes_training pattern"},
    )


def export(pipe: WanPipeline, folder: Path, profile: Profile | None = None) -> None:
    """Write a pipeline as a folder, in float16, whole or not at all; what is there is replaced.

    If it is killed between the two renames, the folder is missing: `git checkout -- FOLDER` brings back the one that
    was committed, and what was written is beside it, with a dot before its name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    new, old = (folder.with_name(f".{folder.name}-{uuid4().hex[:8]}.{end}") for end in ("new", "old"))
    try:
        pipe.to(torch.float16).save_pretrained(new)
        for part in KEPT:  # the very bytes, whichever versions write here
            shutil.rmtree(new / part)
            shutil.copytree(FOLDER / part, new / part)
        index, begun = (json.loads((path / INDEX).read_text()) for path in (new, FOLDER))
        (new / INDEX).write_text(json.dumps(index | {part: begun[part] for part in KEPT}, indent=2) + "\n")
        if profile is not None:
            profile.save(new)
        for path in new.rglob("*.safetensors"):
            path.chmod(0o644)  # safetensors lets nobody but the owner read
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        if old.exists() and not folder.exists():  # it was stopped between the two
            old.rename(folder)
        for rest in (new, old):
            shutil.rmtree(rest, ignore_errors=True)
