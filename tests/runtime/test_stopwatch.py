"""The stopwatch, on a CPU and on the time line of a CUDA device."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from vidsparse.runtime.stopwatch import Stopwatch


def test_seconds_of_a_cpu_end_with_the_last_stop() -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    time.sleep(0.01)
    first = stopwatch.stop().seconds()
    time.sleep(0.01)
    assert first >= 0.01 and stopwatch.seconds() == first
    assert stopwatch.stop().seconds() >= first + 0.01


def test_a_cuda_device_is_asked_on_its_stream_and_waited_for_at_the_end_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[Any] = []

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing
            self.number = len([x for x in happened if x[0] == "record"])

        def record(self, stream: str) -> None:
            happened.append(("record", stream))

        def synchronize(self) -> None:
            happened.append(("wait", self.number))

        def elapsed_time(self, end: Event) -> float:
            return 1000.0 * (end.number - self.number)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    stopwatch = Stopwatch(torch.device("cuda:1")).stop()
    assert happened == [("record", "stream of cuda:1")] * 2
    assert stopwatch.seconds() == 1.0 and happened[2:] == [("wait", 1)]
