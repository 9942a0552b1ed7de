"""Measures seconds on the time line of a device: a CUDA device runs behind the program that feeds it."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Starts when it is made. On a CUDA device it measures the stream that is current then.

    Attributes:
        device: where the work is computed.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self._times: list[float] = []
        self._events: list[torch.cuda.Event] = []
        self._mark()

    def stop(self) -> Stopwatch:
        """Note the end, without synchronising; returns this stopwatch."""
        self._mark()
        return self

    def seconds(self) -> float:
        """Seconds from the start to the end; synchronises with a CUDA device."""
        if self._stream is None:
            return self._times[-1] - self._times[0]
        self._events[-1].synchronize()
        return float(self._events[0].elapsed_time(self._events[-1])) / 1000

    def _mark(self) -> None:
        if self._stream is None:
            self._times.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        self._events.append(event)
