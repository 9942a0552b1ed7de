"""What benchmarks of `shapes` examine: options that say which model and which attention, and what they stand for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import vidsparse
from vidsparse.generation.allocator import keep_freed_memory
from vidsparse.generation.frames import geometry
from vidsparse.generation.models import DEFAULT, find_model
from vidsparse.generation.pipeline import first_recipe, load_pipeline
from vidsparse.generation.positions import KINDS
from vidsparse.generation.scheduler import SAMPLERS
from vidsparse.patterns.names import NONE, build_correction, build_pattern, correction_classes
from vidsparse.presets import preset
from vidsparse.shapes.scene import Scene, held_out_scenes

RESULTS = Path(__file__).parent / "results"


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT, help=f"{DEFAULT!r}, or the folder of a pipeline like it")


def sampling_of(model: str) -> dict[str, Any]:
    """How a model is sampled; a folder like the default."""
    return dict(find_model(model).sampling or find_model(DEFAULT).sampling)


def size_of(model: str) -> dict[str, int]:
    """Height and width of its videos."""
    return {name: sampling_of(model)[name] for name in ("height", "width")}


def grid_of(model: str, frames: int) -> vidsparse.VideoGrid:
    """Its tokens of so many frames."""
    return geometry(model).grid(frames, **size_of(model))


def prompts_of(count: int) -> list[Scene]:
    """So many of the 64 held-out prompts, evenly spaced."""
    return held_out_scenes()[:: max(1, 64 // count)][:count]


def results_of(model: str) -> Path:
    """The folder of its results."""
    folder = RESULTS / Path(model).name
    folder.mkdir(exist_ok=True)
    return folder


def add_model_options(parser: argparse.ArgumentParser, dtype: str = "float32") -> None:
    parser.add_argument("--lora", help="a name, folder or file")
    parser.add_argument("--positions", choices=KINDS, default="plain", help="without a LoRA, which knows its own")
    parser.add_argument("--sampler", choices=SAMPLERS, help="default: the LoRA's, else the model's own")
    parser.add_argument("--flow-shift", type=float, help="default: the LoRA's, else the model's own")
    parser.add_argument("--frames", type=int, default=33)
    add_model(parser)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default=dtype)


def load_model(arguments: argparse.Namespace) -> tuple[Any, vidsparse.LoraRecipe]:
    """The pipeline, and what its LoRA was trained with."""
    loras = [arguments.lora] if arguments.lora else []
    recipe = first_recipe(loras)
    if loras:
        arguments.positions = recipe.positions or "plain"
    keep_freed_memory()
    pipe = load_pipeline(
        find_model(arguments.model),
        loras=loras,
        dtype=arguments.dtype,
        device="cpu",
        sampler=arguments.sampler,
        flow_shift=arguments.flow_shift,
        positions=None if loras else arguments.positions,
        frames=arguments.frames,
        trained_frames=None if loras else sampling_of(arguments.model)["num_frames"],
    )
    return pipe, recipe


def add_attention_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", help="a name of `vidsparse presets`; `shapes` is the default of that model")
    parser.add_argument("--pattern", help="a name of `vidsparse patterns` (default: the LoRA's, else dense)")
    parser.add_argument("--density", type=float)
    parser.add_argument("--set", action="append", help="a field of the pattern, such as threshold=0.2")
    parser.add_argument("--dense-steps", type=int, default=4, help="of a sparse pattern that is named here")
    parser.add_argument("--correction", choices=[NONE, *correction_classes()], help="default: the LoRA's, else none")


def build_attention(
    arguments: argparse.Namespace, recipe: vidsparse.LoraRecipe
) -> tuple[vidsparse.Pattern, vidsparse.Correction | None]:
    if arguments.preset is not None:
        others = "pattern", "density", "set", "correction"
        if given := [f"--{name}" for name in others if getattr(arguments, name) is not None]:
            raise SystemExit(f"--preset has a pattern and correction of its own: leave out {', '.join(given)}")
        chosen = preset(arguments.preset)
        return chosen.pattern, chosen.correction
    correction = recipe.correction if arguments.correction is None else build_correction(arguments.correction)
    if arguments.pattern is None:
        return recipe.pattern or vidsparse.Dense(), correction
    pattern = build_pattern(arguments.pattern, arguments.density, arguments.set)
    if not isinstance(pattern, vidsparse.Dense):
        pattern = vidsparse.StepSchedule(pattern, dense_steps=arguments.dense_steps)
    return pattern, correction


def name_of(arguments: argparse.Namespace) -> str:
    """What the file of its results is called."""
    parts: list[Any] = [arguments.preset or arguments.pattern, arguments.density, arguments.correction]
    if arguments.lora:
        parts.insert(0, Path(arguments.lora).name)
    else:
        parts[0] = parts[0] or "dense"
        parts.append(None if arguments.positions == "plain" else arguments.positions)
    parts += [arguments.sampler, arguments.flow_shift]
    return "_".join(str(part) for part in [*parts, arguments.frames] if part is not None)
