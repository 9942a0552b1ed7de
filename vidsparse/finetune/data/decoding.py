"""Video files as frames, decoded with imageio's ffmpeg."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vidsparse.finetune.data.clips import Bucket, fit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# File types that imageio decodes with ffmpeg.
SUFFIXES = (".avi", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")


def decode(path: Path, fps: float | None = None) -> Iterator[NDArray[np.uint8]]:
    """Decode the frames of a video, uint8 [height, width, 3] each, one after the other.

    Args:
        path: of the video.
        fps: frames per second to resample to, by dropping or repeating frames; None takes all frames as they are.

    Raises:
        ValueError: not a video, or a damaged one, with the reason.
    """
    import imageio.v2 as imageio

    # Without -xerror ffmpeg invents frames where a file is damaged.
    options: dict[str, Any] = {"input_params": ["-xerror"]}
    if fps is not None:
        options["output_params"] = ["-vf", f"fps={fps}"]
    count, promised = 0, 0.0
    try:
        reader: Any  # imageio's types know neither its metadata nor its frames
        with imageio.get_reader(path, "FFMPEG", **options) as reader:
            meta = reader.get_meta_data()
            # A container's duration is that of its longest stream, which may be the sound.
            promised = 0.0 if meta.get("audio_codec") else meta["duration"] * (fps or meta["fps"])
            for frame in reader:
                count += 1
                yield frame
    except (OSError, RuntimeError) as error:
        # ffmpeg prints what it tries line by line; the last line is the reason why it gave up.
        reason = str(error).strip().rpartition("\n")[2]
        raise ValueError(f"it cannot be decoded: {reason}") from error
    if count < 0.9 * promised:
        raise ValueError(f"it is damaged: its frames end after {count} of about {promised:.0f}")


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
