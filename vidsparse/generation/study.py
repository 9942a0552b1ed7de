"""A study: many videos under several settings, each beside its dense video, in one folder.

Each setting has a folder of its own, `vidsparse.generation.batch.Folder`, in which a video has one name; "dense" is the
one of the dense videos, whose frames are kept too, so that they are made once.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from vidsparse.atomic import replacing
from vidsparse.generation.intervals import Mean, Median

if TYPE_CHECKING:
    from vidsparse.generation.video import Frames

DENSE, ANOTHER_SEED = "dense", "another seed"
MEASURES = "psnr", "ssim", "ms_ssim", "flicker", "lpips"
BYTES = 6  # of a pixel of the dense frames that are kept: 16 bits for each of three colours
LEVELS = 2**16 - 1


@dataclass(frozen=True)
class Row:
    """What became of a setting, over its videos.

    Attributes:
        videos: how many are made.
        seconds: denoising a video; in all, for a pipeline that does not tell of its steps. None: not sampled.
        speedup: seconds of the dense video over those of the same video here. None: not sampled.
        density: mean of the videos, of pairs of video tiles in sparse calls; None: not sampled.
        identical: how many are bit for bit the dense video; their PSNR is infinite, and not in its mean.
        measures: distance from the dense video, by the names of `MEASURES`; empty for the dense videos.
        judge: scores of the model's judge, by attribute; empty without a judge.
        worst: name of the video, and index of the frame, with the lowest PSNR of all; None without one.
    """

    videos: int
    seconds: Median | None
    speedup: Median | None
    density: float | None
    identical: int
    measures: Mapping[str, Mean]
    judge: Mapping[str, Mean]
    worst: tuple[str, int] | None


def essentials(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a summary needs of the report of a video, which has all layers besides."""
    kept = {name: report.get(name) for name in ("seconds", "judge", "difference", "another_seed", "peak_bytes")}
    return {**kept, "density": report["attention"]["density"]}


def summarise(reports: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Row]:
    """A row for each setting with a video; with several seeds also `ANOTHER_SEED`, how far apart dense videos are.

    Args:
        reports: setting -> name of a video -> `essentials` of its report; with `DENSE`.
    """
    dense = reports.get(DENSE, {})
    rows = {setting: _row(found, dense) for setting, found in reports.items() if found}
    if apart := {name: report["another_seed"] for name, report in dense.items() if report["another_seed"]}:
        rows[ANOTHER_SEED] = Row(len(apart), None, None, None, *_distances(apart), {}, _worst(apart))
    return rows


def _row(found: Mapping[str, Mapping[str, Any]], dense: Mapping[str, Mapping[str, Any]]) -> Row:
    clock = "denoising" if all(report["seconds"]["denoising"] for report in found.values()) else "total"
    seconds = {name: report["seconds"][clock] for name, report in found.items()}
    speedups = [dense[name]["seconds"][clock] / taken for name, taken in seconds.items() if name in dense]
    distances = {name: report["difference"] for name, report in found.items() if report["difference"]}
    judged = [report["judge"] for report in found.values() if report["judge"]]
    return Row(
        len(found),
        Median.of(list(seconds.values())),
        Median.of(speedups) if speedups else None,
        sum(report["density"] for report in found.values()) / len(found),
        *_distances(distances),
        {name: Mean.of([score[name] for score in judged]) for name in (judged[0] if judged else ())},  # type: ignore[misc]
        _worst(distances),
    )


def _distances(found: Mapping[str, Mapping[str, Any]]) -> tuple[int, dict[str, Mean]]:
    """How many videos are identical to the dense ones, and the mean of each measure that any video has."""
    measures: dict[str, Mean] = {}
    for name in MEASURES:
        if mean := Mean.of([one[name] for one in found.values() if one[name] is not None]):
            measures[name] = mean
    return sum(one["psnr"] is None for one in found.values()), measures


def _worst(found: Mapping[str, Mapping[str, Any]]) -> tuple[str, int] | None:
    frames = {name: one["worst_frame"] for name, one in found.items() if one["worst_frame"] is not None}
    if not frames:
        return None
    name = min(frames, key=lambda name: found[name]["frame_psnr"][frames[name]])
    return name, frames[name]


def to_data(rows: Mapping[str, Row]) -> dict[str, Any]:
    """The rows as plain data."""
    return {setting: asdict(row) for setting, row in rows.items()}


# The dense frames


def round_frames(frames: Frames) -> Frames:
    """The frames as `read_frames` returns them once they are kept: in steps of 1/65535, between 0 and 1."""
    return _widened(_narrowed(frames))


def keep_frames(path: Path, frames: Frames) -> None:
    """Write a video as it is, as uint16 [frames, height, width, 3] that a file of NumPy (.npy) holds."""
    import numpy as np

    with replacing(path) as temporary:
        np.save(temporary, _narrowed(frames))


def read_frames(path: Path) -> Frames:
    """The video that `keep_frames` wrote.

    Raises:
        OSError: the file is missing or damaged.
    """
    import numpy as np

    try:
        return _widened(np.load(path))
    except (OSError, ValueError, EOFError) as error:
        raise OSError(f"the frames of a dense video, {path}, cannot be read: {error}") from error


def _narrowed(frames: Frames) -> Any:
    return (frames.clip(0, 1) * LEVELS).round().astype("uint16")


def _widened(levels: Any) -> Frames:
    frames: Frames = levels.astype("float32") / LEVELS
    return frames


def check_space(folder: Path, videos: int, size: tuple[int | None, int | None, int | None]) -> None:
    """Refuse, before the first video, a disk that the dense frames do not fit.

    Args:
        folder: of the study; it and those above it may be missing.
        videos: dense ones that are to be made.
        size: frames, height and width of each; nothing is checked where one is unknown.

    Raises:
        OSError: says what is needed and what is free.
    """
    frames, height, width = size
    if not (frames and height and width):
        return
    above = folder.absolute()
    there = next(path for path in (above, *above.parents) if path.exists())
    needed, free = videos * frames * height * width * BYTES, shutil.disk_usage(there).free
    if needed > free:
        raise OSError(
            f"the frames of the {videos} dense videos need {needed / 1e9:.3g} GB, and the disk of {folder} has "
            f"{free / 1e9:.3g} GB free; take another --out, or fewer prompts or seeds"
        )


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Within the context, no other process works on the study, which would slow this one down while it is timed.

    Raises:
        RuntimeError: another one does.
    """
    try:
        with FileLock(folder / ".study.lock", timeout=0):
            yield
    except Timeout:
        raise RuntimeError(f"another process is working on {folder}; wait for it, or take another --out") from None
