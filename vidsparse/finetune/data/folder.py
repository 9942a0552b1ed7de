"""Clips from a folder of videos with captions."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from vidsparse.finetune.data.captions import Entry, read_entries
from vidsparse.finetune.data.clips import Clip, Skipped
from vidsparse.finetune.data.cutting import Cutting, shown
from vidsparse.finetune.data.sources import READER, Source, forget_older, look_at_all

RATES = 4  # that a message names
FIRST = Cutting()


def folder_clips(
    folder: Path,
    sizes: Sequence[tuple[int, int]],
    frame_counts: Sequence[int],
    fps: float | None = None,
    cache: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    cutting: Cutting = FIRST,
    caption_lines: bool = False,
    rank: int = 0,
    world: int = 1,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[list[Clip], list[Skipped]]:
    """The videos of a folder as clips, each in the bucket that fits it best.

    Videos, animations (GIF, WebP, APNG), still images, which are clips of one frame, and folders of frames. Captions
    are in `metadata.csv`, `metadata.jsonl`, `captions.csv`, `captions.jsonl`, or in a .txt beside each video. A clip
    with several captions is an example for each of them. Videos below a folder whose name ends in @3 count three times.

    Args:
        folder: of the videos.
        sizes: (height, width) in pixels, for `choose_bucket`.
        frame_counts: lengths in frames, for `choose_bucket`.
        fps: frames per second to resample to, by time. None takes each stored frame once: fast and slow videos then
            look alike to a model, which counts frames and not seconds. Images and folders of frames have no times, and
            are taken as they are.
        cache: remembers what is in the files, so that the next training starts at once; may be the folder of `encode`.
        progress: called with the number of files that were looked at, and of all.
        cutting: where in its video each clip begins.
        caption_lines: whether each line of a .txt is a caption of its own.
        rank, world: this process looks at its share of the files; what others have looked at it reads from the cache.
        say: called with what a user should know, one line each.

    Returns:
        The clips in the order of their paths, and each file that is not used: no caption, no file, too short, not
        decodable, neither a video nor an image.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: captions that cannot be read or that contradict each other, or no usable video.
        OSError: the cache cannot be written.
    """
    if not sizes or not frame_counts:
        raise ValueError(f"sizes={sizes!r} and frame_counts={frame_counts!r} need at least one each")
    if fps is not None and not fps > 0:
        raise ValueError(f"fps={fps} must be above 0, or None to take the frames as they are")
    entries, skipped = read_entries(folder, caption_lines, cache)
    if cache is not None and rank == 0 and forget_older(cache):
        say(f"an earlier version read the videos in {cache} in another way; they are encoded again")
    sources = look_at_all(list(dict.fromkeys(entry.path for entry in entries)), cache, rank, world, progress)
    clips = list[Clip]()
    for entry in entries:
        source = sources[entry.path]
        try:
            if isinstance(source, str):
                raise ValueError(source)
            clips += _cut(entry, source, sizes, frame_counts, fps, cutting)
        except ValueError as error:
            skipped.append(Skipped(entry.path, str(error)))
    if not clips:
        raise ValueError(f"no video in {folder} can be trained on: {_found(skipped)}")
    if fps is not None and (rates := _rates(clips)):
        say(f"videos are resampled to {fps:g} frames a second; they have {rates}")
    return clips, skipped


def _cut(
    entry: Entry,
    source: Source,
    sizes: Sequence[tuple[int, int]],
    frame_counts: Sequence[int],
    fps: float | None,
    cutting: Cutting,
) -> Iterator[Clip]:
    """The clips of a video, or of the part of it that an entry names.

    Raises:
        ValueError: it is too short, or has no times to take a part by.
    """
    seen = source.seen
    timed = len(seen.times) > 0
    if not timed and (entry.start is not None or entry.end is not None):
        raise ValueError("it has no times, so that no part of it can begin at a second")
    stored = shown(seen.times, fps, entry.start, entry.end) if timed else list(range(seen.frames))
    try:
        cuts = cutting.cut(len(stored), seen.height, seen.width, sizes, frame_counts)
    except ValueError as error:  # counts frames after resampling, of which the file may store more
        raise ValueError(f"{error} at {fps:g} frames a second" if timed and fps else str(error)) from None
    for first, bucket in cuts:
        frames = stored[first : first + bucket.frames]
        span = (seen.times[frames[0]] - seen.times[0], seen.times[frames[-1]] - seen.times[0]) if timed else None
        key = hashlib.sha256(repr((READER, source.content, frames)).encode()).hexdigest()
        read = partial(source.read, frames, bucket.height, bucket.width)
        for caption in entry.captions:
            yield Clip(key, caption, bucket, read, entry.path, span, seen.fps, entry.repeats)


def _rates(clips: Sequence[Clip]) -> str:
    """The rates of the files of clips, the most frequent first."""
    counted = Counter({clip.path: clip.fps for clip in clips if clip.fps is not None}.values()).most_common()
    named = [f"{fps:g} ({number:,} {'file' if number == 1 else 'files'})" for fps, number in counted[:RATES]]
    rest = sum(number for _, number in counted[RATES:])
    return ", ".join([*named, *([f"other rates ({rest:,})"] if rest else [])])


def _found(skipped: list[Skipped]) -> str:
    """Describe the content of an unusable folder, for its error."""
    if not skipped:
        return "it has no files"
    first = "; ".join(f"{s.path.name}: {s.reason}" for s in skipped[:3])
    return f"{len(skipped)} left out ({first}{'; ...' if len(skipped) > 3 else ''})"
