"""The ffmpeg that imageio-ffmpeg brings, or that IMAGEIO_FFMPEG_EXE names, as a child process."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from typing import IO, cast

QUIET = ("-hide_banner", "-nostdin")
PRINTER = re.compile(r"^(\[[^]]* @ 0x[0-9a-f]+\] ?)+")


def run(*arguments: str) -> tuple[str, str]:
    """Run ffmpeg to its end. Returns what it wrote to stdout and to stderr, whether it failed or not."""
    done = subprocess.run([_executable(), *QUIET, *arguments], capture_output=True, check=False)
    return done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def stream(size: int, *arguments: str) -> Iterator[bytes]:
    """What ffmpeg writes to stdout, in pieces of `size` bytes; it is stopped when no more is asked for.

    Raises:
        ValueError: ffmpeg failed, with its reason, after the pieces that it wrote.
    """
    # A pipe for stderr could fill up while stdout is read.
    with tempfile.TemporaryFile() as said:
        command = [_executable(), *QUIET, "-loglevel", "error", *arguments, "-f", "rawvideo", "pipe:1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said) as process:
            ended, written = False, cast(IO[bytes], process.stdout)
            try:
                while len(piece := written.read(size)) == size:
                    yield piece
                ended = True
            finally:
                if not ended:
                    process.kill()
        if process.returncode > 0:
            said.seek(0)
            raise ValueError(reason(said.read().decode(errors="replace")))


def reason(said: str) -> str:
    """Why ffmpeg failed: the last line that it printed, without the address of the part that printed it."""
    if "matches no streams" in said:
        return "it has no video in it"
    lines = [line for line in said.strip().splitlines() if line.strip() and "Conversion failed" not in line]
    if not lines:
        return "it cannot be decoded, for no reason that ffmpeg gives"
    return f"it cannot be decoded: {PRINTER.sub('', lines[-1])}"


@lru_cache(maxsize=1)
def filters() -> frozenset[str]:
    """The names of the filters that this ffmpeg has."""
    found = (line.split() for line in run("-filters")[0].splitlines())
    return frozenset(words[1] for words in found if len(words) > 2 and "->" in words[2])


@lru_cache(maxsize=1)
def _executable() -> str:
    from imageio_ffmpeg import get_ffmpeg_exe

    path: str = get_ffmpeg_exe()
    return path
