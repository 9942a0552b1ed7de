"""The captions of a folder of videos: `metadata.jsonl` as in Hugging Face's `videofolder`, or one .txt per video."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from vidsparse.finetune.data.clips import Skipped
from vidsparse.generation.media import SUFFIXES

METADATA = "metadata.jsonl"
EXAMPLE = '{"file_name": "a.mp4", "caption": "a cat on a roof"}'


def read_captions(folder: Path) -> tuple[dict[Path, str], list[Skipped]]:
    """Read the captions of the videos in a folder and below it, in the order of their paths.

    Returns:
        The captions, and what was skipped: a video without a caption, or a name in `metadata.jsonl` without a file.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: a line of `metadata.jsonl` that cannot be read, or two captions for one video.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} exists; give one with videos and their captions")
    found: dict[Path, tuple[str, str]] = {}
    for path, caption, source in (*_from_metadata(folder), *_from_texts(folder)):
        before, where = found.setdefault(path, (caption, source))
        if before and caption and before != caption:
            raise ValueError(
                f"two captions for {path}: {before!r} in {where}, {caption!r} in {source}; remove one of them"
            )
        found[path] = (before or caption, where)
    captions, skipped = dict[Path, str](), list[Skipped]()
    for path, (caption, source) in sorted(found.items()):
        if not path.is_file():
            skipped.append(Skipped(path, f"there is no such file, but {source} names it"))
        elif not caption:
            skipped.append(Skipped(path, f"it has no caption: neither in {METADATA} nor in {path.stem}.txt beside it"))
        else:
            captions[path] = caption
    return captions, skipped


def _from_metadata(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """Path, caption and source for every line of each `metadata.jsonl`; names are relative to that file's folder."""
    for metadata in sorted(folder.rglob(METADATA)):
        for number, line in enumerate(_read_text(metadata).split("\n"), 1):
            if not line.strip():
                continue
            source = f"line {number} of {metadata}"
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{source} is not valid JSON ({error}); write a line such as {EXAMPLE}") from error
            name = entry.get("file_name") if isinstance(entry, dict) else None
            if not name or not isinstance(name, str):
                raise ValueError(f"{source} has no file_name; write a line such as {EXAMPLE}")
            caption = entry.get("caption", entry.get("text")) or ""
            if not isinstance(caption, str):
                raise ValueError(f"{source} has the caption {caption!r}, which is not text; write {EXAMPLE}")
            yield Path(os.path.normpath(metadata.parent / name)), caption.strip(), source


def _from_texts(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """The same for every video, from the .txt beside it; an empty caption if there is no such file."""
    for path in folder.rglob("*"):
        # Files that macOS creates beside others begin with a dot.
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file():
            text = path.with_suffix(".txt")
            yield Path(os.path.normpath(path)), _read_text(text).strip() if text.is_file() else "", str(text)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8") from error
