"""Files that are whole under their name, or missing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

STEM, SUFFIX = 40, 16  # bytes of a name that its temporary name repeats at most


@contextmanager
def replacing(path: Path, suffix: str | None = None) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which takes the name `path` on success and is removed otherwise.

    Where `path` is a link, the file that it leads to is replaced. The temporary name is `.STEM-....SUFFIX`, with a
    stem cut short: a file system that takes the name `path` takes this one too. The bytes are on the disk before the
    file has its name, so that a file is whole also after a power failure. A process that is killed leaves the temporary
    file; `leftovers` finds it.

    Args:
        path: of the file that is written.
        suffix: of the temporary file; by default that of `path`, from which many writers take the format.
    """
    path = path.resolve()
    suffix = path.suffix if suffix is None else suffix
    end = suffix if len(os.fsencode(suffix)) <= SUFFIX else ""
    temporary = path.with_name(f"{_beginning(path)}-{uuid4().hex[:8]}{end}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def leftovers(path: Path) -> list[Path]:
    """Temporary files of killed processes that were writing `path`, and of any that is writing it now."""
    path = path.resolve()
    return [other for other in path.parent.iterdir() if other.name.startswith(f"{_beginning(path)}-")]


def _beginning(path: Path) -> str:
    """How the temporary names of a file begin; those of files with another name begin otherwise."""
    stem = path.stem
    while len(os.fsencode(stem)) > STEM:
        stem = stem[:-1]
    return f".{stem}-{blake2b(os.fsencode(path.name), digest_size=4).hexdigest()}"
