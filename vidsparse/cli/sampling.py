"""Loads the pipeline that a request names and samples it under a pattern, with a progress bar and clocks."""

from __future__ import annotations

import inspect
import math
import re
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidsparse.cli.messages import live_console, note
from vidsparse.generation.scheduler import build_scheduler, check_sampler, seed_steps

if TYPE_CHECKING:
    import torch

    from vidsparse import Pattern, Report
    from vidsparse.cli.request import Request
    from vidsparse.cli.video import Frames
    from vidsparse.shapes.scene import Scene

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Sample:
    """A sampled video and what it took, in seconds: all, until the last denoising step, in attention layers."""

    frames: Frames
    report: Report
    seconds: float
    denoising_seconds: float


def load_pipeline(request: Request) -> Any:
    """The diffusers pipeline of a request, with its LoRA, on its device.

    Raises:
        ValueError: no such model, device, dtype or sampler, before anything is loaded; a LoRA of another model.
        NotImplementedError: a model whose scheduler does not take the sampler or the shift.
        OSError: the model's files are missing or cannot be read.
    """
    local = Path(request.model).is_dir()
    if request.model != "shapes":
        if local and not (Path(request.model) / "model_index.json").is_file():
            raise ValueError(f"model {request.model!r} is no diffusers pipeline: the folder has no model_index.json")
        if not local and not re.fullmatch(r"[\w.-]+/[\w.-]+", request.model):
            raise ValueError(
                f"model {request.model!r} is unknown; give 'shapes', the folder of a diffusers pipeline, or a Hub id "
                "such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
            )
    check_sampler(request.sampler, request.flow_shift)
    import torch

    from vidsparse.generation.positions import KINDS

    if request.positions not in (None, *KINDS):
        raise ValueError(f"positions {request.positions!r} is unknown; choose one of {', '.join(KINDS)}")

    device = _device(request.device)
    if request.offload and device == "cpu":
        raise ValueError("--offload moves what rests from a GPU to the CPU, but the device is the CPU; leave it out")
    name = request.dtype or ("float32" if device == "cpu" else "bfloat16")
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is unknown; choose one of {', '.join(DTYPES)}")
    dtype = getattr(torch, name)
    with live_console().status(f"loading {request.model}"):
        pipe = _load(request.model, dtype)
        scheduler, recipe = pipe.scheduler, request.recipe
        load_loras(pipe, list(request.loras))
        if request.positions is not None:
            _extend_positions(pipe, request, request.positions)
        sampler, shift = request.sampler or recipe.sampler, request.flow_shift or recipe.flow_shift
        pipe.scheduler = build_scheduler(scheduler, sampler, shift)
        pipe.set_progress_bar_config(disable=True)
        if request.offload:
            pipe.enable_model_cpu_offload(device=device)
        else:
            pipe.to(device)
    return pipe


def _load(model: str, dtype: torch.dtype) -> Any:
    if model == "shapes":
        from vidsparse.shapes.model import load_pipeline

        return load_pipeline(dtype)
    from diffusers import DiffusionPipeline

    try:
        return DiffusionPipeline.from_pretrained(model, torch_dtype=dtype)
    except (OSError, ValueError, AttributeError, KeyError) as error:
        # The last two where model_index.json names what this diffusers has not, or nothing.
        raise OSError(f"cannot load model {model!r}: {error}") from error


def load_loras(pipe: Any, sources: list[str]) -> None:
    """Load LoRAs side by side, all active. Raises as `vidsparse.load_lora`."""
    from vidsparse import load_lora

    names = [f"lora_{i}" for i in range(len(sources))]
    # The first comes last: where several change positions it decides, as it does for the attention.
    for source, name in reversed(list(zip(sources, names, strict=True))):
        load_lora(pipe, source, name)
    if names:
        pipe.set_adapters(names)


def _extend_positions(pipe: Any, request: Request, kind: str) -> None:
    """In all transformers of the pipeline, for the frames of the request."""
    from vidsparse import extend_positions
    from vidsparse.shapes.model import SAMPLING

    recipe, stride = request.recipe, getattr(pipe, "vae_scale_factor_temporal", 1)
    accepted = inspect.signature(pipe.__call__).parameters
    if "num_frames" not in accepted:
        raise ValueError(f"--positions {kind}: {type(pipe).__name__} takes no num_frames")
    own = SAMPLING["num_frames"] if request.model == "shapes" else accepted["num_frames"].default
    asked = (request.frames or recipe.frames or own, request.trained_frames or recipe.trained_frames or own)
    frames, trained_frames = ((_nearest(count, stride) - 1) // stride + 1 for count in asked)
    for name in ("transformer", "transformer_2"):
        if getattr(pipe, name, None) is not None:
            extend_positions(getattr(pipe, name), frames, trained_frames, kind)


def _device(name: str | None) -> str:
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f"device {name!r} is not available; try cpu or cuda, or leave it out") from None
    return name


def call_arguments(pipe: Any, request: Request, scene: Scene | None) -> dict[str, Any]:
    """The keyword arguments for `pipe(...)`: what was asked for, else what LoRA and model were made for.

    Raises:
        ValueError: something was asked for that the pipeline does not take.
    """
    accepted = inspect.signature(pipe.__call__).parameters
    recipe = request.recipe
    asked: dict[str, Any] = {
        "height": request.height,
        "width": request.width,
        "num_frames": recipe.frames if request.frames is None else request.frames,
        "num_inference_steps": recipe.inference_steps if request.steps is None else request.steps,
        "guidance_scale": request.guidance,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    arguments = {"prompt": request.prompt, **given}
    if scene:
        from vidsparse.shapes.model import SAMPLING

        arguments = {**SAMPLING, "prompt": scene.caption, **given}
    unknown = [name for name in arguments if name not in accepted]
    if unknown:
        raise ValueError(f"{type(pipe).__name__} takes no {', '.join(unknown)}")
    if "num_frames" in given:
        arguments["num_frames"] = fit_frames(given["num_frames"], getattr(pipe, "vae_scale_factor_temporal", 1))
    # A tokenizer with room for few words: padding the text further would only cost time.
    longest = getattr(getattr(pipe, "tokenizer", None), "model_max_length", sys.maxsize)
    if "max_sequence_length" in accepted and longest < accepted["max_sequence_length"].default:
        arguments["max_sequence_length"] = longest
    return arguments


def fit_frames(frames: int, stride: int) -> int:
    """The nearest number of frames that a VAE of this temporal stride can make, with a note when it is another one."""
    nearest = _nearest(frames, stride)
    if nearest != frames:
        legal = ", ".join(str(n * stride + 1) for n in range(3))
        note(
            f"{frames} frames do not fit the VAE's stride of {stride} in time: legal are {legal}, ...; using {nearest}"
        )
    return nearest


def _nearest(frames: int, stride: int) -> int:
    return (frames - 1 + (stride - 1) // 2) // stride * stride + 1


def sample(pipe: Any, pattern: Pattern, request: Request, arguments: dict[str, Any], label: str) -> Sample:
    """Sample one video under a pattern; the pipeline is restored afterwards, whatever happens."""
    import torch
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    import vidsparse

    accepted = inspect.signature(pipe.__call__).parameters
    steps = arguments.get("num_inference_steps") or accepted["num_inference_steps"].default
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeElapsedColumn(), TimeRemainingColumn())
    description = TextColumn("{task.description}", markup=False)
    with (
        Progress(description, *columns, console=live_console(), transient=True) as progress,
        vidsparse.sparsify(pipe, pattern, correction=request.build_correction(), impl=request.impl) as run,
    ):
        task = progress.add_task(label, total=steps)
        denoised = started = time.perf_counter()

        def stepped(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            nonlocal denoised
            denoised = time.perf_counter()
            progress.update(task, advance=1, description=label if step + 1 < steps else f"{label}: decoding")
            return tensors

        bar = {"callback_on_step_end": stepped} if "callback_on_step_end" in accepted else {}
        generator = torch.Generator().manual_seed(request.seed)
        seed_steps(request.seed)
        frames = pipe(**{"output_type": "np", **arguments}, **bar, generator=generator).frames[0]
        if not math.isfinite(frames.sum()):
            raise ValueError(
                f"the {label} video holds numbers that are not finite; try another --dtype, such as bfloat16 or float32"
            )
        return Sample(frames, run.report(), time.perf_counter() - started, denoised - started)


def judge(frames: Frames, scene: Scene | None) -> dict[str, float] | None:
    """How well a video of `shapes` agrees with its prompt, by attribute and on the mean; None where nobody can say."""
    if scene is None or len(frames) < 2:
        return None
    import torch

    from vidsparse.shapes.judge import score

    found = score(torch.from_numpy(frames).permute(3, 0, 1, 2) * 2 - 1, scene)
    return {**asdict(found), "mean": found.mean}
