"""Files of one tensor each, and of others beside it, which are complete or absent.

Of a tensor beside it that is all zero, a file holds the shape alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from vidsparse.atomic import replacing
from vidsparse.finetune.families.task import MAIN

SUFFIX = ".safetensors"
ZEROS = "zeros"  # key of a file's header: name -> dtype and shape of what is all zero
STALE = 3600  # seconds, more than any live process takes to write one file


def write(path: Path, tensors: torch.Tensor | Mapping[str, torch.Tensor]) -> None:
    """Write tensors under a temporary name, then rename it.

    Args:
        path: of the file.
        tensors: one, or several by name, of which one is named `MAIN`.

    Raises:
        OSError: the disk is full, or the folder cannot be written; other files do not change.
    """
    named = {MAIN: tensors} if isinstance(tensors, torch.Tensor) else tensors
    zeros = {
        name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        for name, tensor in named.items()
        if name != MAIN and not tensor.any()
    }
    stored = {name: tensor.cpu().contiguous() for name, tensor in named.items() if name not in zeros}
    try:
        with replacing(path) as temporary:
            # Serialised first: the writer of safetensors does not raise OSError if the disk is full.
            temporary.write_bytes(save(stored, {ZEROS: json.dumps(zeros)} if zeros else None))
    except OSError as error:
        reason = error.strerror or error
        raise OSError(
            f"cannot write {path}: {reason}; earlier files are kept, and will not be computed again"
        ) from error


def read(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file by name, on the CPU; one is named `MAIN`."""
    # Not memory-mapped: a mapped file that shrinks or is removed crashes the process.
    content = path.read_bytes()
    return load(content) | {
        name: torch.zeros(shape, dtype=getattr(torch, dtype)) for name, (dtype, shape) in _zeros_in(content).items()
    }


def _zeros_in(content: bytes) -> dict[str, tuple[str, list[int]]]:
    """What the header of a file says is all zero: name -> dtype and shape."""
    length = int.from_bytes(content[:8], "little")
    about = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    found: dict[str, tuple[str, list[int]]] = json.loads(about.get(ZEROS, "{}"))
    return found


def shape(path: Path) -> tuple[int, ...] | None:
    """The shape of a file's tensor, from its header; None if the file does not exist or is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return tuple(file.get_slice(MAIN).get_shape())
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
