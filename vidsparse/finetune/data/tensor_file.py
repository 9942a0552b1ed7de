"""Tensors in files that are complete under their name or not there at all."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from vidsparse.atomic import replacing

NAME, SUFFIX = "tensor", ".safetensors"
STALE = 3600  # seconds: no process that lives writes one file for so long


def write(path: Path, tensor: torch.Tensor) -> None:
    """Write a tensor under a temporary name, then rename it.

    Raises:
        OSError: the disk is full, or the folder cannot be written; other files stay as they are.
    """
    try:
        with replacing(path) as temporary:
            # Bytes first: safetensors' own writer does not say OSError where the disk is full.
            temporary.write_bytes(save({NAME: tensor.cpu().contiguous()}))
    except OSError as error:
        reason = error.strerror or error
        raise OSError(
            f"cannot write {path}: {reason}; what was written before is kept, and not computed again"
        ) from error


def read(path: Path) -> torch.Tensor:
    """The tensor of a file, on the CPU."""
    # Not mapped into memory: a mapped file that shrinks or goes away takes the process with it.
    return load(path.read_bytes())[NAME]


def shape(path: Path) -> tuple[int, ...] | None:
    """The shape of a file's tensor, from the file's header alone; None without a file, or with one that is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return tuple(file.get_slice(NAME).get_shape())
    except (FileNotFoundError, SafetensorError):
        return None


def sweep(folder: Path) -> None:
    """Remove what processes that were killed have left half-written; a younger file may still have its process."""
    for leftover in folder.glob(f".*{SUFFIX}"):
        try:
            if time.time() - leftover.stat().st_mtime > STALE:
                leftover.unlink()
        except FileNotFoundError:
            continue  # another process swept it
