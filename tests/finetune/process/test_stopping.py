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


def interrupting(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Let a signal arrive in a step, which the processes learn of."""
    from vidsparse.finetune.learner import Learner

    learn = Learner.learn

    def interrupted(self: Learner, step: int, before_video: Any, asked: int = 0) -> Any:
        return learn(self, step, before_video, signal.SIGINT if step == at else asked)

    monkeypatch.setattr(Learner, "learn", interrupted)


@pytest.mark.parametrize("saved", ["by this call", "by an earlier one", "never"])
def test_a_second_interrupt_says_what_is_saved(
    saved: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vidsparse.finetune.learner import Learner

    every = 100 if saved == "never" else 2
    if saved == "by an earlier one":
        train(tmp_path, cache, steps=2, save_every=2)
    learn = Learner.learn

    def interrupted(self: Learner, step: int, *arguments: Any) -> Any:
        if step == (2 if saved == "by an earlier one" else 3):
            os.kill(os.getpid(), signal.SIGINT)
            monkeypatch.setattr(stopping, "ECHO", -1.0)  # as if seconds had passed
            os.kill(os.getpid(), signal.SIGINT)
        return learn(self, step, *arguments)

    monkeypatch.setattr(Learner, "learn", interrupted)
    with pytest.raises(Stopped) as stop:
        train(tmp_path, cache, steps=6, save_every=every)
    assert stop.value.step == (None if saved == "never" else 2)


def test_an_interrupt_while_videos_are_encoded_says_what_is_saved(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()

    train(tmp_path, cache, steps=2)
    monkeypatch.setattr("vidsparse.finetune.job.encode", interrupted)
    with pytest.raises(Stopped) as stop:
        train(tmp_path, cache)
    assert stop.value.step == 2
    with pytest.raises(Stopped) as stop:
        train(tmp_path / "new", cache)
    assert stop.value.step is None


def test_a_stop_loses_no_sample_video(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = dict(steps=4, sample_every=2, sample_prompts=("a red circle",), sample_steps=1)
    train(tmp_path / "whole", cache, **asked)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        interrupting(patch, at=1)
        train(tmp_path / "parts", cache, **asked)
    first = tmp_path / "parts/samples/step-0000000-0.mp4"
    first.write_bytes(b"as it was")
    train(tmp_path / "parts", cache, **asked)
    assert first.read_bytes() == b"as it was", "what is there is not made again"
    videos = {run: sorted(path.name for path in (tmp_path / run / "samples").iterdir()) for run in ("whole", "parts")}
    assert videos["parts"] == videos["whole"] and len(videos["whole"]) == 3
    last = [tmp_path / run / "samples/step-0000002-0.mp4" for run in ("whole", "parts")]
    assert last[0].read_bytes() == last[1].read_bytes()
    last[1].unlink()  # as if it had been killed while it wrote the last one
    (tmp_path / "parts/samples/step-0000004-0.mp4").unlink()
    train(tmp_path / "parts", cache, **asked)
    assert (tmp_path / "parts/samples/step-0000004-0.mp4").is_file() and not last[1].exists()


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
        stop.saved = 7
        with pytest.raises(Stopped) as stopped:
            stop.receive(signal.SIGINT)
    assert stopped.value.step == 7


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
