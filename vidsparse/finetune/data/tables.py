"""Captions of many videos in one file: JSON lines or CSV, with the column names that people have."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILES = ("file_name", "video", "video_path", "image", "image_path", "file", "path")
CAPTIONS = ("caption", "text", "prompt", "captions")
EXAMPLE = '{"file_name": "a.mp4", "caption": "a cat on a roof"}'


@dataclass(frozen=True)
class Row:
    """What a line says of a video.

    Attributes:
        path: of the video.
        captions: of it; none if the line has none.
        start, end: seconds from its beginning, of the part that is used; None is the beginning and the end of it.
        source: the line, for messages.
    """

    path: Path
    captions: tuple[str, ...]
    start: float | None
    end: float | None
    source: str


def read_table(path: Path) -> Iterator[Row]:
    """The rows of a `.jsonl` or `.csv` file; names of videos are relative to its folder.

    Raises:
        ValueError: with the file and the line.
    """
    for source, entry in _json_lines(path) if path.suffix.lower() == ".jsonl" else _csv_lines(path):
        name = next((entry[key] for key in FILES if entry.get(key)), None)
        if not name or not isinstance(name, str):
            raise ValueError(f"{source} has no file_name; write a line such as {EXAMPLE}")
        start, end = _seconds(entry, "start", source), _seconds(entry, "end", source)
        if end is not None and not end > (start or 0):
            raise ValueError(f"{source} ends at {end:g} seconds, and begins at {start or 0:g}; end must be later")
        captions = _captions(next((entry[key] for key in CAPTIONS if entry.get(key)), ()), source)
        yield Row(Path(os.path.normpath(path.parent / name)), captions, start, end, source)


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8") from error


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        source = f"line {number} of {path}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{source} is not valid JSON ({error}); write a line such as {EXAMPLE}") from error
        if not isinstance(entry, dict):
            raise ValueError(f"{source} has no file_name; write a line such as {EXAMPLE}")
        yield source, entry


def _csv_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        names = [name.strip() for name in rows.fieldnames or ()]
        if not {*names} & {*FILES}:
            raise ValueError(
                f"line 1 of {path} names the columns {', '.join(names) or 'none'}; one must be file_name, and one "
                "caption"
            )
        rows.fieldnames = names
        for entry in rows:
            source = f"line {rows.line_num} of {path}"
            if None in entry:
                raise ValueError(
                    f"{source} has {len(names) + len(entry[None])} values for {len(names)} columns; put a caption with "
                    'a comma in quotes, "like, this"'
                )
            if any(entry.values()):
                yield source, {key: (value or "").strip() for key, value in entry.items()}
    except csv.Error as error:
        raise ValueError(f"line {rows.reader.line_num} of {path} is not valid CSV: {error}") from error


def _captions(found: Any, source: str) -> tuple[str, ...]:
    several = found if isinstance(found, (list, tuple)) else [found]
    if not all(isinstance(caption, str) for caption in several):
        raise ValueError(f"{source} has the caption {found!r}, which is not text; write {EXAMPLE}")
    return tuple(dict.fromkeys(caption.strip() for caption in several if caption.strip()))


def _seconds(entry: dict[str, Any], key: str, source: str) -> float | None:
    value = entry.get(key)
    if value is None or value == "":
        return None
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{source} has the {key} {value!r}; write seconds from the beginning, such as 12.5")
    return seconds
