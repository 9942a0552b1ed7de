"""Clips from a folder of videos with captions."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from vidsparse.finetune.data import tensor_file
from vidsparse.finetune.data.captions import read_captions
from vidsparse.finetune.data.clips import Clip, Skipped, choose_bucket
from vidsparse.finetune.data.decoding import measure_clip, read_video


def folder_clips(
    folder: Path,
    sizes: Sequence[tuple[int, int]],
    frame_counts: Sequence[int],
    fps: float | None = None,
    cache: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Clip], list[Skipped]]:
    """The videos of a folder as clips, each in the bucket that fits it best; a clip is the beginning of its video.

    Captions are in `metadata.jsonl` (lines with `file_name` and `caption` or `text`) or in a .txt beside each video.
    A video is decoded once, up to the longest clip, to count its frames.

    Args:
        folder: of the videos.
        sizes: (height, width) in pixels, for `choose_bucket`.
        frame_counts: lengths in frames, for `choose_bucket`.
        fps: frames per second to resample to. None takes the frames at any rate: fast and slow videos then look alike
            to a model, which counts frames and not seconds.
        cache: caches the counts, so that the next training starts at once; may be the folder of `encode`.
        progress: called with the number of videos that were measured, and of all.

    Returns:
        The clips in the order of their paths, and what was skipped: no caption, no file, too short, not decodable.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: captions that cannot be read or that contradict each other, or no usable video.
        OSError: the cache cannot be written.
    """
    if not sizes or not frame_counts:
        raise ValueError(f"sizes={sizes!r} and frame_counts={frame_counts!r} need at least one each")
    if fps is not None and not fps > 0:
        raise ValueError(f"fps={fps} must be above 0, or None to take the frames as they are")
    captions, skipped = read_captions(folder)
    clips, longest = [], max(frame_counts)
    for done, (path, caption) in enumerate(captions.items(), 1):
        try:
            key = _key(path, fps)
            size = _cached_size(cache, f"look-{key[:32]}-{longest}", partial(measure_clip, path, longest, fps))
            bucket = choose_bucket(*size, sizes, frame_counts)
            clips.append(Clip(key, caption, bucket, partial(read_video, path, bucket, fps), path))
        except ValueError as error:
            skipped.append(Skipped(path, str(error)))
        progress(done, len(captions))
    if not clips:
        raise ValueError(f"no video in {folder} can be trained on: {_found(folder, skipped)}")
    return clips, skipped


def _key(path: Path, fps: float | None) -> str:
    content = hashlib.sha256(f"{fps} ".encode())
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from error
    return content.hexdigest()


def _cached_size(cache: Path | None, name: str, measure: Callable[[], tuple[int, int, int]]) -> tuple[int, int, int]:
    """Frames, height and width of a video: from the cache, or measured and written there."""
    if cache is None:
        return measure()
    path = cache / f"{name}.safetensors"
    if tensor_file.shape(path) is None:
        cache.mkdir(parents=True, exist_ok=True)
        tensor_file.write(path, torch.tensor(measure()))
    frames, height, width = tensor_file.read(path).tolist()
    return frames, height, width


def _found(folder: Path, skipped: list[Skipped]) -> str:
    """Describe the content of an unusable folder, for its error."""
    if skipped:
        first = "; ".join(f"{s.path.name}: {s.reason}" for s in skipped[:3])
        return f"{len(skipped)} left out ({first}{'; ...' if len(skipped) > 3 else ''})"
    kinds = Counter(path.suffix or path.name for path in folder.rglob("*") if path.is_file())
    return f"it has {', '.join(f'{n} {kind}' for kind, n in kinds.most_common(5)) or 'no files'}"
