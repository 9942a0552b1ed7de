"""One sampled video: the steps that are told, the clocks, and what is left of it in the pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_lora
import torch
from diffusers import WanPipeline

from vidsparse import Dense, PooledComplement, Radial, StepSchedule, seed_steps
from vidsparse.generation.compare import Comparison
from vidsparse.generation.metrics import difference
from vidsparse.generation.sample import sample

ARGUMENTS: dict[str, Any] = {
    "prompt": "a red circle",
    "num_frames": 5,
    "height": 32,
    "width": 32,
    "num_inference_steps": 3,
    "max_sequence_length": 32,
}


@pytest.fixture(scope="module")
def pipe() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = tiny_lora.pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_sample_is_the_video_of_the_pipeline(pipe: Any) -> None:
    processors, told = dict(pipe.transformer.attn_processors), list[tuple[int, int]]()
    found = sample(pipe, Dense(), ARGUMENTS, seed=5, on_step=lambda *step: told.append(step))
    seed_steps(5)
    plain = pipe(**ARGUMENTS, output_type="np", generator=torch.Generator().manual_seed(5)).frames[0]
    assert np.array_equal(found.frames, plain) and found.frames.shape == (5, 32, 32, 3)
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert found.seconds > found.denoising_seconds > found.attention_seconds == found.report.seconds > 0
    assert all(pipe.transformer.attn_processors[name] is processor for name, processor in processors.items())
    assert not np.array_equal(sample(pipe, Dense(), ARGUMENTS, seed=6).frames, plain)


def test_pattern_correction_and_impl_are_those_that_run(pipe: Any) -> None:
    pattern = StepSchedule(Radial(0.5, tile=(1, 4, 4)), 1)
    found = sample(pipe, pattern, ARGUMENTS, correction=PooledComplement(), impl="reference")
    assert found.report.pattern == f"{pattern!r} with {PooledComplement()!r}"
    assert found.report.sparse_calls == 2 * found.report.dense_calls and "reference" in found.report.ran[0]


class Silent(WanPipeline):
    """A pipeline that does not tell of its steps, as Allegro's."""

    def __call__(self, *, num_inference_steps: int = 3, **arguments: Any) -> Any:
        return super().__call__(num_inference_steps=num_inference_steps, **arguments)


class Sections(WanPipeline):
    """A pipeline that denoises one section after the other, as FramePack's."""

    def __call__(self, *, num_inference_steps: int = 3, callback_on_step_end: Any = None, **arguments: Any) -> Any:
        told = {"num_inference_steps": num_inference_steps, "callback_on_step_end": callback_on_step_end}
        super().__call__(**told, **arguments)
        return super().__call__(**told, **arguments)


def test_steps_are_told_for_each_section(pipe: Any) -> None:
    sections, told = Sections(**pipe.components), list[int]()
    sections.set_progress_bar_config(disable=True)
    sample(sections, Dense(), ARGUMENTS, on_step=lambda done, steps: told.append(done))
    assert told == [0, 1, 2, 3] * 2


def test_what_ran_is_told_after_each_step(pipe: Any) -> None:
    told = list[tuple[int, int]]()
    sample(pipe, Radial(0.5), ARGUMENTS, on_report=lambda step, report: told.append((step, report.sparse_calls)))
    layers = len(pipe.transformer.blocks) * 2  # with the prompt and without it
    assert told == [(0, layers), (1, 2 * layers), (2, 3 * layers)]


def test_a_pipeline_without_callbacks_has_no_time_of_denoising(pipe: Any) -> None:
    silent = Silent(**pipe.components)
    silent.set_progress_bar_config(disable=True)
    found = sample(silent, Dense(), ARGUMENTS, seed=5)
    assert found.denoising_seconds is None and found.seconds > found.attention_seconds > 0
    both = Comparison((found,), (found,), difference(found.frames, found.frames))
    assert both.clocks == ["seconds", "attention_seconds"]
    assert [both.speedup(clock) for clock in both.clocks] == [1.0, 1.0]


def test_denoising_is_timed_on_the_device_up_to_the_last_step(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Watch:
        """A clock of a device that is read once, when all is done."""

        stops, devices = 0, list[torch.device]()

        def __init__(self, device: torch.device):
            self.devices.append(device)

        def stop(self) -> Watch:
            Watch.stops += 1
            return self

        def seconds(self) -> float:
            return 100.0 + self.stops

    monkeypatch.setattr("vidsparse.generation.sample.Stopwatch", Watch)
    monkeypatch.setattr(WanPipeline, "_execution_device", torch.device("cpu", 0))
    assert sample(pipe, Dense(), ARGUMENTS).denoising_seconds == 103.0
    assert Watch.devices == [torch.device("cpu", 0)]


def test_a_video_that_is_not_finite_is_refused_and_the_pipeline_restored(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    processors = dict(pipe.transformer.attn_processors)
    monkeypatch.setattr(pipe.video_processor, "postprocess_video", lambda *_, **__: np.full((1, 5, 4, 4, 3), np.inf))
    with pytest.raises(ValueError, match="values that are not finite; try another dtype"):
        sample(pipe, Radial(0.5), ARGUMENTS)
    assert all(pipe.transformer.attn_processors[name] is processor for name, processor in processors.items())
