"""Which frames the clips of a video show."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe

from vidsparse.finetune.data.cutting import Cutting, shown

SIZES = [(32, 32)]


def starts(cutting: Cutting, frames: int, *counts: int) -> list[tuple[int, int]]:
    return [(first, bucket.frames) for first, bucket in cutting.cut(frames, 32, 48, SIZES, counts)]


@pytest.mark.parametrize(
    ("text", "stride", "expected"),
    [
        ("first", None, [(0, 9)]),
        ("chunk", None, [(0, 9), (9, 9), (18, 5)]),
        ("uniform:1", None, [(0, 9)]),
        ("uniform:3", None, [(0, 9), (8, 9), (16, 9)]),
        ("slide", 6, [(0, 9), (6, 9), (12, 9)]),
    ],
)
def test_clips_begin_where_they_are_asked_to(text: str, stride: int | None, expected: list[tuple[int, int]]) -> None:
    assert starts(Cutting.parse(text, stride), 25, 5, 9) == expected


def test_a_video_of_the_length_of_a_clip_is_one_clip() -> None:
    for cutting in (Cutting(), Cutting("chunk"), Cutting("uniform", 4), Cutting("slide", stride=3)):
        assert starts(cutting, 9, 9) == [(0, 9)]
        with pytest.raises(ValueError, match="it has 8 frames, and the shortest clips have 9"):
            starts(cutting, 8, 9)
    with pytest.raises(ValueError, match="it has 1 frame, and"):
        starts(Cutting(), 1, 9)


@pytest.mark.parametrize(
    ("text", "stride", "says"),
    [
        ("middle", None, "clips='middle' is unknown; choose first, chunk, slide or uniform:N"),
        ("uniform", None, "clips='uniform' is unknown"),
        ("uniform:0", None, "must take 1 clip or more"),
        ("chunk:2", None, "clips='chunk:2' is unknown"),
        ("slide", None, "clips='slide' needs a stride: .*--clip-stride"),
        ("chunk", 3, r"stride=3 \(--clip-stride\) is for clips='slide' alone"),
        ("slide", 0, "must be 1 frame or more"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, stride: int | None, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Cutting.parse(text, stride)


@pytest.mark.parametrize("fps", [7, 12, 16, 25, 30])
def test_a_rate_shows_what_the_filter_of_ffmpeg_shows(tmp_path: Path, fps: int) -> None:
    kept = [n for n in range(50) if n % 3 or n < 20]  # at a variable rate
    graph = f"format=gray,geq=lum='5*N',select='mod(n,3)+lt(n,20)',fps={fps}"
    source = ["-f", "lavfi", "-i", "color=size=16x16:rate=25:duration=2", "-vf", graph]
    command = [get_ffmpeg_exe(), "-v", "error", *source, "-f", "rawvideo", "-"]
    out = subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL).stdout
    levels = np.frombuffer(out, np.uint8).reshape(-1, 256)[:, 0].tolist()
    expected = [level // 5 for level in levels]
    found = [kept[index] for index in shown([n / 25 for n in kept], fps)]
    assert set(expected) <= {*kept} and found == expected


def test_a_part_is_cut_by_seconds() -> None:
    times = [10 + n / 25 for n in range(50)]
    assert shown(times) == list(range(50))
    assert shown(times, start=0.4, end=0.8) == list(range(10, 20))
    assert shown(times, fps=12.5, start=0.4, end=0.8) == [10, 12, 14, 16, 18]
    assert shown(times, start=1.8, end=99) == list(range(45, 50))
    assert shown([3.0]) == [0] == shown([3.0], fps=16)
    with pytest.raises(ValueError, match=r"it is over after 2.0 seconds, before its part at 2.5 begins"):
        shown(times, start=2.5)
