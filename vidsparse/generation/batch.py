"""Many videos in one folder: which are made, which failed, and who makes the rest.

Processes share the folder and nothing else, whoever started them, on however many machines. Each takes the first
video that is neither made nor taken. The lock of a process that dies is free again.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vidsparse.atomic import leftovers, replacing
from vidsparse.generation.prompts import ERROR


@dataclass(frozen=True)
class Folder:
    """The videos of a folder, by name. Of each there are:

    * `NAME.mp4`, the video;
    * `NAME.json`, its report, which is written last: where both are, the video is made;
    * `NAME.error.json`, why it could not be made: `reason`, a line, and `traceback`;
    * `.NAME.lock` while a process makes it.
    """

    path: Path

    def video(self, name: str) -> Path:
        return self.path / f"{name}.mp4"

    def report(self, name: str) -> Path:
        return self.path / f"{name}.json"

    def error(self, name: str) -> Path:
        return self.path / f"{name}{ERROR}.json"

    def lock(self, name: str) -> Path:
        return self.path / f".{name}.lock"

    def is_made(self, name: str) -> bool:
        """Whether the video and its report are there."""
        return self.report(name).is_file() and self.video(name).is_file()

    def read_report(self, name: str) -> dict[str, Any] | None:
        """The report of a video that is made; None of one that is not, or whose report is damaged."""
        return _read(self.report(name)) if self.is_made(name) else None

    def read_reason(self, name: str) -> str | None:
        """Why a video could not be made; None where nothing failed."""
        error = _read(self.error(name))
        return None if error is None else str(error.get("reason"))

    def start(self, names: Iterable[str]) -> None:
        """Make the folder, and forget failures, damaged reports and the locks of processes that were killed.

        Processes that share the folder call it before they make anything. A video that one of them fails to make may
        be tried once more when another one starts.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for name in names:
            self.error(name).unlink(missing_ok=True)
            if self.is_made(name):
                _remove(self.lock(name))
            # Asked in this order, what another process has just made is not taken for damaged.
            if self.report(name).is_file() and self.read_report(name) is None:
                self.report(name).unlink(missing_ok=True)

    def make_all(
        self, names: Iterable[str], make: Callable[[str], None], failed: Callable[[str, Exception], None]
    ) -> None:
        """Make the videos that are not made. On return, each is made or has failed, here or in another process.

        Args:
            names: of the videos, in their order.
            make: writes the video of a name, then its report.
            failed: called with the name and the error of a video that failed; the others follow, unless it raises.
        """
        for seconds in (0, -1):  # first what is free, then what others have taken, for they may die
            for name in names:
                if not self._is_settled(name):
                    self._take(name, seconds, make, failed)

    def _is_settled(self, name: str) -> bool:
        return self.is_made(name) or self.error(name).is_file()

    def _take(
        self, name: str, seconds: float, make: Callable[[str], None], failed: Callable[[str, Exception], None]
    ) -> None:
        """Make a video unless another process does; wait so many seconds for that one, -1: until it ends."""
        try:
            with FileLock(self.lock(name), timeout=seconds):
                try:
                    if not self._is_settled(name):
                        self._make(name, make, failed)
                finally:
                    _remove(self.lock(name))  # who waits for it looks again whether the video is settled
        except Timeout:
            pass

    def _make(self, name: str, make: Callable[[str], None], failed: Callable[[str, Exception], None]) -> None:
        for path in (self.video(name), self.report(name), self.error(name)):
            for leftover in leftovers(path):
                leftover.unlink(missing_ok=True)
        try:
            make(name)
        except Exception as error:  # whatever one video causes, the others are to be made
            with replacing(self.error(name)) as temporary:
                data = {"reason": reason_of(error), "traceback": "".join(traceback.format_exception(error))}
                temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
            failed(name, error)


def reason_of(error: Exception) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _remove(lock: Path) -> None:
    with suppress(PermissionError):  # Windows removes no open file
        lock.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return data if isinstance(data, dict) else None
