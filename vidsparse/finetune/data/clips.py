"""Clips: training examples before they are encoded, and the sizes that videos are resized to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vidsparse.grid import latent_frames

if TYPE_CHECKING:
    from vidsparse.finetune.families import TrainingTask


@dataclass(frozen=True)
class Bucket:
    """The size that clips are trained at: frames, and height and width in pixels."""

    frames: int
    height: int
    width: int

    def check(self, temporal: int, spatial: int, least: int = 1, what: str = "the VAE's stride") -> None:
        """Refuse a size that a VAE with these strides in time and space does not map to whole latents.

        Args:
            temporal, spatial: the strides.
            least: frames of the shortest clip.
            what: has the stride in time.

        Raises:
            ValueError: with the nearest sizes that fit.
        """
        if self.frames < least or (self.frames - 1) % temporal:
            lower = max(least, (latent_frames(self.frames, temporal) - 1) * temporal + 1)
            raise ValueError(
                f"clips of {self.frames} frames do not fit {what} of {temporal} in time; "
                f"use {lower} or {lower + temporal}"
            )
        for name, side in (("height", self.height), ("width", self.width)):
            if side < 1 or side % spatial:
                raise ValueError(f"{name} {side} of the clips must be a multiple of {spatial}")

    def check_for(self, task: TrainingTask) -> None:
        """Refuse a size that does not become whole latents and patches of a model, or leaves it nothing to learn.

        Raises:
            ValueError: with sizes that fit.
        """
        # Of a video that starts from an image, the first frame is given.
        least = 1 + task.frame_step if task.from_image else 1
        what = "the VAE's stride" if task.section == 1 else f"{type(task).family}'s sections"
        self.check(task.frame_step, task.side, least, what)


@dataclass(frozen=True)
class Clip:
    """A video, or a part of one, with its caption, not yet in memory.

    Attributes:
        key: hash of the content: clips with equal key and bucket show the same video.
        caption: of the video.
        bucket: its size.
        read: returns the video, float32 [3, frames, height, width] in [-1, 1], of the bucket's size; raises
            `ValueError` with the reason if it cannot be decoded.
        path: of its file; None for a synthetic clip.
        span: seconds of its file at which it begins and ends; None if its file has no times.
        fps: frames a second of its file; None if its file has no times.
        repeats: how many times it counts as an example.
    """

    key: str
    caption: str
    bucket: Bucket
    read: Callable[[], torch.Tensor]
    path: Path | None = None
    span: tuple[float, float] | None = None
    fps: float | None = None
    repeats: int = 1


@dataclass(frozen=True)
class Skipped:
    """A file that a training skips, and why."""

    path: Path
    reason: str


def choose_bucket(
    frames: int, height: int, width: int, sizes: Sequence[tuple[int, int]], frame_counts: Sequence[int]
) -> Bucket:
    """The bucket of a video: the longest of `frame_counts` that it has, and the size nearest in aspect ratio.

    Args:
        frames, height, width: of the video.
        sizes: (height, width) each. Of several with the same aspect ratio, the one nearest in area is taken.
        frame_counts: possible lengths.

    Raises:
        ValueError: the video is shorter than all frame counts.
    """
    fitting = [count for count in frame_counts if count <= frames]
    if not fitting:
        counted = f"{frames} frame{'s' if frames != 1 else ''}"
        raise ValueError(f"it has {counted}, and the shortest clips have {min(frame_counts)}")

    def distance(size: tuple[int, int]) -> tuple[float, float]:
        aspect = abs(math.log(size[0] / size[1]) - math.log(height / width))
        return aspect, abs(math.log(size[0] * size[1]) - math.log(height * width))

    return Bucket(max(fitting), *min(sizes, key=distance))
