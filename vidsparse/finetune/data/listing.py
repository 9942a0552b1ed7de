"""The files of a folder of videos: which are videos and images, which belong to them, and which are neither."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vidsparse.generation.video_file import SUFFIXES as VIDEOS

ANIMATIONS = (".apng", ".gif", ".webp")  # which may also be still
IMAGES = (".avif", ".bmp", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff")
MEDIA = (*VIDEOS, *ANIMATIONS, *IMAGES)
TEXTS = (".txt", ".caption")
SUBTITLES = (".ass", ".sbv", ".srt", ".ssa", ".sub", ".ttml", ".vtt")
TABLES = tuple(f"{name}{end}" for name in ("metadata", "captions") for end in (".jsonl", ".csv"))
REPEATS = re.compile(r".*@(\d+)")


@dataclass(frozen=True)
class Listing:
    """What is in a folder and below it, in the order of the paths.

    Attributes:
        media: videos, animations and images.
        folders: the folders below it.
        tables: files with the captions of many.
        others: all other files.
    """

    media: tuple[Path, ...]
    folders: tuple[Path, ...]
    tables: tuple[Path, ...]
    others: tuple[Path, ...]


def list_folder(folder: Path, without: Path | None = None) -> Listing:
    """List a folder and those below it, through links; each folder once, and nothing whose name begins with a dot.

    Args:
        folder: to list.
        without: a folder that is passed over, such as a cache.
    """
    folders, files = list[Path](), list[Path]()
    seen = {without.resolve()} if without is not None else set[Path]()
    for at, below, names in os.walk(folder, followlinks=True):
        here = Path(at)
        seen.add(here.resolve())
        # A link may lead back to where it is.
        below[:] = sorted(n for n in below if not n.startswith(".") and (here / n).resolve() not in seen)
        folders += [here / name for name in below]
        files += [here / name for name in names if not name.startswith(".")]
    files.sort()
    media = tuple(path for path in files if path.suffix.lower() in MEDIA)
    tables = tuple(path for path in files if path.name.lower() in TABLES)
    return Listing(media, tuple(sorted(folders)), tables, tuple(sorted({*files} - {*media} - {*tables})))


def texts_beside(path: Path) -> Iterator[Path]:
    """The files beside a video that may hold its caption: `a.txt` or `a.mp4.txt` of `a.mp4`; of a folder, `a.txt`."""
    for end in TEXTS:
        yield from dict.fromkeys((path.with_suffix(end), path.with_name(path.name + end)))


def repeats_of(path: Path, folder: Path) -> int:
    """How many times a file counts: the product of the numbers in the names of its folders, 6 in `cats@2/black@3`."""
    below = path.relative_to(folder).parts if path.is_relative_to(folder) else ()
    product = 1
    for part in below[: None if path.is_dir() else -1]:
        if named := REPEATS.fullmatch(part):
            product *= int(named[1])
    return product


def why_unused(path: Path, used: set[Path]) -> str | None:
    """Why a file that is neither media nor a table is not used; None for one that belongs to a video that is.

    Args:
        path: of the file.
        used: captions that are, and the videos, images and folders with one.
    """
    end = path.suffix.lower()
    if path in used:
        return None
    if end in SUBTITLES:
        # Of a language too: a.en.srt belongs to a.mp4.
        stems = {path.name.split(".")[0], path.stem, path.with_suffix("").stem}
        mine = any(other.parent == path.parent and other.stem in stems for other in used)
        return None if mine else "it has subtitles of no video that is used"
    if end in TEXTS:
        return "it is text, and no video, image or folder of frames beside it has its name"
    if end in (".json", ".jsonl", ".csv", ".parquet"):
        return f"captions are read from {', '.join(TABLES)} and from {' and '.join(TEXTS)} files"
    return f"its ending {end} is not that of a video or an image" if end else "its name has no ending"
