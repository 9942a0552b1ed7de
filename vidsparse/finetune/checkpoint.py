"""Checkpoints of a training: each file is complete or absent, and the newest readable one is used."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vidsparse.atomic import replacing

NAME = "step-{:07d}.pt"


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any], keep: int) -> None:
    """Write the state of a step, and remove all checkpoints but the newest `keep`.

    Raises:
        OSError: the disk is full, or the folder cannot be written; earlier checkpoints stay as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME.format(step)
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(dict(state, step=step), file)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError if the disk is full
        raise OSError(
            f"cannot write checkpoint {path}: {error}; the earlier ones are whole: the same command resumes from them"
        ) from error
    # Checkpoints of later steps could not be read, and were skipped.
    paths = _paths(folder)
    later = paths[paths.index(path) + 1 :]
    for old in [*later, *paths[: max(0, len(paths) - len(later) - keep)]]:
        old.unlink()


def load_checkpoint(folder: Path) -> tuple[dict[str, Any] | None, list[Path]]:
    """The newest readable checkpoint or None, and the paths of those that were skipped as damaged.

    Half-written files of a killed process have another name, and are removed.
    """
    for leftover in folder.glob(".step-*.pt"):
        leftover.unlink(missing_ok=True)
    broken: list[Path] = []
    for path in reversed(_paths(folder)):
        try:
            return torch.load(path, weights_only=True, map_location="cpu"), broken
        except OSError:
            raise
        except Exception:  # damaged bytes raise many kinds of errors
            broken.append(path)
    return None, broken


def _paths(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*.pt") if re.fullmatch(r"step-\d{7,}\.pt", path.name))
