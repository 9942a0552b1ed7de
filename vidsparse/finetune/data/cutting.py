"""How a video is cut into clips: which of its stored frames each clip shows."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from vidsparse.finetune.data.clips import Bucket, choose_bucket

EXPECTED = "first, chunk, slide or uniform:N, such as uniform:4"


@dataclass(frozen=True)
class Cutting:
    """Where the clips of a video begin.

    Attributes:
        kind: "first" takes the beginning, "chunk" one clip after the other, "uniform" some that begin evenly spread
            from the beginning to the last possible frame, "slide" one every `stride` frames.
        count: of the clips that "uniform" takes.
        stride: frames from the beginning of a clip to that of the next, for "slide".
    """

    kind: str = "first"
    count: int = 1
    stride: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("first", "chunk", "slide", "uniform"):
            raise ValueError(f"clips={self.kind!r} is unknown; choose {EXPECTED}")
        if self.count < 1:
            raise ValueError(f"clips=uniform:{self.count} must take 1 clip or more")
        if self.kind == "slide" and self.stride is None:
            raise ValueError("clips='slide' needs a stride: frames from one clip to the next (--clip-stride 16)")
        if self.kind != "slide" and self.stride is not None:
            raise ValueError(
                f"stride={self.stride} (--clip-stride) is for clips='slide' alone, not for clips={self.kind!r}"
            )
        if self.stride is not None and self.stride < 1:
            raise ValueError(f"stride={self.stride} must be 1 frame or more")

    @classmethod
    def parse(cls, text: str, stride: int | None = None) -> Cutting:
        """Read "first", "chunk", "slide" or "uniform:N".

        Raises:
            ValueError: something else, or a stride that does not belong there.
        """
        found = re.fullmatch(r"(\w+?)(?::(\d+))?", text)
        if found is None or (found[1] == "uniform") != (found[2] is not None):
            raise ValueError(f"clips={text!r} is unknown; choose {EXPECTED}")
        return cls(found[1], int(found[2] or 1), stride)

    def cut(
        self, frames: int, height: int, width: int, sizes: Sequence[tuple[int, int]], frame_counts: Sequence[int]
    ) -> list[tuple[int, Bucket]]:
        """The first frame and the bucket of each clip. What is left of "chunk" becomes a shorter clip, if one fits.

        Args:
            frames, height, width: of the video.
            sizes, frame_counts: for `choose_bucket`.

        Raises:
            ValueError: the video is shorter than all frame counts.
        """
        bucket = choose_bucket(frames, height, width, sizes, frame_counts)
        last = frames - bucket.frames
        if self.kind == "uniform":
            even = {round(last * i / max(1, self.count - 1)) for i in range(self.count)}
            return [(first, bucket) for first in sorted(even)]
        if self.kind == "slide":
            return [(first, bucket) for first in range(0, last + 1, self.stride or 1)]
        if self.kind == "first":
            return [(0, bucket)]
        cuts, first = list[tuple[int, Bucket]](), 0
        while frames - first >= min(frame_counts):
            bucket = choose_bucket(frames - first, height, width, sizes, frame_counts)
            cuts.append((first, bucket))
            first += bucket.frames
        return cuts


def shown(
    times: Sequence[float], fps: float | None = None, start: float | None = None, end: float | None = None
) -> list[int]:
    """Which stored frame each frame of a video shows, from one second of it to another, at a rate.

    Args:
        times: seconds at which the stored frames are shown, ascending; seconds of the video count from the first.
        fps: frames a second; None: each stored frame once. As ffmpeg's filter of that name, a frame shows what was
            stored last within half a frame after it.
        start, end: seconds of the video; None: its beginning and its end.

    Raises:
        ValueError: the video is over before `start`.
    """
    seconds = [time - times[0] for time in times]
    # Nothing says how long the last frame is shown.
    held = median(after - before for before, after in pairwise(seconds)) if len(seconds) > 1 else 0.0
    begin, until = start or 0.0, min(seconds[-1] + held, math.inf if end is None else end)
    if begin > seconds[-1]:
        raise ValueError(f"it is over after {seconds[-1] + held:.1f} seconds, before its part at {begin:g} begins")
    if fps is None:
        first, last = bisect_left(seconds, begin - 1e-6), bisect_left(seconds, until - 1e-6)
        return list(range(first, max(last, first + (len(times) == 1))))
    count = max(1, round((until - begin) * fps))
    return [max(0, bisect_left(seconds, begin + (tick + 0.5) / fps - 1e-6) - 1) for tick in range(count)]
