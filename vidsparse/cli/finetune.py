"""`vidsparse finetune`: a LoRA for longer videos, trained with sparse attention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Exit, Option

from vidsparse.cli.clip_options import note_clips
from vidsparse.cli.files import check_folder
from vidsparse.cli.finetune_gate import RATE, check_gate_options, gate_pattern, run_gate_training
from vidsparse.cli.finetune_model import trained_model
from vidsparse.cli.finetune_options import Finetuning
from vidsparse.cli.finetune_plan import DRY_RUN_HELP, print_finetuning
from vidsparse.cli.finetune_progress import training_progress
from vidsparse.cli.messages import is_first, live_console, note, say

if TYPE_CHECKING:
    from vidsparse.finetune import Bucket, Clip
    from vidsparse.generation.models import Model


def finetune(request: Finetuning, *, dry_run: Annotated[bool, Option("--dry-run", help=DRY_RUN_HELP)] = False) -> None:
    """Train a LoRA for longer videos with sparse attention, or with --train-gate a gate that chooses tiles.

    The same command resumes a training that was stopped.
    """
    import torch

    from vidsparse.finetune import (
        Settings,
        check_device,
        check_launch,
        check_pipeline,
        finetune,
        hold_out,
        quantization_of,
        training_device,
    )
    from vidsparse.finetune.data.captions import read_entries
    from vidsparse.finetune.families import task_for
    from vidsparse.finetune.process.accelerator import use_own_gpu
    from vidsparse.generation.allocator import keep_freed_memory
    from vidsparse.generation.pipeline import load_pipeline
    from vidsparse.patterns.names import build_correction

    check_folder(request.out)
    check_launch()
    if request.train_gate:
        check_gate_options(request, dry_run)
    given = {f.name: getattr(request, f.name) for f in fields(request)}
    model = trained_model(request.model, request.from_image)
    steps = request.inference_steps or model.default("num_inference_steps")
    if given["learning_rate"] is None:
        given["learning_rate"] = RATE if request.train_gate else Settings.learning_rate
    settings = Settings(
        **{f.name: given[f.name] for f in fields(Settings) if f.name in given}
        | {
            "pattern": gate_pattern(request) if request.train_gate else request.build_pattern(steps),
            "correction": build_correction(request.correction),
            "targets": None if request.targets is None else layers(request.targets),
            "exclude": layers(request.exclude),
            "sample_prompts": tuple(request.sample_prompts or ()),
            "inference_steps": steps,
            "trained_frames": request.trained_frames or model.default("num_frames"),
        }
    ).on(training_device(request.cpu))
    check_device(settings, request.cpu, planned=dry_run)
    request.cutting()
    buckets = request.buckets(model)
    for option, folder in (("data", request.data), ("validation-data", request.validation_data)):
        if folder in ("shapes", None):
            continue
        if not Path(str(folder)).is_dir():
            raise FileNotFoundError(
                f"--{option}: no folder {folder}; give one with videos and their captions"
                + (", or 'shapes'" if option == "data" else "")
            )
        read_entries(Path(str(folder)), request.caption_lines)  # captions are refused before the model is loaded
    if dry_run:
        clips, _ = hold_out(_clips(request, request.data, buckets, model, None), request.validation_share)
        print_finetuning(model, settings, clips, getattr(torch, _dtype(request, model)), _gpu(request))
        return
    if training_device(request.cpu).type == "cpu":
        keep_freed_memory()
    main = is_first()
    dtype = _dtype(request, model)
    if request.train_gate:
        with _stop_is_said():
            run_gate_training(
                request,
                model,
                settings,
                buckets,
                dtype,
                lambda progress: _clips(
                    request,
                    request.data,
                    buckets,
                    model,
                    request.cache or request.out / "cache",
                    lambda done, total: progress("reading videos", done, total, None),
                ),
            )
        return
    quantization = quantization_of(settings.base, model.transformers, settings.half or getattr(torch, dtype))
    if not request.cpu:
        use_own_gpu()
    with live_console().status(f"loading {request.model}"):
        pipe = load_pipeline(model, device="cpu", dtype=dtype, quantization=quantization)
    check_pipeline(pipe, settings, buckets)
    pipe.vae.float()  # in less precision its latents may not be finite
    with _stop_is_said(), training_progress(main, request.log_every) as progress:
        cache = request.cache or request.out / "cache"

        def reading(done: int, total: int) -> None:
            progress("reading videos", done, total, None)

        clips = _clips(request, request.data, buckets, model, cache, reading)
        others = []
        if request.validation_data is not None:
            others = _clips(request, str(request.validation_data), buckets, model, cache, reading)
        longest = max(clips, key=lambda clip: (clip.bucket.frames, clip.bucket.height)).bucket
        made = {"num_frames": task_for(pipe).asked(longest.frames)}
        sampled = {**made, "height": longest.height, "width": longest.width}
        folder = finetune(
            pipe,
            clips,
            settings,
            request.out,
            base=request.model,
            sampling={**model.sampling, **sampled},
            fps=_rate(request, model, clips),
            cache=cache,
            validation_share=request.validation_share,
            validation_clips=others,
            cpu=request.cpu,
            keep_parts=False,
            say=note,
            progress=progress,
        )
    if main:
        print(f"wrote the LoRA to {folder}; vidsparse generate --lora {folder} uses it")


@contextmanager
def _stop_is_said() -> Iterator[None]:
    """Within the context, a training that a signal stops ends the command with a message."""
    from vidsparse.finetune import Stopped

    try:
        yield
    except Stopped as stopped:
        begins = "no step is saved, and the same command begins again"
        goes_on = f"step {stopped.step} is saved, and the same command goes on from there"
        say(f"stopped; {begins if stopped.step is None else goes_on}")
        raise Exit(128 + stopped.signal) from None


def _clips(
    request: Finetuning,
    data: str,
    buckets: list[Bucket],
    model: Model,
    cache: Path | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Clip]:
    """The videos of a folder, or drawn ones, with a note for each file that is not used."""
    from vidsparse.finetune import drawn_clips

    if data == "shapes":
        each = -(-request.videos // len(buckets))
        drawn = (drawn_clips(each, bucket, request.seed + i) for i, bucket in enumerate(buckets))
        return [clip for clips in drawn for clip in clips]
    clips, skipped = request.read_folder(Path(data), buckets, model, cache, progress)
    note_clips(clips, skipped)
    return clips


def layers(text: str) -> tuple[str, ...] | str:
    """Endings of names, divided by commas, or one regular expression, which has signs that no name has."""
    if text == "all-linear" or set(text) & set("*+?[](){}|^$\\"):
        return text
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _rate(request: Finetuning, model: Model, clips: Sequence[Clip]) -> float:
    """Frames a second of what is trained: with --fps 0 those of most of the files."""
    if request.data == "shapes":
        return model.fps
    stored = Counter(clip.fps for clip in clips if clip.fps is not None).most_common(1)
    return request.rate(model) or (stored[0][0] if stored else model.fps)


def _dtype(request: Finetuning, model: Model) -> str:
    """The dtype that the weights of the base model are stored in."""
    import torch

    on_gpu = torch.cuda.is_available() and not request.cpu
    return "bfloat16" if on_gpu and not model.small and request.precision != "no" else "float32"


def _gpu(request: Finetuning) -> str | None:
    """The name of the GPU that would train."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() and not request.cpu else None
