"""Notes and progress on stderr, so that stdout holds results alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def is_first() -> bool:
    """Whether this process speaks and writes: of those that torchrun starts, the first alone does."""
    return os.environ.get("RANK", "0") == "0"


def note(text: str) -> None:
    """Print one line that a user should know of."""
    if is_first():
        print("note:", text, file=sys.stderr)


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural unless it is 1."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def live_console() -> Console:
    """For progress bars and spinners: silent where stderr is not a terminal, such as in a log."""
    from rich.console import Console

    return Console(stderr=True, quiet=not (is_first() and sys.stderr.isatty()))


def progress(text: str, *, transient: bool = False, disable: bool = False) -> Progress:
    """Progress bars, one for each task; the text, a format of rich, comes after the count."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    name = TextColumn("{task.description}", markup=False)
    columns = name, BarColumn(), MofNCompleteColumn(), TextColumn(text), TimeElapsedColumn(), TimeRemainingColumn()
    return Progress(*columns, console=live_console(), transient=transient, disable=disable)


@contextmanager
def sampling_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar that starts anew with each task; call it with the task, the steps that are done, and all steps."""
    with progress("steps", transient=True) as bar:
        task = bar.add_task("")

        def show(name: str, done: int, steps: int) -> None:
            if done == 0:
                bar.reset(task, total=steps)
            bar.update(task, completed=done, description=name if done < steps else f"{name}: decoding")

        yield show
