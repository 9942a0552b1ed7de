"""A training that is told to stop, by Ctrl-C or by a scheduler, finishes its step and saves it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO = 1.0  # seconds in which a second SIGINT is the launcher passing on the first: torchrun sends it again


class Stopped(KeyboardInterrupt):
    """A training was stopped by a signal.

    Attributes:
        signal: its number; the exit code of a command is 128 more.
        step: the last that is saved, now or by an earlier call; None: none is.
    """

    def __init__(self, number: int, step: int | None = None):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal, self.step = number, step


class Stop:
    """The signals that have arrived.

    Attributes:
        asked: the signal that asked the training to stop; 0: none.
        saved: the last step that is saved, which the training says; None: none is.
    """

    def __init__(self) -> None:
        self.asked, self._since, self._patient = 0, 0.0, False
        self.saved: int | None = None

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Within the context, a first signal only sets `asked`. A second SIGINT, and any signal outside, raise."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal.

        Raises:
            Stopped: outside of `patient`, or at a second SIGINT.
        """
        del frame
        echo = time.monotonic() - self._since < ECHO
        if not self._patient or (self.asked and number == signal.SIGINT and not echo):
            raise Stopped(number, self.saved)
        if not self.asked:
            self.asked, self._since = number, time.monotonic()


@contextmanager
def stopping() -> Iterator[Stop]:
    """Within the context, SIGINT and SIGTERM go to the object that it yields; in a thread they stay as they are."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[signal.Signals, Any] = {number: signal.signal(number, stop.receive) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
