"""The log of a training: a JSON line for every few steps, as of one run also where it was broken off."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from vidsparse.atomic import replacing

NAME = "log.jsonl"


def append(folder: Path, line: Mapping[str, float]) -> None:
    """Raises `OSError` where the disk is full; the lines of before stay."""
    path = folder / NAME
    try:
        with path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}; the same command goes on from the checkpoint") from error


def forget_after(folder: Path, step: int) -> None:
    """Remove lines of steps that are computed again, and half a line of a process that was killed."""
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
