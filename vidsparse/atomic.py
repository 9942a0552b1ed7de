"""Files that are whole under their name, or missing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

STEM, SUFFIX = 40, 16  # bytes of a name that its temporary name repeats at most
SHORT = 100  # bytes of a name that every file system takes


@contextmanager
def replacing(path: Path, suffix: str | None = None) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which takes the name `path` on success and is removed otherwise.

    Where `path` is a link, the file that it leads to is replaced. The temporary name is `.STEM-....SUFFIX`, with a
    stem cut short: a file system that takes the name `path` takes this one too. A process that is killed leaves the
    temporary file.

    Args:
        path: of the file that is written.
        suffix: of the temporary file; by default that of `path`, from which many writers take the format.
    """
    path = path.resolve()
    suffix = path.suffix if suffix is None else suffix
    end = f"-{uuid4().hex[:12]}{suffix if len(os.fsencode(suffix)) <= SUFFIX else ''}"
    room, stem = min(STEM, max(SHORT, len(os.fsencode(path.name))) - len(os.fsencode(end)) - 1), path.stem
    while stem and len(os.fsencode(stem)) > room:
        stem = stem[:-1]
    temporary = path.with_name(f".{stem}{end}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
