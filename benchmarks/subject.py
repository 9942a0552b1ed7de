"""What benchmarks of `shapes` examine: options that say which model and which attention, and what they stand for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import vidsparse
from vidsparse.cli.patterns import CORRECTIONS, build_correction, build_pattern
from vidsparse.generation.positions import KINDS
from vidsparse.generation.scheduler import KINDS as SAMPLERS
from vidsparse.shapes import model


def add_model_options(parser: argparse.ArgumentParser, dtype: str = "float32") -> None:
    parser.add_argument("--lora", help="a name, folder or file")
    parser.add_argument("--positions", choices=KINDS, default="plain", help="without a LoRA, which knows its own")
    parser.add_argument("--sampler", choices=SAMPLERS, help="default: the LoRA's, else the model's own")
    parser.add_argument("--flow-shift", type=float, help="default: the LoRA's, else the model's own")
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--model", type=Path, default=model.FOLDER)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default=dtype)


def load_model(arguments: argparse.Namespace) -> tuple[Any, vidsparse.LoraRecipe]:
    """The pipeline, and what its LoRA was trained with."""
    pipe = model.load_pipeline(getattr(torch, arguments.dtype), arguments.model)
    pipe.set_progress_bar_config(disable=True)
    scheduler, recipe = pipe.scheduler, vidsparse.LoraRecipe()
    if arguments.lora:
        recipe = vidsparse.load_lora(pipe, arguments.lora)
        arguments.positions = recipe.positions or "plain"
    else:
        frames, trained_frames = ((count - 1) // 4 + 1 for count in (arguments.frames, model.SAMPLING["num_frames"]))
        vidsparse.extend_positions(pipe.transformer, frames, trained_frames, arguments.positions)
    sampler, shift = arguments.sampler or recipe.sampler, arguments.flow_shift or recipe.flow_shift
    pipe.scheduler = vidsparse.build_scheduler(scheduler, sampler, shift)
    return pipe, recipe


def add_attention_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pattern", help="a name of `vidsparse patterns` (default: the LoRA's, else dense)")
    parser.add_argument("--density", type=float)
    parser.add_argument("--set", action="append", help="a field of the pattern, such as threshold=0.2")
    parser.add_argument("--dense-steps", type=int, default=4, help="of a sparse pattern that is named here")
    parser.add_argument("--correction", choices=list(CORRECTIONS), help="default: the LoRA's, else none")


def build_attention(
    arguments: argparse.Namespace, recipe: vidsparse.LoraRecipe
) -> tuple[vidsparse.Pattern, vidsparse.Correction | None]:
    correction = recipe.correction if arguments.correction is None else build_correction(arguments.correction)
    if arguments.pattern is None:
        return recipe.pattern or vidsparse.Dense(), correction
    pattern = build_pattern(arguments.pattern, arguments.density, arguments.set)
    if not isinstance(pattern, vidsparse.Dense):
        pattern = vidsparse.StepSchedule(pattern, dense_steps=arguments.dense_steps)
    return pattern, correction


def name_of(arguments: argparse.Namespace) -> str:
    """What the file of its results is called."""
    parts: list[Any] = [arguments.pattern, arguments.density, arguments.correction]
    if arguments.lora:
        parts.insert(0, Path(arguments.lora).name)
    else:
        parts[0] = parts[0] or "dense"
        parts.append(None if arguments.positions == "plain" else arguments.positions)
    parts += [arguments.sampler, arguments.flow_shift]
    return "_".join(str(part) for part in [*parts, arguments.frames] if part is not None)
