"""Notes and progress on stderr, so that stdout holds results alone."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


QUIET_HELP = "Print results and errors alone: no notes and no progress."
VERBOSE_HELP = "Print what ran in each step, what other libraries say, and where an error comes from."
LINES = 10  # of the progress of a task, where a bar cannot be drawn
_quiet = ContextVar("_quiet", default=False)
_verbose = ContextVar("_verbose", default=False)
_heard: ContextVar[list[str] | None] = ContextVar("_heard", default=None)


@contextmanager
def volume(*, quiet: bool, verbose: bool) -> Iterator[None]:
    """Within the context, where quiet: results and errors alone; where verbose: all that there is to say.

    Raises:
        ValueError: both.
    """
    if quiet and verbose:
        raise ValueError("--quiet and --verbose contradict each other; give one of them")
    before = _quiet.set(quiet), _verbose.set(verbose)
    try:
        yield
    finally:
        _quiet.reset(before[0])
        _verbose.reset(before[1])


def tells_all() -> bool:
    """Whether what is left out otherwise is printed too."""
    return speaks() and _verbose.get()


def speaks() -> bool:
    """Whether notes and progress are printed."""
    return is_first() and not _quiet.get()


def is_first() -> bool:
    """Whether this process speaks and writes: of those that torchrun starts, the first alone does."""
    return os.environ.get("RANK", "0") == "0"


def note(text: str) -> None:
    """Print one line that a user should know of."""
    if (heard := _heard.get()) is None:
        say(f"note: {text}")
    else:
        heard.append(text)


@contextmanager
def notes() -> Iterator[list[str]]:
    """Within the context, notes are collected in this list instead of printed."""
    heard: list[str] = []
    before = _heard.set(heard)
    try:
        yield heard
    finally:
        _heard.reset(before)


def say(text: str) -> None:
    """Print a line on stderr, unless told to be quiet."""
    if speaks():
        print(text, file=sys.stderr, flush=True)


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural unless it is 1."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def live_console() -> Console:
    """For progress bars and spinners: silent in a log, and where lines and bars of libraries would tear them."""
    from rich.console import Console

    return Console(stderr=True, quiet=not (speaks() and draws()))


def draws() -> bool:
    """Whether bars can be drawn: on a terminal where nothing else is printed."""
    return sys.stderr.isatty() and not tells_all()


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
def task_bar(unit: str, last: str = "") -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar that starts anew with each task; call it with the task, the steps that are done, and all steps.

    Where stderr is not a terminal, or the command is verbose, lines are printed instead.

    Args:
        unit: of the steps, in the plural.
        last: what goes on once the steps of a task are done, if anything.
    """
    if not draws():
        yield plain_progress()
        return
    with progress(unit, transient=True) as bar:
        task = bar.add_task("")

        def show(name: str, done: int, steps: int) -> None:
            if done == 0:
                bar.reset(task, total=steps)
            bar.update(task, completed=done, description=f"{name}: {last}" if last and done >= steps else name)

        yield show


def sampling_bar() -> AbstractContextManager[Callable[[str, int, int], None]]:
    """A `task_bar` of denoising, after which a video is decoded."""
    return task_bar("steps", "decoding")


class Show(Protocol):
    """Shows how far a task is: its name, the steps that are done, all steps, and what else there is to say."""

    def __call__(self, name: str, done: int, steps: int, more: str = "") -> None: ...


def plain_progress() -> Show:
    """Prints a line for each tenth of a task."""
    tenths: dict[str, int] = {}
    started: dict[str, float] = {}

    def show(name: str, done: int, steps: int, more: str = "") -> None:
        if done == 0 or name not in tenths:
            tenths[name], started[name] = 0, time.perf_counter()
        if steps and (tenth := done * LINES // steps) > tenths[name]:
            tenths[name] = tenth
            parts = f"{done:,} of {steps:,}", more, f"{time.perf_counter() - started[name]:.0f} seconds"
            say(f"{name}: {', '.join(part for part in parts if part)}")

    return show
