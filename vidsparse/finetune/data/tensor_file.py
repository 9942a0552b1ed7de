"""Files of one tensor each, and of others beside it, which are complete or absent."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from vidsparse.atomic import replacing

NAME, SUFFIX = "tensor", ".safetensors"
STALE = 3600  # seconds, more than any live process takes to write one file


def write(path: Path, tensors: torch.Tensor | Mapping[str, torch.Tensor]) -> None:
    """Write tensors under a temporary name, then rename it.

    Args:
        path: of the file.
        tensors: one, or several by name, of which one is named `NAME`.

    Raises:
        OSError: the disk is full, or the folder cannot be written; other files do not change.
    """
    named = {NAME: tensors} if isinstance(tensors, torch.Tensor) else tensors
    try:
        with replacing(path) as temporary:
            # Serialised first: the writer of safetensors does not raise OSError if the disk is full.
            temporary.write_bytes(save({name: tensor.cpu().contiguous() for name, tensor in named.items()}))
    except OSError as error:
        reason = error.strerror or error
        raise OSError(
            f"cannot write {path}: {reason}; earlier files are kept, and will not be computed again"
        ) from error


def read(path: Path) -> torch.Tensor:
    """The main tensor of a file, on the CPU."""
    return read_all(path)[NAME]


def read_all(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file by name, on the CPU."""
    # Not memory-mapped: a mapped file that shrinks or is removed crashes the process.
    return load(path.read_bytes())


def shape(path: Path) -> tuple[int, ...] | None:
    """The shape of a file's tensor, from its header; None if the file does not exist or is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return tuple(file.get_slice(NAME).get_shape())
    except (FileNotFoundError, SafetensorError):
        return None


def sweep(folder: Path) -> None:
    """Remove half-written files of killed processes; younger ones may belong to a live process, and are kept."""
    for leftover in folder.glob(f".*{SUFFIX}"):
        try:
            if time.time() - leftover.stat().st_mtime > STALE:
                leftover.unlink()
        except FileNotFoundError:
            continue  # another process swept it
