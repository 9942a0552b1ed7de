"""Small videos for tests of the data of a fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest

from vidsparse.finetune.data.clips import Bucket

# imageio-ffmpeg leaves the pipes of a process to the garbage collector, whose warning names whoever runs then.
leaves_pipes = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

SMALL = Bucket(5, 32, 32)


def write_video(path: Path, frames: int = 10, height: int = 32, width: int = 48, fps: int = 24) -> None:
    """A video whose brightness counts its frames, six levels each."""
    pictures = [np.full((height, width, 3), 6 * i, np.uint8) for i in range(frames)]
    options: dict[str, Any] = {"macro_block_size": 1, "ffmpeg_params": ["-movflags", "+faststart"]}
    if height % 2 or width % 2:
        options["pixelformat"] = "yuv444p"
    imageio.mimwrite(path, pictures, format="FFMPEG", fps=fps, **options)
