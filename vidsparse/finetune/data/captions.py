"""What a folder holds to learn from: its videos, images and folders of frames, each with its captions."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vidsparse.finetune.data.clips import Skipped
from vidsparse.finetune.data.listing import IMAGES, TABLES, Listing, list_folder, repeats_of, texts_beside, why_unused
from vidsparse.finetune.data.tables import read_table, read_text


@dataclass(frozen=True)
class Entry:
    """A video, an image or a folder of frames, or a part of one, with its captions.

    Attributes:
        path: of it.
        captions: of it, one or more.
        start, end: seconds from its beginning, of the part that is used; None is the beginning and the end of it.
        repeats: how many times it counts.
    """

    path: Path
    captions: tuple[str, ...]
    start: float | None = None
    end: float | None = None
    repeats: int = 1


def read_entries(folder: Path, lines: bool = False, without: Path | None = None) -> tuple[list[Entry], list[Skipped]]:
    """Read what a folder holds, in the order of the paths.

    Args:
        folder: to read, with all below it.
        lines: whether each line of a .txt is a caption of its own.
        without: a folder below it that is passed over, such as a cache.

    Returns:
        The entries, and every other file with the reason why it is not used: a video without a caption, a name in a
        table without a file, a file that is neither a video nor an image.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: a line of a table that cannot be read, or two captions for one video.
    """
    if not folder.is_dir():
        if folder.exists():
            raise NotADirectoryError(f"{folder} is a file; give the folder that holds the videos and their captions")
        raise FileNotFoundError(f"no folder {folder} exists; give one with videos and their captions")
    folder = Path(os.path.normpath(folder))
    listing = list_folder(folder, without)
    texts = _beside(listing, lines)
    found: dict[tuple[Path, float | None, float | None], tuple[tuple[str, ...], str]] = {}
    for row in (row for table in listing.tables for row in read_table(table)):
        part = row.path, row.start, row.end
        found[part] = _agreed(row.path, found.get(part), (row.captions, row.source))
    named = {path for path, *_ in found}
    for path, (text, captions) in texts.items():
        # A .txt is of the whole video: parts with captions of their own keep them.
        for part in [part for part in found if part[0] == path] or [(path, None, None)]:
            before, source = found.get(part, ((), str(text)))
            if not before or part[1:] == (None, None):
                found[part] = _agreed(path, (before, source), (captions, str(text)))
    frames = {path for path, *_ in found if path.is_dir()}
    for path in listing.media:
        if path not in named and path not in texts and path.parent not in frames:
            found[path, None, None] = (), ""
    entries, skipped = list[Entry](), list[Skipped]()
    for (path, start, end), (captions, source) in sorted(found.items(), key=lambda item: (item[0][0], item[0][1] or 0)):
        if not path.exists():
            skipped.append(Skipped(path, f"there is no such file, but {source} names it"))
        elif not captions:
            missing = f"it has no caption: write one to {path.stem}.txt beside it, or to a table such as {TABLES[0]}"
            skipped.append(Skipped(path, missing))
        else:
            entries.append(Entry(path, captions, start, end, repeats_of(path, folder)))
    used = {entry.path for entry in entries} | {text for text, _ in texts.values()}
    reasons = ((path, why_unused(path, used)) for path in listing.others)
    return entries, [*skipped, *(Skipped(path, reason) for path, reason in reasons if reason is not None)]


def _beside(listing: Listing, lines: bool) -> dict[Path, tuple[Path, tuple[str, ...]]]:
    """For each video, image and folder of frames with a text file beside it: that file, and the captions in it."""
    others, found = {*listing.others}, dict[Path, tuple[Path, tuple[str, ...]]]()
    pictured = {path.parent for path in listing.media if path.suffix.lower() in IMAGES}
    for path in (*listing.media, *(folder for folder in listing.folders if folder in pictured)):
        text = next((text for text in texts_beside(path) if text in others), None)
        if text is not None:
            said = read_text(text).strip()
            parts = said.splitlines() if lines else [said]
            captions = dict.fromkeys(part.strip() for part in parts if part.strip())
            found[path] = text, tuple(captions)
    return found


def _agreed(
    path: Path, before: tuple[tuple[str, ...], str] | None, after: tuple[tuple[str, ...], str]
) -> tuple[tuple[str, ...], str]:
    """The captions that two sources say, each with its name.

    Raises:
        ValueError: they contradict each other.
    """
    if before is None or not before[0]:
        return after if before is None or after[0] else before
    if after[0] and after[0] != before[0]:
        texts = [", ".join(map(repr, captions)) for captions, _ in (before, after)]
        raise ValueError(
            f"two captions for {path}: {texts[0]} in {before[1]}, {texts[1]} in {after[1]}; remove one of them"
        )
    return before
