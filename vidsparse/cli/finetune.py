"""`vidsparse finetune`: a LoRA for longer videos, trained with sparse attention."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from vidsparse.cli.attention import PATTERN, integers
from vidsparse.cli.clip_options import DATA, FPS_HELP, ClipOptions, note_clips
from vidsparse.cli.files import check_folder
from vidsparse.cli.messages import draws, live_console, note, plain_progress, progress
from vidsparse.cli.options import DENSE_STEPS_HELP, FRAMES, SAMPLER_HELP
from vidsparse.cli.patterns import CORRECTION_HELP, DENSITY_HELP, PATTERN_HELP, SET_HELP
from vidsparse.generation.dtypes import dtype_name

if TYPE_CHECKING:
    from vidsparse import Pattern
    from vidsparse.finetune import Bucket, Clip
    from vidsparse.generation.models import Model

ATTENTION, LEARNING, OUTPUT = "Attention", "Learning", "Output"
OF_MODEL = "of the model"
PRECISIONS = {"no": "no", "float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def read_precision(name: str) -> str:
    """The precision that an option names, in the words of accelerate. Raises: see `dtype_name`."""
    return PRECISIONS.get(name) or PRECISIONS[dtype_name(name)]


@dataclass(frozen=True)
class Finetuning(ClipOptions):
    """What is trained, on what, how. Names that `vidsparse.finetune.Settings` has too go there as they are."""

    out: Annotated[Path, Option("--out", "-o", help="Folder of the LoRA, its checkpoints, log and samples.")]
    model: Annotated[str, Option(help="'shapes', the folder of a Wan pipeline, or a Hub id.")] = "shapes"

    data: Annotated[str, Option(help="'shapes' draws videos; else a folder of videos.", rich_help_panel=DATA)] = (
        "shapes"
    )
    videos: Annotated[int, Option(min=1, help="How many to draw, by the seed.", rich_help_panel=DATA)] = 512
    frames: Annotated[
        list[int] | None,
        Option(*FRAMES, help="Of a video; again for more lengths.", rich_help_panel=DATA, show_default="129 of shapes"),
    ] = None
    size: Annotated[
        list[str] | None,
        Option(help="WIDTHxHEIGHT in pixels; again for more.", rich_help_panel=DATA, show_default=OF_MODEL),
    ] = None
    fps: Annotated[float | None, Option(min=0, help=FPS_HELP, rich_help_panel=DATA, show_default=OF_MODEL)] = None
    cache: Annotated[
        Path | None, Option(help="Folder of encoded videos.", rich_help_panel=DATA, show_default="OUT/cache")
    ] = None

    pattern: Annotated[str, Option(help=PATTERN_HELP, rich_help_panel=ATTENTION)] = PATTERN
    density: Annotated[
        float | None, Option(help=DENSITY_HELP, rich_help_panel=ATTENTION, show_default="of the pattern")
    ] = None
    settings: Annotated[list[str] | None, Option("--set", help=SET_HELP, rich_help_panel=ATTENTION)] = None
    correction: Annotated[str, Option(help=CORRECTION_HELP, rich_help_panel=ATTENTION)] = "none"
    dense_steps: Annotated[
        int | None,
        Option(
            min=0,
            help="Dense steps at the start of the generation that the LoRA is for.",
            rich_help_panel=ATTENTION,
            show_default=DENSE_STEPS_HELP,
        ),
    ] = None
    dense_last_steps: Annotated[int, Option(min=0, help="Dense steps at its end.", rich_help_panel=ATTENTION)] = 0
    dense_layers: Annotated[
        str, Option(help="Layers that stay dense, such as 0,1.", rich_help_panel=ATTENTION, show_default="none")
    ] = ""
    inference_steps: Annotated[
        int | None,
        Option(
            min=1,
            help="Denoising steps of the generation that the LoRA is for.",
            rich_help_panel=ATTENTION,
            show_default=OF_MODEL,
        ),
    ] = None
    sampler: Annotated[str | None, Option(help=SAMPLER_HELP, rich_help_panel=ATTENTION, show_default="own")] = None
    flow_shift: Annotated[
        float | None,
        Option(help="Of the noise levels, here and in a generation.", rich_help_panel=ATTENTION, show_default=OF_MODEL),
    ] = None
    positions: Annotated[str, Option(help="In longer videos: plain, riflex or yarn.", rich_help_panel=ATTENTION)] = (
        "plain"
    )
    trained_frames: Annotated[
        int | None,
        Option(min=1, help="Frames that the model knows.", rich_help_panel=ATTENTION, show_default=OF_MODEL),
    ] = None

    steps: Annotated[int, Option(rich_help_panel=LEARNING)] = 1000
    batch: Annotated[int, Option(help="Videos of a step, in each process.", rich_help_panel=LEARNING)] = 1
    learning_rate: Annotated[float, Option("--lr", help="Learning rate.", rich_help_panel=LEARNING)] = 1e-4
    warmup: Annotated[int, Option(help="Steps in which it rises.", rich_help_panel=LEARNING)] = 20
    decay: Annotated[
        float, Option(help="Part of the steps, at the end, in which it falls to 0.", rich_help_panel=LEARNING)
    ] = 0.0
    rank: Annotated[int, Option(help="Of the LoRA.", rich_help_panel=LEARNING)] = 128
    alpha: Annotated[float | None, Option(rich_help_panel=LEARNING, show_default="the rank")] = None
    targets: Annotated[str, Option(help="Layers that it changes.", rich_help_panel=LEARNING)] = (
        "to_q,to_k,to_v,to_out.0"
    )
    # Not --start: torchrun would take it for an abbreviation of one of its options.
    start: Annotated[
        str | None, Option("--start-from", help="A LoRA to begin with.", rich_help_panel=LEARNING, show_default="none")
    ] = None
    transformer: Annotated[str, Option(help="Or transformer_2, of low noise.", rich_help_panel=LEARNING)] = (
        "transformer"
    )
    ema: Annotated[float | None, Option(help="Save a running average of this decay.", rich_help_panel=LEARNING)] = None
    caption_dropout: Annotated[float, Option(help="Part without caption.", rich_help_panel=LEARNING)] = 0.1
    precision: Annotated[
        str, Option(help="bf16, fp16 or no (float32).", callback=read_precision, rich_help_panel=LEARNING)
    ] = "bf16"
    gradient_checkpointing: Annotated[
        bool, Option(help="Less memory, a third more time.", rich_help_panel=LEARNING)
    ] = True
    seed: Annotated[int, Option(help="Of start, order and noise.", rich_help_panel=LEARNING)] = 0
    cpu: Annotated[bool, Option("--cpu", help="Also where there is a GPU.", rich_help_panel=LEARNING)] = False

    log_every: Annotated[int, Option(rich_help_panel=OUTPUT)] = 10
    save_every: Annotated[int, Option(rich_help_panel=OUTPUT)] = 100
    sample_every: Annotated[int, Option(help="0: no sample videos.", rich_help_panel=OUTPUT)] = 0
    sample_prompts: Annotated[
        list[str] | None, Option("--sample-prompt", help="Again for more videos.", rich_help_panel=OUTPUT)
    ] = None

    def build_pattern(self, inference_steps: int) -> Pattern:
        """The pattern, in its schedule for generations of so many steps."""
        from vidsparse import StepSchedule
        from vidsparse.generation.dense_steps import default_dense_steps
        from vidsparse.patterns.names import build_pattern

        pattern = build_pattern(self.pattern, self.density, self.settings)
        layers = integers("--dense-layers", self.dense_layers)
        first = default_dense_steps(inference_steps) if self.dense_steps is None else self.dense_steps
        if self.pattern == "dense" or not (first or self.dense_last_steps or layers):
            return pattern
        return StepSchedule(pattern, first, self.dense_last_steps, layers)


def finetune(request: Finetuning) -> None:
    """Train a LoRA for longer videos with sparse attention. The same command resumes a training that was stopped."""
    from vidsparse.finetune import Settings, check_pipeline, finetune
    from vidsparse.finetune.data.captions import read_entries
    from vidsparse.generation.models import find_model
    from vidsparse.generation.pipeline import load_pipeline
    from vidsparse.patterns.names import build_correction

    check_folder(request.out)
    given = {f.name: getattr(request, f.name) for f in fields(request)}
    model = find_model(request.model)
    steps = request.inference_steps or model.default("num_inference_steps")
    settings = Settings(
        **{f.name: given[f.name] for f in fields(Settings) if f.name in given}
        | {
            "pattern": request.build_pattern(steps),
            "correction": build_correction(request.correction),
            "targets": tuple(name.strip() for name in request.targets.split(",") if name.strip()),
            "sample_prompts": tuple(request.sample_prompts or ()),
            "inference_steps": steps,
            "trained_frames": request.trained_frames or model.default("num_frames"),
        }
    )
    request.cutting()
    buckets = buckets_of(model, request.frames, request.size)
    if request.data != "shapes" and not Path(request.data).is_dir():
        raise FileNotFoundError(f"no folder {request.data}; give one with videos and their captions, or 'shapes'")
    if request.data != "shapes":
        read_entries(Path(request.data), request.caption_lines)  # captions are refused before the model is loaded
    main = _is_main()
    with live_console().status(f"loading {request.model}"):
        pipe = load_pipeline(model, device="cpu", dtype=_dtype(request, model))
    check_pipeline(pipe, settings, buckets)
    pipe.vae.float()  # in less precision its latents may not be finite
    with _bars(main) as progress:
        clips = _clips(request, buckets, model, lambda done, total: progress("reading videos", done, total, None))
        longest = max(clips, key=lambda clip: (clip.bucket.frames, clip.bucket.height)).bucket
        sampled = {"num_frames": longest.frames, "height": longest.height, "width": longest.width}
        folder = finetune(
            pipe,
            clips,
            settings,
            request.out,
            base=request.model,
            sampling={**model.sampling, **sampled, "num_inference_steps": settings.inference_steps},
            fps=model.fps,
            cache=request.cache,
            cpu=request.cpu,
            say=note,
            progress=progress,
        )
    if main:
        print(f"wrote the LoRA to {folder}; vidsparse generate --lora {folder} uses it")


def _clips(
    request: Finetuning, buckets: list[Bucket], model: Model, progress: Callable[[int, int], None]
) -> list[Clip]:
    """The videos to learn from, with a note for each file that is not used."""
    from vidsparse.finetune import drawn_clips

    if request.data == "shapes":
        each = -(-request.videos // len(buckets))
        return [clip for i, bucket in enumerate(buckets) for clip in drawn_clips(each, bucket, request.seed + i)]
    cache = request.cache or request.out / "cache"
    clips, skipped = request.read_folder(Path(request.data), buckets, request.fps, model, cache, progress)
    note_clips(clips, skipped)
    return clips


def _is_main() -> bool:
    """Whether this process is the first of those that a launcher has started."""
    return os.environ.get("RANK", "0") == "0"


def buckets_of(model: Model, frames: list[int] | None, sizes: list[str] | None) -> list[Bucket]:
    """Every length in every size; what is not given is the model's.

    Raises:
        ValueError: a size that is none.
    """
    from vidsparse.finetune import Bucket

    own_size = model.default("height"), model.default("width")
    every = [height_and_width(text) for text in sizes or []] or [own_size]
    counts = frames or [model.longer_frames or model.default("num_frames")]
    return [Bucket(count, *size) for count in counts for size in every]


def height_and_width(text: str) -> tuple[int, int]:
    """The height and the width of an option such as "832x480".

    Raises:
        ValueError: something else.
    """
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None:
        raise ValueError(f"--size {text!r} must be WIDTHxHEIGHT in pixels, such as 832x480")
    return int(found[2]), int(found[1])


def _dtype(request: Finetuning, model: Model) -> str:
    """The dtype that the weights of the base model are stored in."""
    import torch

    on_gpu = torch.cuda.is_available() and not request.cpu
    return "bfloat16" if on_gpu and not model.small and request.precision != "no" else "float32"


@contextmanager
def _bars(main: bool) -> Iterator[Callable[[str, int, int, float | None], None]]:
    """A progress bar for each task, or lines where stderr is not a terminal; only one process draws."""
    if not draws():
        lines = plain_progress()
        yield lambda task, done, total, loss: lines(task, done, total, _loss(loss))
        return
    tasks: dict[str, Any] = {}
    with progress("{task.fields[loss]}", disable=not main) as bars:

        def show(task: str, done: int, total: int, loss: float | None) -> None:
            if task not in tasks:
                tasks[task] = bars.add_task(task, total=total, loss="")
            bars.update(tasks[task], completed=done, total=total, loss=_loss(loss))

        yield show


def _loss(loss: float | None) -> str:
    return "" if loss is None else f"loss {loss:.4f}"
