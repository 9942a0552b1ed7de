"""The log of a training: one JSON line every few steps; a resumed run continues the same log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from vidsparse.atomic import replacing

NAME = "log.jsonl"


def append(folder: Path, line: Mapping[str, float]) -> None:
    """Append one line.

    Raises:
        OSError: the disk is full; earlier lines are kept.
    """
    path = folder / NAME
    try:
        with path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}; the same command resumes from the checkpoint") from error


def forget_after(folder: Path, step: int) -> None:
    """Remove the lines of steps that will be computed again, and the incomplete line of a killed process."""
    log = folder / NAME
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.is_file() else []
    kept = [line for line in lines if _step_of(line) <= step]
    if kept != lines:
        with replacing(log) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return float("inf")
