"""Checkpoints of a training: each folder is complete or absent, and the newest readable one is used.

A checkpoint `step-0000500` holds `state.pt`, from which the training resumes, and the LoRA of that step in the form of
diffusers. Earlier versions wrote one file `step-0000500.pt`, which is read too.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

NAME, STATE = "step-{:07d}", "state.pt"


def save_checkpoint(
    folder: Path, step: int, state: Mapping[str, Any], keep: int, write_lora: Callable[[Path], object] | None = None
) -> Path:
    """Write the state of a step, and remove all checkpoints but the newest `keep`.

    Args:
        folder: of all checkpoints.
        step: that is done.
        state: what `torch.load(weights_only=True)` reads back.
        keep: how many checkpoints stay.
        write_lora: writes the LoRA of this step to a folder.

    Returns:
        The folder of the checkpoint.

    Raises:
        OSError: the disk is full, or the folder cannot be written; earlier checkpoints stay as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME.format(step)
    temporary = folder / f".{path.name}-{uuid4().hex[:8]}"
    try:
        temporary.mkdir()
        with (temporary / STATE).open("wb") as file:
            torch.save(dict(state, step=step), file)
            os.fsync(file.fileno())
        if write_lora is not None:
            write_lora(temporary)
        for earlier in _paths(folder):  # of the same step, which could not be read
            if _step(earlier) == step:
                _remove(earlier)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError if the disk is full
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(
            f"cannot write checkpoint {path}: {error}; the earlier ones are whole: the same command resumes from them"
        ) from error
    # Checkpoints of later steps could not be read, and were skipped.
    paths = _paths(folder)
    later = paths[paths.index(path) + 1 :]
    for old in [*later, *paths[: max(0, len(paths) - len(later) - keep)]]:
        _remove(old)
    return path


def load_checkpoint(folder: Path) -> tuple[dict[str, Any] | None, list[Path]]:
    """The state of the newest readable checkpoint or None, and the paths of those that were skipped as damaged.

    What a killed process has half written has another name, and is removed.
    """
    for leftover in folder.glob(".step-*"):
        _remove(leftover)
    broken: list[Path] = []
    for path in reversed(_paths(folder)):
        try:
            file = path / STATE if path.is_dir() else path
            return torch.load(file, weights_only=True, map_location="cpu"), broken
        except FileNotFoundError:
            broken.append(path)
        except OSError:
            raise
        except Exception:  # damaged bytes raise many kinds of errors
            broken.append(path)
    return None, broken


def newest_step(folder: Path) -> int | None:
    """The step of the newest checkpoint by its name, whether it can be read or not; None without any."""
    return max(map(_step, _paths(folder)), default=None)


def _paths(folder: Path) -> list[Path]:
    paths = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{7,}(\.pt)?", path.name)]
    return sorted(paths, key=lambda path: (_step(path), path.name))


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
