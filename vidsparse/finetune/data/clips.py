"""Clips: training examples before they are encoded, and the sizes that videos are resized to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import interpolate

from vidsparse.grid import latent_frames


@dataclass(frozen=True)
class Bucket:
    """The size that clips are trained at: frames, and height and width in pixels."""

    frames: int
    height: int
    width: int

    def check(self, temporal: int, spatial: int) -> None:
        """Refuse a size that a VAE with these strides in time and space does not map to whole latents.

        Raises:
            ValueError: with the nearest sizes that fit.
        """
        if self.frames < 1 or (self.frames - 1) % temporal:
            lower = (max(1, latent_frames(self.frames, temporal)) - 1) * temporal + 1
            raise ValueError(
                f"clips of {self.frames} frames do not fit the VAE's stride of {temporal} in time; "
                f"use {lower} or {lower + temporal}"
            )
        for name, side in (("height", self.height), ("width", self.width)):
            if side < 1 or side % spatial:
                raise ValueError(f"{name} {side} of the clips must be a multiple of {spatial}")


@dataclass(frozen=True)
class Clip:
    """A video with its caption, not yet in memory.

    Attributes:
        key: hash of the content: clips with equal key and bucket show the same video.
        caption: of the video.
        bucket: its size.
        read: returns the video, float32 [3, frames, height, width] in [-1, 1], of the bucket's size; raises
            `ValueError` with the reason if it cannot be decoded.
        path: of its file; None for a synthetic clip.
    """

    key: str
    caption: str
    bucket: Bucket
    read: Callable[[], torch.Tensor]
    path: Path | None = None


@dataclass(frozen=True)
class Skipped:
    """A video that a training skips, and why."""

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
        raise ValueError(f"it has {frames} frames, and the shortest clips have {min(frame_counts)}")

    def distance(size: tuple[int, int]) -> tuple[float, float]:
        aspect = abs(math.log(size[0] / size[1]) - math.log(height / width))
        return aspect, abs(math.log(size[0] * size[1]) - math.log(height * width))

    return Bucket(max(fitting), *min(sizes, key=distance))


def fit(frame: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize a frame with antialiasing and its aspect ratio until it covers the size, then crop its centre.

    Takes and returns float [3, height, width] in [-1, 1].
    """
    scale = max(height / frame.shape[1], width / frame.shape[2])
    covering = max(height, round(frame.shape[1] * scale)), max(width, round(frame.shape[2] * scale))
    resized = interpolate(frame[None], covering, mode="bicubic", antialias=True)[0].clamp(-1, 1)
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    return resized[:, top : top + height, left : left + width]
