"""Comparing a dense and a sparse video."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vidsparse import Dense, Pattern, Radial, StepSchedule
from vidsparse.generation import compare as module
from vidsparse.generation.compare import compare
from vidsparse.generation.sample import Sample
from vidsparse.runtime.report import LayerCall, Report


class Machine:
    """A machine on which the n-th sample takes seconds[n], whatever its side.

    The second of two experts takes the last of at least `reached` steps.
    """

    def __init__(self, seconds: list[float], reached: int = 1):
        self.seconds, self.order, self.reached = iter(seconds), list[tuple[type, int]](), reached
        self.outputs: list[str | None] = []

    def sample(
        self, pipe: Any, pattern: Pattern, arguments: Any, *, on_step: Any = lambda done, steps: None, **settings: Any
    ) -> Sample:
        steps = arguments["num_inference_steps"]
        self.order.append((type(pattern), steps))
        on_step(0, steps)
        self.outputs.append(arguments.get("output_type"))
        seconds = next(self.seconds) if steps > 8 else 99.0
        names = [name for name in vars(pipe) if name == "transformer" or steps >= self.reached]
        calls = tuple(LayerCall(name, 0, 0, 9, "dense", None, (), None, 1.0, 1.0, 0.1, 1.0, 1.0) for name in names)
        return Sample(np.zeros((2, 16, 16, 3), np.float32), Report(calls, "none"), seconds, seconds / 2)


ONE = SimpleNamespace(transformer=torch.nn.Linear(1, 1))
TWO = SimpleNamespace(transformer=torch.nn.Linear(1, 1), transformer_2=torch.nn.Linear(1, 1))


@pytest.mark.parametrize(("reached", "steps"), [(2, [2]), (4, [2, 4]), (7, [2, 4, 8]), (9, [2, 4, 8])], ids=str)
def test_both_experts_are_warm(reached: int, steps: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "sample", (machine := Machine([1.0, 1.0], reached)).sample)
    pattern = StepSchedule(StepSchedule(Radial(0.5), 2), 1)
    compare(TWO, pattern, {"num_inference_steps": 40}, repeat=1)
    warm = [(side, number) for side in (Dense, Radial) for number in steps]
    assert machine.order == [*warm, (Dense, 40), (StepSchedule, 40)]
    assert machine.outputs == [None, *["latent"] * (len(warm) - 1), None, None], "decoded once, before the clocks"


def test_both_sides_are_warm_and_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    # A machine that becomes slower and slower: by turns this meets both sides.
    machine, told = Machine([1.0, 2.0, 3.0, 4.0]), list[str]()
    monkeypatch.setattr(module, "sample", machine.sample)
    pattern = StepSchedule(Radial(0.5), 2)
    found = compare(ONE, pattern, {"num_inference_steps": 10}, on_step=lambda task, done, steps: told.append(task))
    warm = [(Dense, 1), (Radial, 1)]
    assert machine.order == [*warm, (Dense, 10), (StepSchedule, 10), (StepSchedule, 10), (Dense, 10)]
    assert told == [*["warming up"] * 3, "dense", "sparse", "sparse", "dense"], "one task for both sides"
    assert (found.seconds("dense", "seconds"), found.seconds("sparse", "seconds")) == (2.5, 2.5)
    assert found.speedup("seconds") == found.speedup("denoising_seconds") == 1.0
    assert found.spread("dense", "seconds") == (1.0, 4.0) and found.spread("sparse", "denoising_seconds") == (1.0, 1.5)
    assert (found.difference.psnr, found.difference.ssim, found.backend) == (None, 1.0, "native")


def test_one_sample_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "sample", Machine([3.0, 1.0]).sample)
    found = compare(ONE, Radial(0.5), {"num_inference_steps": 10}, repeat=1)
    assert found.speedup("seconds") == 3.0 and found.spread("dense", "seconds") == (3.0, 3.0)
    with pytest.raises(ValueError, match="repeat=0 must be at least 1"):
        compare(ONE, Radial(0.5), {"num_inference_steps": 10}, repeat=0)
