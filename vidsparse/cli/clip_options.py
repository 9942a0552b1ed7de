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

if TYPE_CHECKING:
    from vidsparse.finetune import Bucket, Clip, Cutting, Skipped
    from vidsparse.generation.models import Model

DATA = "Data"
FPS_HELP = "Frames a second that videos are resampled to; 0 takes every stored frame once."
NAMED = 20  # files that are named one by one


@dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """Where clips begin, and what is a caption."""

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

    def cutting(self) -> Cutting:
        """Where clips begin. Raises: see `Cutting.parse`."""
        from vidsparse.finetune import Cutting

        return Cutting.parse(self.clips, self.clip_stride)

    def read_folder(
        self,
        folder: Path,
        buckets: list[Bucket],
        fps: float | None,
        model: Model,
        cache: Path | None,
        progress: Callable[[int, int], None],
    ) -> tuple[list[Clip], list[Skipped]]:
        """The clips of a folder in these buckets, at the model's rate unless `fps` is given; 0 is as they are.

        Raises: see `folder_clips`.
        """
        from vidsparse.finetune import folder_clips

        rate = float(model.fps) if fps is None else fps
        if fps is None:
            note(f"{rate:g} frames a second is the rate of {model.name}; --fps 0 takes videos as they are")
        return folder_clips(
            folder,
            list(dict.fromkeys((bucket.height, bucket.width) for bucket in buckets)),
            list(dict.fromkeys(bucket.frames for bucket in buckets)),
            rate or None,
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
