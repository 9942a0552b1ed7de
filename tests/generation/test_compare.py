"""Comparing a dense and a sparse video."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vidsparse import Dense, Pattern, Radial, StepSchedule
from vidsparse.generation import compare as module
from vidsparse.generation.compare import compare, similarity
from vidsparse.generation.sample import Sample
from vidsparse.runtime.report import Report


def test_similarity() -> None:
    rng = np.random.default_rng(0)
    first = rng.random((3, 16, 20, 3), dtype=np.float32)
    assert similarity(first, first) == (None, 1.0)
    second = first.copy()
    second[1] = second[1] * 0.5
    psnr, ssim = similarity(first, second)
    assert psnr == pytest.approx(-10 * np.log10(((first - second) ** 2).mean()), rel=1e-4)
    alone = [similarity(first[i : i + 1], second[i : i + 1])[1] for i in range(3)]
    assert ssim == pytest.approx(sum(alone) / 3) and alone[0] == 1.0 > alone[1]


class Machine:
    """A machine on which the n-th sample takes seconds[n], whatever its side."""

    def __init__(self, seconds: list[float]):
        self.seconds, self.order = iter(seconds), list[tuple[type, int]]()

    def sample(self, pipe: Any, pattern: Pattern, arguments: Any, *, on_step: Any, **settings: Any) -> Sample:
        steps = arguments["num_inference_steps"]
        self.order.append((type(pattern), steps))
        on_step(0, steps)
        seconds = next(self.seconds) if steps > 1 else 99.0
        return Sample(np.zeros((2, 16, 16, 3), np.float32), Report((), "none"), seconds, seconds / 2)


def test_both_sides_are_warm_and_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    # A machine that becomes slower and slower: by turns this meets both sides.
    machine, told = Machine([1.0, 2.0, 3.0, 4.0]), list[str]()
    monkeypatch.setattr(module, "sample", machine.sample)
    pattern = StepSchedule(Radial(0.5), 2)
    found = compare(None, pattern, {"num_inference_steps": 8}, on_step=lambda task, done, steps: told.append(task))
    warm = [(Dense, 1), (Radial, 1)]
    assert machine.order == [*warm, (Dense, 8), (StepSchedule, 8), (StepSchedule, 8), (Dense, 8)]
    assert told == ["warming up", "warming up", "dense", "sparse", "sparse", "dense"]
    assert (found.seconds("dense", "seconds"), found.seconds("sparse", "seconds")) == (2.5, 2.5)
    assert found.speedup("seconds") == found.speedup("denoising_seconds") == 1.0
    assert found.spread("dense", "seconds") == (1.0, 4.0) and found.spread("sparse", "denoising_seconds") == (1.0, 1.5)
    assert (found.psnr, found.ssim) == (None, 1.0)


def test_one_sample_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "sample", Machine([3.0, 1.0]).sample)
    found = compare(None, Radial(0.5), {"num_inference_steps": 8}, repeat=1)
    assert found.speedup("seconds") == 3.0 and found.spread("dense", "seconds") == (3.0, 3.0)
    with pytest.raises(ValueError, match="repeat=0 must be at least 1"):
        compare(None, Radial(0.5), {"num_inference_steps": 8}, repeat=0)
