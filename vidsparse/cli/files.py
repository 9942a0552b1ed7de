"""Output files: checked before the long work, and never left half-written."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from vidsparse.atomic import replacing


def check_output(path: Path | None, suffix: str | None = None) -> None:
    """Refuse a path that a file cannot be written to, with the reason; None passes.

    Raises:
        ValueError: another suffix than the format's.
        OSError: a directory, a device, a missing folder, a folder without write permission, or a name that is too long.
    """
    if path is None:
        return
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a directory")
    if path.exists() and not path.is_file():
        raise OSError(f"cannot write {path}: it is a device or a pipe, and a file would take its place")
    if suffix is not None and path.suffix.lower() != suffix:
        raise ValueError(f"cannot write {path}: its name must end in {suffix}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} does not exist")
    _check_leave(path, path.parent)


def check_folder(path: Path) -> None:
    """Refuse a folder that files cannot be written to; it and those above it may be missing.

    Raises:
        OSError: a file, or a folder without write permission.
    """
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"cannot write to {path}: it is a file, and --out names a folder")
    above = path.absolute()
    _check_leave(path, next(folder for folder in (above, *above.parents) if folder.exists()))


def _check_leave(path: Path, folder: Path) -> None:
    try:
        with TemporaryFile(dir=folder.resolve()):
            pass
    except OSError as error:
        raise PermissionError(f"cannot write {path}: {error.strerror} in the folder {folder}") from error


def check_distinct(*paths: Path | None) -> None:
    """Refuse two outputs with one name: the second would replace the first."""
    named = [path.resolve() for path in paths if path is not None]
    twice = {path for path in named if named.count(path) > 1}
    if twice:
        raise ValueError(f"two outputs would both be {twice.pop()}; name them apart")


def write_json(path: Path, data: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")
