"""Samples one video under a pattern, and says what it took."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vidsparse.corrections import Correction
from vidsparse.generation.peak_memory import PeakMemory
from vidsparse.generation.scheduler import seed_steps
from vidsparse.generation.strength import steps_run
from vidsparse.patterns import Pattern
from vidsparse.runtime.report import Report
from vidsparse.runtime.run import Run
from vidsparse.runtime.sparsify import sparsify
from vidsparse.runtime.stopwatch import Stopwatch

if TYPE_CHECKING:
    from vidsparse.generation.video import Frames

OnStep = Callable[[int, int], None]  # called with the steps that are done, and with all


@dataclass(frozen=True)
class Sample:
    """A sampled video and what it took.

    Attributes:
        frames: float32 [frames, height, width, 3] in [0, 1], or latents where the arguments ask for them.
        report: what ran in the attention layers.
        seconds: in all.
        denoising_seconds: until the last denoising step was done; None for a pipeline that does not tell of its steps.
        peak_bytes: the most memory meanwhile, see `PeakMemory`; None where it cannot be measured.
    """

    frames: Frames
    report: Report
    seconds: float
    denoising_seconds: float | None
    peak_bytes: int | None = None

    @property
    def attention_seconds(self) -> float:
        """Seconds in attention layers, projections included."""
        return self.report.seconds

    @property
    def choosing_seconds(self) -> float:
        """Seconds of these in which the pattern chose its tiles."""
        return self.report.choosing_seconds


def sample(
    pipe: Any,
    pattern: Pattern,
    arguments: Mapping[str, Any],
    *,
    correction: Correction | None = None,
    impl: str = "auto",
    seed: int = 0,
    on_run: Callable[[Run], None] = lambda run: None,
    on_step: OnStep = lambda done, steps: None,
    on_report: Callable[[int, Report], None] | None = None,
) -> Sample:
    """Sample one video; the pipeline is restored afterwards, also after an error.

    Args:
        pipe: a diffusers pipeline.
        pattern, correction, impl: see `vidsparse.sparsify`.
        arguments: of `pipe(...)`, prompt included.
        seed: of the noise, at the start and in the steps.
        on_run: called with the run, before anything runs.
        on_step: called at the start, of each section where a video is made in several, and after each denoising step.
        on_report: called after each denoising step with its index and the report so far, which waits for a GPU.

    Raises:
        ValueError: the video holds values that are not finite.
    """
    accepted = inspect.signature(pipe.__call__).parameters
    asked = arguments.get("num_inference_steps") or accepted["num_inference_steps"].default
    steps = steps_run(type(pipe), asked, arguments.get("strength"))
    with sparsify(pipe, pattern, correction=correction, impl=impl) as run:
        on_run(run)
        on_step(0, steps)
        memory = PeakMemory(pipe._execution_device)
        started = time.perf_counter()
        # On the device that computes: `pipe.device` is the CPU while modules wait there for their turn.
        denoising = Stopwatch(pipe._execution_device)
        denoised: Stopwatch | None = None

        def stepped(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            nonlocal denoised
            if step == 0 and denoised is not None:  # FramePack denoises a video section by section
                on_step(0, steps)
            denoised = denoising.stop()
            on_step(step + 1, steps)
            if on_report is not None:
                on_report(step, run.report())
            return tensors

        callback = {"callback_on_step_end": stepped} if "callback_on_step_end" in accepted else {}
        generator = torch.Generator().manual_seed(seed)
        seed_steps(seed)
        made = pipe(**{"output_type": "np", **arguments}, **callback, generator=generator)
        frames = made.frames[0] if hasattr(made, "frames") else made.video  # of Cosmos 3, which makes sound too
        if not math.isfinite(frames.sum()):
            raise ValueError("the video holds values that are not finite; try another dtype: bfloat16 or float32")
        seconds = time.perf_counter() - started
        denoised_after = None if denoised is None else denoised.seconds()
        return Sample(frames, run.report(), seconds, denoised_after, memory.bytes())
