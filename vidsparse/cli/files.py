"""Output files: checked before the long work, and never left half-written."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from vidsparse.atomic import replacing

OUTPUTS = Path("outputs")  # the folder of videos that were given no name
OVERWRITE_HELP = "Replace files that are there."


def check_output(path: Path | None, *suffixes: str, overwrite: bool = False) -> None:
    """Refuse a path that a file cannot be written to, with the reason; None passes.

    Raises:
        ValueError: another suffix than those of its formats, where some are given.
        FileExistsError: a file is there, and may not be replaced.
        OSError: a directory, a device, a missing folder, a folder without write permission, or a name that is too long.
    """
    if path is None:
        return
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a directory")
    if path.exists() and not path.is_file():
        raise OSError(f"cannot write {path}: it is a device or a pipe, and a file would take its place")
    check_suffix(path, *suffixes)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} does not exist")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} is there already; give another name, or --overwrite to replace it")
    _check_leave(path, path.parent)


def check_suffix(path: Path, *suffixes: str) -> None:
    """Refuse another suffix than these, where there are some.

    Raises:
        ValueError: says which there are.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"cannot write {path}: its name must end in {' or '.join(suffixes)}")


def free_video(prompt: str, seed: int, of: str = "", *, overwrite: bool = False) -> Path:
    """Where a video goes that was given no name: its folder is made, such as "outputs/a-red-circle-0.mp4".

    Args:
        prompt, seed: of the video.
        of: the end of the name, such as "-compare".
        overwrite: replace the file of that name. By default, where it is taken, the name ends in -2, -3, ...
    """
    from vidsparse.generation.prompts import first_words

    OUTPUTS.mkdir(exist_ok=True)
    return free_path(OUTPUTS / f"{first_words(prompt) or 'video'}-{seed}{of}.mp4", overwrite=overwrite)


def free_path(path: Path, *, overwrite: bool = False) -> Path:
    """The path, or if a file is there that may not be replaced, the first free one that ends in -2, -3, ..."""
    if overwrite or not path.exists():
        return path
    return next(new for n in itertools.count(2) if not (new := path.with_stem(f"{path.stem}-{n}")).exists())


def check_folder(path: Path) -> None:
    """Refuse a folder that files cannot be written to; it and those above it may be missing.

    Raises:
        OSError: a file, or a folder without write permission.
    """
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"cannot write to {path}: it is a file, and a folder is needed")
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
