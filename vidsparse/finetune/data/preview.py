"""What a training will learn, to look at: the first, middle and last frame of each clip, and what is said of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vidsparse.finetune.data.cache import read_ahead
from vidsparse.finetune.data.clips import Clip, Skipped


@dataclass(frozen=True)
class Card:
    """A clip, to look at.

    Attributes:
        name: of its file, below the folder.
        facts: size, frames, seconds, frames a second and repeats, as short texts.
        captions: of it.
        frames: first, middle and last, uint8 [height, width, 3] each; one of a still image.
    """

    name: str
    facts: tuple[str, ...]
    captions: tuple[str, ...]
    frames: tuple[NDArray[np.uint8], ...]


@dataclass(frozen=True)
class Preview:
    """What a training will learn, and what it will not.

    Attributes:
        title: of the folder.
        summary: counts of clips, files, sizes.
        cards: the clips.
        more: how many clips are not among the cards.
        left_out: name and reason of each file that is not used.
    """

    title: str
    summary: str
    cards: tuple[Card, ...]
    more: int
    left_out: tuple[tuple[str, str], ...]


def preview(
    folder: Path,
    clips: Sequence[Clip],
    skipped: Sequence[Skipped],
    fps: float | None = None,
    most: int = 100,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Preview:
    """Read the clips of a folder as a training reads them.

    Args:
        folder: of the videos.
        clips, skipped: from `folder_clips`.
        fps: frames a second that they were resampled to; None: as they are.
        most: clips that are read; of more, evenly chosen ones.
        progress: called with the number of clips that were read, and of those to read.
    """
    captions: dict[tuple[Path | None, str], tuple[Clip, list[str]]] = {}
    for clip in clips:
        captions.setdefault((clip.path, clip.key), (clip, []))[1].append(clip.caption)
    every = list(captions.values())
    chosen = [every[len(every) * i // min(most, len(every))] for i in range(min(most, len(every)))]
    cards, broken = list[Card](), list[tuple[str, str]]()
    progress(0, len(chosen))
    for done, ((clip, texts), video) in enumerate(zip(chosen, read_ahead([c for c, _ in chosen]), strict=True), 1):
        if isinstance(video, ValueError):
            broken.append((_name(clip.path, folder), str(video)))
        else:
            cards.append(Card(_name(clip.path, folder), _facts(clip, fps), tuple(texts), _frames(video)))
        progress(done, len(chosen))
    left_out = [*((_name(file.path, folder), file.reason) for file in skipped), *dict.fromkeys(broken)]
    summary = _summary([clip for clip, _ in every], fps)
    return Preview(str(folder), summary, tuple(cards), len(every) - len(chosen), tuple(left_out))


def _name(path: Path | None, folder: Path) -> str:
    return "drawn" if path is None else os.path.relpath(path, folder)


def _frames(video: torch.Tensor) -> tuple[NDArray[np.uint8], ...]:
    count = video.shape[1]
    pixels = ((video[:, sorted({0, count // 2, count - 1})] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return tuple(pixels.permute(1, 2, 3, 0).numpy())


def _facts(clip: Clip, fps: float | None) -> tuple[str, ...]:
    bucket = clip.bucket
    facts = [f"{bucket.width} × {bucket.height}", _counted(bucket.frames, "frame")]  # noqa: RUF001, a sign of its own
    if clip.span is not None:
        facts.append(f"{clip.span[0]:.2f} to {clip.span[1]:.2f} s")
    if clip.fps is not None:
        facts.append(f"{clip.fps:g} fps" if fps is None or clip.fps == fps else f"{clip.fps:g} → {fps:g} fps")
    return (*facts, *([f"{clip.repeats} times"] if clip.repeats > 1 else []))


def _summary(clips: Iterable[Clip], fps: float | None) -> str:
    every = list(clips)
    sizes = dict.fromkeys((clip.bucket.width, clip.bucket.height, clip.bucket.frames) for clip in every)
    return ", ".join(
        (
            f"{_counted(len(every), 'clip')} of {_counted(len({clip.path for clip in every}), 'file')}",
            _counted(len(sizes), "size"),
            "every stored frame once" if fps is None else f"{fps:g} frames a second",
        )
    )


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
