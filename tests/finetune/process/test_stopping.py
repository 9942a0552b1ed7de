"""A training that a signal stops: its step is whole and saved, and the same call goes on from there."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from tiny_training import assert_same, train

from vidsparse.finetune import Stopped
from vidsparse.finetune.process import stopping
from vidsparse.finetune.process.stopping import Stop, stopping as watching


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_its_step(
    number: signal.Signals, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vidsparse.finetune.learner import Learner

    before = signal.getsignal(number)
    learn = Learner.learn

    def interrupted(self: Learner, step: int, *arguments: Any) -> Any:
        if step == 2:
            os.kill(os.getpid(), number)
            arguments = (arguments[0], self.asked_by_test)  # type: ignore[attr-defined]
        return learn(self, step, *arguments)

    whole = train(tmp_path / "whole", cache, steps=6)
    with monkeypatch.context() as patched:
        patched.setattr(Learner, "learn", interrupted)
        patched.setattr(Learner, "asked_by_test", number, raising=False)
        with pytest.raises(Stopped) as stop:
            train(tmp_path / "parts", cache, steps=6, save_every=100)
    assert (stop.value.signal, stop.value.step) == (number, 3)
    assert [path.name for path in (tmp_path / "parts/checkpoints").iterdir()] == ["step-0000003"]
    assert signal.getsignal(number) is before
    assert_same(train(tmp_path / "parts", cache, steps=6), whole)


def test_a_second_interrupt_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    stop = Stop()
    with stop.patient():
        stop.receive(signal.SIGINT)
        now[0] += 0.1
        stop.receive(signal.SIGINT)  # a launcher passes on what the terminal has sent to all
        now[0] += 5
        stop.receive(signal.SIGTERM)
        assert stop.asked == signal.SIGINT
        with pytest.raises(Stopped):
            stop.receive(signal.SIGINT)


def test_outside_of_steps_a_signal_stops_at_once() -> None:
    with watching() as stop, pytest.raises(Stopped) as stopped:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert stopped.value.step is None and not stop.asked


def test_a_thread_leaves_signals_alone() -> None:
    found: list[Any] = []

    def work() -> None:
        with watching():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]
