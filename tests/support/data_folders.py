"""Folders of small videos for tests of the data of a fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


def write_metadata(folder: Path, *lines: dict[str, Any] | str) -> None:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")


def counted(video: torch.Tensor) -> list[int]:
    """The frame numbers that a video of `write_video` shows."""
    return [round(float(level)) for level in (video.mean(dim=(0, 2, 3)) + 1) * 127.5 / 6]


def grey(index: int, height: int = 32, width: int = 48) -> Image.Image:
    """The picture of that number, as `write_video` numbers them."""
    return Image.fromarray(np.full((height, width, 3), 6 * index, np.uint8))
