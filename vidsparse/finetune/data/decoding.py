"""Video files as clips: how long they are, and their frames at the size of a bucket."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch

from vidsparse.finetune.data.clips import Bucket, fit
from vidsparse.generation.media import decode


def measure_clip(path: Path, frames: int, fps: float | None = None) -> tuple[int, int, int]:
    """Count the frames of a video, up to `frames`, and measure their height and width.

    Raises:
        ValueError: as `decode` does.
    """
    shapes = [frame.shape for frame in islice(decode(path, fps), frames)]
    if not shapes:
        raise ValueError("it has no frames")
    return len(shapes), shapes[0][0], shapes[0][1]


def read_video(path: Path, bucket: Bucket, fps: float | None = None) -> torch.Tensor:
    """The first frames of a video at a bucket's size: float32 [3, frames, height, width] in [-1, 1].

    Raises:
        ValueError: as `decode` does, or too few frames.
    """
    frames = [
        fit(torch.from_numpy(frame).permute(2, 0, 1) / 127.5 - 1, bucket.height, bucket.width)
        for frame in islice(decode(path, fps), bucket.frames)
    ]
    if len(frames) < bucket.frames:
        raise ValueError(f"it has {len(frames)} frames, not {bucket.frames}")
    return torch.stack(frames, dim=1)
