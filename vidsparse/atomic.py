"""Files that are whole under their name, or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder that takes the name `path` when all went well, and else goes away.

    Where `path` is a link, the file that it leads to is replaced. The temporary name starts with a dot and keeps the
    suffix: `.STEM-....SUFFIX`. A process that is killed leaves it.
    """
    path = path.resolve()
    temporary = path.with_name(f".{path.stem}-{uuid4().hex}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
