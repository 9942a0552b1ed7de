"""How a folder of videos becomes clips: the options of `finetune` and `preview` that say so."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from vidsparse.cli.messages import counted, note
from vidsparse.cli.numbers import height_and_width
from vidsparse.cli.options import FRAMES

if TYPE_CHECKING:
    from vidsparse.finetune import Bucket, Clip, Cutting, Skipped
    from vidsparse.generation.models import Model

DATA = "Data"
OF_MODEL = "of the model"
NAMED = 20  # files that are named one by one


@dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """How long, how large and how fast clips are, where they begin, and what is a caption."""

    frames: Annotated[
        list[int] | None,
        Option(
            *FRAMES,
            min=1,
            help="Frames of a clip; again for more lengths.",
            rich_help_panel=DATA,
            show_default="of the model, or longer",
        ),
    ] = None
    size: Annotated[
        list[str] | None,
        Option(
            help="WIDTHxHEIGHT of a clip in pixels; again for more sizes.", rich_help_panel=DATA, show_default=OF_MODEL
        ),
    ] = None
    fps: Annotated[
        float | None,
        Option(
            min=0,
            help="Frames a second that videos are resampled to; 0 takes every stored frame once.",
            rich_help_panel=DATA,
            show_default=OF_MODEL,
        ),
    ] = None
    clips: Annotated[
        str,
        Option(
            help="Of a long video: first (its beginning), chunk (one after the other), uniform:N (evenly spread) or "
            "slide (one every --clip-stride frames).",
            rich_help_panel=DATA,
        ),
    ] = "first"
    clip_stride: Annotated[
        int | None,
        Option(min=1, help="Frames from one clip to the next.", rich_help_panel=DATA, show_default="with slide alone"),
    ] = None
    caption_lines: Annotated[
        bool, Option("--caption-lines", help="Each line of a .txt is a caption of its own.", rich_help_panel=DATA)
    ] = False

    def buckets(self, model: Model) -> list[Bucket]:
        """Every length in every size; what is not given is the model's.

        Raises:
            ValueError: a size that is none, or that does not become whole latents and whole patches of them; or the
                pipeline has no size or length of its own.
        """
        from vidsparse.finetune import Bucket
        from vidsparse.finetune.families import task_class
        from vidsparse.generation.frames import fit_frames, geometry

        known, task = geometry(model.name), task_class(model.pipeline_class)
        every = [height_and_width(text) for text in self.size or []]
        every = every or [(_own(model, "height", "--size"), _own(model, "width", "--size"))]
        step = known.frame_stride * (1 if task is None else task.section)
        counts = self.frames or [model.longer_frames or fit_frames(_own(model, "num_frames", "--frames"), step)]
        buckets = [Bucket(count, *size) for count in counts for size in every]
        for bucket in buckets:
            bucket.check(known.frame_stride, known.side)
        return buckets

    def rate(self, model: Model) -> float | None:
        """Frames a second that videos are resampled to; None: each stored frame once."""
        return float(model.fps) if self.fps is None else self.fps or None

    def cutting(self) -> Cutting:
        """Where clips begin. Raises: see `Cutting.parse`."""
        from vidsparse.finetune import Cutting

        return Cutting.parse(self.clips, self.clip_stride)

    def read_folder(
        self,
        folder: Path,
        buckets: list[Bucket],
        model: Model,
        cache: Path | None,
        progress: Callable[[int, int], None],
    ) -> tuple[list[Clip], list[Skipped]]:
        """The clips of a folder in these buckets, at their `rate`.

        Raises: see `folder_clips`.
        """
        from vidsparse.finetune import folder_clips

        if self.fps is None:
            note(f"{model.fps:g} frames a second is the rate of {model.name}; --fps 0 takes videos as they are")
        return folder_clips(
            folder,
            list(dict.fromkeys((bucket.height, bucket.width) for bucket in buckets)),
            list(dict.fromkeys(bucket.frames for bucket in buckets)),
            self.rate(model),
            cache,
            progress,
            cutting=self.cutting(),
            caption_lines=self.caption_lines,
            rank=int(os.environ.get("RANK", "0")),
            world=int(os.environ.get("WORLD_SIZE", "1")),
            say=note,
        )


def note_clips(clips: list[Clip], skipped: list[Skipped]) -> None:
    """Say how many clips come from how many files, and name what is left out with its reason."""
    for file in skipped[:NAMED]:
        note(f"{file.path} is left out: {file.reason}")
    if len(skipped) > NAMED:
        rest = Counter(file.reason for file in skipped[NAMED:])
        for reason, number in rest.most_common():
            note(f"{counted(number, 'more file')} left out: {reason}")
    files = len({clip.path for clip in clips})
    number = len({(clip.path, clip.key) for clip in clips})
    note(f"{counted(number, 'clip')} of {counted(files, 'file')}, {counted(len(skipped), 'file')} left out")


def _own(model: Model, argument: str, option: str) -> int:
    """What a model's videos have unless something else is asked for.

    Raises:
        ValueError: the pipeline says nothing.
    """
    found = model.default(argument)
    if found is None:
        raise ValueError(f"{model.pipeline_class.__name__} has no {argument} of its own; give {option}")
    return int(found)
