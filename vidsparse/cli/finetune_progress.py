"""How far a training is: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from vidsparse.cli.messages import draws, plain_progress, progress, say
from vidsparse.cli.numbers import duration_text

TRAINING = "training"


class ShowTraining(Protocol):
    """Shows how far a task is: its name, what is done, all there is to do, and the loss of a training."""

    def __call__(self, task: str, done: int, total: int, loss: float | None) -> None: ...


@contextmanager
def training_progress(main: bool, every: int) -> Iterator[ShowTraining]:
    """A progress bar for each task, or lines where stderr is not a terminal; only one process draws.

    Args:
        main: whether this process is the one.
        every: training steps between two lines.
    """
    if not draws():
        yield _lines(every, plain_progress())
        return
    tasks: dict[str, Any] = {}
    with progress("{task.fields[loss]}", disable=not main) as bars:

        def show(task: str, done: int, total: int, loss: float | None) -> None:
            if task not in tasks:
                tasks[task] = bars.add_task(task, total=total, loss="")
            bars.update(tasks[task], completed=done, total=total, loss=_loss(loss))

        yield show


def _lines(every: int, others: Callable[[str, int, int], None]) -> ShowTraining:
    """A line for the first training step and each that the log has; other tasks have a line for each tenth."""
    first: list[tuple[int, float]] = []  # step and time of the first call: what came before it took other time

    def show(task: str, done: int, total: int, loss: float | None) -> None:
        if task != TRAINING:
            others(task, done, total)
            return
        now = time.perf_counter()
        if not first:
            first.append((done, now))
        elif done % every and done != total:
            return
        parts = [f"step {done:,} of {total:,}", _loss(loss)]
        if done > first[0][0]:
            each = (now - first[0][1]) / (done - first[0][0])
            parts += [f"{each:.3g} seconds a step"]
            parts += [f"{duration_text(each * (total - done))} left"] if done < total else []
        say(", ".join(part for part in parts if part))

    return show


def _loss(loss: float | None) -> str:
    return "" if loss is None else f"loss {loss:.4f}"
