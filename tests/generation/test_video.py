"""Videos as files."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as imageio
import numpy as np

from vidsparse.generation.video import side_by_side, to_pixels, write_video


def test_written_colours_are_those_of_the_frames(tmp_path: Path) -> None:
    frames = np.zeros((5, 16, 16, 3), np.float32)
    frames[:, :8, :, 0], frames[:, 8:, :, 2] = 0.9, 0.6
    pixels = to_pixels(frames, 4)
    write_video(tmp_path / "a.mp4", side_by_side(pixels, pixels, ("one", "two")), fps=12)
    read = imageio.imread(tmp_path / "a.mp4", plugin="FFMPEG").astype(float)
    assert read.shape == (5, 24 + 64, 64 + 4 + 64, 3)
    for left in (4, 64 + 4 + 4):
        inner = read[:, 24 + 4 : 24 + 28, left : left + 56], read[:, 24 + 36 : 24 + 60, left : left + 56]
        for part, colour in zip(inner, ((230, 0, 0), (0, 0, 153)), strict=True):
            assert np.abs(part - colour).max() < 12
