"""Checkpoints of a training: one file each, complete or not there, the newest that can be read is used."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vidsparse.atomic import replacing

NAME = "step-{:07d}.pt"


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any], keep: int) -> None:
    """Write the state of a step, and remove checkpoints but the newest `keep`.

    Raises:
        OSError: the disk is full, or the folder cannot be written; earlier checkpoints stay as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME.format(step)
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(dict(state, step=step), file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch's writer says RuntimeError where the disk is full
        raise OSError(
            f"cannot write checkpoint {path}: {error}; the earlier ones are whole: the same command goes on from them"
        ) from error
    # What is later than this step could not be read, and was passed over.
    paths = _paths(folder)
    later = paths[paths.index(path) + 1 :]
    for old in [*later, *paths[: max(0, len(paths) - len(later) - keep)]]:
        old.unlink()


def load_checkpoint(folder: Path) -> tuple[dict[str, Any] | None, list[Path]]:
    """The newest checkpoint that can be read, or None, and those that were passed over as broken.

    What a killed process has left half-written has another name, and is removed.
    """
    for leftover in folder.glob(".step-*.pt"):
        leftover.unlink(missing_ok=True)
    broken: list[Path] = []
    for path in reversed(_paths(folder)):
        try:
            return torch.load(path, weights_only=True, map_location="cpu"), broken
        except OSError:
            raise
        except Exception:  # bytes that are damaged are read as anything
            broken.append(path)
    return None, broken


def _paths(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*.pt") if re.fullmatch(r"step-\d{7,}\.pt", path.name))
