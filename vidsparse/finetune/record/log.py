"""The log of a training: one JSON line every few steps; a resumed run continues the same log."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vidsparse.atomic import replacing

NAME = "log.jsonl"


def append(folder: Path, line: Mapping[str, Any]) -> None:
    """Append one line of JSON; numbers that are not finite, which JSON does not have, become null.

    Raises:
        OSError: the disk is full; earlier lines are kept.
    """
    path = folder / NAME
    try:
        with path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(_plain(line), allow_nan=False) + "\n")
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}; the same command resumes from the checkpoint") from error


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of a log, without the incomplete one of a killed process; none where there is no log."""
    return [json.loads(line) for line in _lines(folder / NAME) if _step_of(line) < math.inf]


def forget_after(folder: Path, step: int) -> None:
    """Remove the lines of steps that will be computed again, and the incomplete line of a killed process."""
    log = folder / NAME
    lines = _lines(log)
    kept = [line for line in lines if _step_of(line) <= step]
    if kept != lines:
        with replacing(log) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


def flat(line: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a line as trackers take them: those of an inner object have its name and a slash before theirs."""
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{name}/")
        elif isinstance(value, (int, float)):
            yield f"{before}{name}", value


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
