"""Loads a diffusers pipeline with LoRAs, positions, scheduler and gates, on its device."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from vidsparse.generation.dtypes import dtype_name
from vidsparse.generation.frames import pipeline_geometry
from vidsparse.generation.models import Model, source_of
from vidsparse.generation.positions import KINDS, extend_positions
from vidsparse.generation.scheduler import build_scheduler, check_sampler
from vidsparse.lora.asked import AskedLora
from vidsparse.lora.files import read_recipe
from vidsparse.lora.load import chosen_transformer, load_lora, warn
from vidsparse.lora.recipe import LoraRecipe
from vidsparse.lora.source import find_lora
from vidsparse.runtime.gates import GATE, has_gates, load_gates
from vidsparse.runtime.pipeline import transformers_of
from vidsparse.runtime.registry import adapter_for


def load_pipeline(
    model: Model,
    *,
    loras: Sequence[str] = (),
    dtype: str | None = None,
    device: str | None = None,
    offload: bool = False,
    sampler: str | None = None,
    flow_shift: float | None = None,
    positions: str | None = None,
    frames: int | None = None,
    trained_frames: int | None = None,
    quantization: Any = None,
    note: Callable[[str], None] = warn,
) -> Any:
    """Load a pipeline, ready to be called, with its progress bar off.

    Args:
        model: from `find_model`.
        loras: each as `AskedLora.parse` reads it, all active; the first decides positions and scheduler.
        dtype: a name that `dtype_name` knows, such as "bf16"; by default float32 on a CPU, else bfloat16.
        device: such as "cpu" or "cuda:1"; by default a GPU if there is one.
        offload: keep on the GPU only what computes.
        sampler, flow_shift: see `build_scheduler`; by default those of the LoRA, else of the model.
        positions: see `extend_positions`; by default those of the LoRA, else of the model. They depend on `frames`,
            the length of the videos, and `trained_frames`, that which the model knows; both default to the LoRA's,
            else the model's own.
        quantization: a `PipelineQuantizationConfig` of diffusers, or None.
        note: called with a line where parts of a LoRA have no place in the model.

    Raises:
        ValueError: an unknown device, dtype, sampler or kind of positions, or a LoRA that leaves open which of two
            transformers it is for, before anything is loaded; a LoRA of another model.
        NotImplementedError: a model whose scheduler does not take the sampler or the shift.
        OSError: the files of model or LoRA are missing or cannot be read.
    """
    check_sampler(sampler, flow_shift)
    if positions not in (None, *KINDS):
        raise ValueError(f"positions {positions!r} is unknown; choose one of {', '.join(KINDS)}")
    device = check_device(device)
    if offload and device == "cpu":
        raise ValueError("offloading moves idle models from a GPU to the CPU, but the device is the CPU; leave it out")
    dtype = dtype_name(dtype or default_dtype(device))
    if loras:
        check_loras(loras, model.transformers)
    pipe = model.load(getattr(torch, dtype), quantization)
    _load_gates(pipe, model)
    scheduler, recipe = pipe.scheduler, first_recipe(loras)
    load_loras(pipe, loras, note)
    if positions is not None:
        own = model.default("num_frames")
        lengths = frames or recipe.frames or own, trained_frames or recipe.trained_frames or own
        _extend_positions(pipe, *lengths, positions)
    pipe.scheduler = build_scheduler(scheduler, sampler or recipe.sampler, flow_shift or recipe.flow_shift)
    pipe.set_progress_bar_config(disable=True)
    if offload:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
    return pipe


def check_loras(loras: Sequence[str], transformers: Sequence[str]) -> None:
    """Refuse LoRAs that are asked for twice, or that leave open which of several transformers they are for.

    Raises:
        ValueError: so it is.
        OSError: no such LoRA.
    """
    asked = [AskedLora.parse(lora) for lora in loras]
    for i, lora in enumerate(asked):
        if any((lora.source, lora.transformer) == (other.source, other.transformer) for other in asked[:i]):
            raise ValueError(f"the LoRA {lora.source} is given twice; give it once, with a strength: {lora.source}:2")
        chosen_transformer(find_lora(lora.source), transformers, lora.transformer)


def load_loras(pipe: Any, loras: Sequence[str], note: Callable[[str], None] = warn) -> None:
    """Load LoRAs side by side, all active, each as `AskedLora.parse` reads it. Raises: see `vidsparse.load_lora`."""
    # The first is loaded last: where several change positions it decides, as it does for the attention.
    for i, lora in reversed(list(enumerate(map(AskedLora.parse, loras)))):
        load_lora(pipe, lora.source, f"lora_{i}", transformer=lora.transformer, strength=lora.strength, note=note)


def first_recipe(loras: Sequence[str]) -> LoraRecipe:
    """The recipe of the first LoRA that has one; an empty recipe otherwise. Raises: see `vidsparse.load_lora`."""
    return LoraRecipe.first_known(read_recipe(AskedLora.parse(lora).source) for lora in loras)


def check_device(name: str | None) -> str:
    """The device of a name; without one, a GPU if there is one, else the CPU.

    Raises:
        ValueError: the device is not available.
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError):  # torch raises any of them
        raise ValueError(f"device {name!r} is not available; try cpu or cuda, or leave it out") from None
    return name


def default_dtype(device: str) -> str:
    """The dtype of a pipeline on a device unless told otherwise."""
    return "float32" if device == "cpu" else "bfloat16"


def fit_arguments(pipe: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments for `pipe(...)` with a number of frames that its VAE produces, and no text beyond its tokenizer's."""
    accepted, fitting = inspect.signature(pipe.__call__).parameters, dict(arguments)
    if arguments.get("num_frames"):
        fitting["num_frames"], _ = pipeline_geometry(pipe).frames(arguments["num_frames"])
    # A tokenizer with room for few words: padding the text further would only cost time.
    longest = getattr(getattr(pipe, "tokenizer", None), "model_max_length", sys.maxsize)
    if "max_sequence_length" in accepted and longest < accepted["max_sequence_length"].default:
        fitting["max_sequence_length"] = longest
    return fitting


def is_gated(pipe: Any) -> bool:
    """Whether the pipeline has the gates that `GatedCoarse` needs."""
    return any(
        hasattr(attention, GATE)
        for transformer in transformers_of(pipe).values()
        for attention in adapter_for(transformer).self_attentions(transformer).values()
    )


def _load_gates(pipe: Any, model: Model) -> None:
    """Give the transformers the gates of a checkpoint trained with them, which diffusers drops."""
    for name, transformer in transformers_of(pipe).items():
        if has_gates(transformer, source_of(model.name), name):
            load_gates(transformer, source_of(model.name), name)


def _extend_positions(pipe: Any, frames: int | None, trained_frames: int | None, kind: str) -> None:
    if frames is None or trained_frames is None:
        raise ValueError(f"positions {kind!r}: {type(pipe).__name__} has no default number of frames; give both")
    known = pipeline_geometry(pipe)
    (_, latents), (_, trained_latents) = known.frames(frames), known.frames(trained_frames)
    for transformer in transformers_of(pipe).values():
        extend_positions(transformer, latents, trained_latents, kind)
