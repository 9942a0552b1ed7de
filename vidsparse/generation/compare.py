"""Compares a dense and a sparse video of one seed: what was gained and what was lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from vidsparse.corrections import Correction
from vidsparse.generation.backends import NATIVE, dense_backend
from vidsparse.generation.metrics import Difference, Lpips, difference
from vidsparse.generation.sample import Sample, sample
from vidsparse.generation.strength import steps_asked
from vidsparse.patterns import Dense, Pattern
from vidsparse.patterns.schedule import bare
from vidsparse.runtime.pipeline import transformers_of

# Attributes of `Sample`, and what they measure.
CLOCKS = {
    "seconds": "seconds in all",
    "denoising_seconds": "seconds denoising",
    "attention_seconds": "seconds in attention layers",
}
SIDES = ("dense", "sparse")


@dataclass(frozen=True)
class Comparison:
    """Samples of one seed, dense and sparse, in the order they ran; the videos of a side are the same.

    Attributes:
        difference: of the sparse video from the dense one.
        backend: of diffusers, on which attention that is not sparse ran.
    """

    dense: tuple[Sample, ...]
    sparse: tuple[Sample, ...]
    difference: Difference
    backend: str = NATIVE

    @property
    def clocks(self) -> list[str]:
        """The keys of `CLOCKS` that every sample has a time for."""
        return [clock for clock in CLOCKS if all(getattr(one, clock) is not None for one in self.dense + self.sparse)]

    def seconds(self, side: str, clock: str) -> float:
        """The median over the samples of a side ("dense" or "sparse") of one of `clocks`."""
        return median(self._all(side, clock))

    def spread(self, side: str, clock: str) -> tuple[float, float]:
        """The shortest and the longest time of a side."""
        found = self._all(side, clock)
        return min(found), max(found)

    def typical(self, side: str) -> Sample:
        """The sample of a side with the median of seconds in all; of two, the faster."""
        samples: tuple[Sample, ...] = getattr(self, side)
        return sorted(samples, key=lambda one: one.seconds)[(len(samples) - 1) // 2]

    def peak_bytes(self, side: str) -> int | None:
        """The most memory of a side, over its samples; None where it is unknown."""
        found = [one.peak_bytes for one in getattr(self, side) if one.peak_bytes is not None]
        return max(found, default=None)

    def speedup(self, clock: str) -> float:
        """Dense seconds over sparse ones, of medians."""
        return self.seconds("dense", clock) / self.seconds("sparse", clock)

    def _all(self, side: str, clock: str) -> list[float]:
        samples: tuple[Sample, ...] = getattr(self, side)
        return [getattr(one, clock) for one in samples]


def compare(
    pipe: Any,
    pattern: Pattern,
    arguments: Mapping[str, Any],
    *,
    correction: Correction | None = None,
    impl: str = "auto",
    seed: int = 0,
    repeat: int = 2,
    backend: str = NATIVE,
    lpips: Lpips | None = None,
    on_step: Callable[[str, int, int], None] = lambda task, done, steps: None,
) -> Comparison:
    """Sample a video dense and sparse, by turns, so that what slows the machine down meets both sides.

    Before the clocks start both sides are warmed up, see `warm_up`, and the first is decoded.

    Args:
        repeat: samples of each side. The side that comes first alternates.
        backend: of attention that is not sparse, on both sides, see `vidsparse.generation.backends`.
        lpips: also measure LPIPS with it.
        on_step: called with "warming up", "dense" or "sparse", the steps that are done, and all steps; warming up has a
            step for each side.
        Others: see `sample`.

    Raises:
        ValueError: see `sample`; fewer than one repetition.
    """
    if repeat < 1:
        raise ValueError(f"repeat={repeat} must be at least 1")
    shared: dict[str, Any] = {"impl": impl, "seed": seed}
    of_side: dict[str, tuple[Pattern, Correction | None]] = {"dense": (Dense(), None), "sparse": (pattern, correction)}
    found: dict[str, list[Sample]] = {side: [] for side in SIDES}
    with dense_backend(backend):
        for number, side in enumerate(SIDES):
            on_step("warming up", number, len(SIDES))
            attention, added = of_side[side]
            warm_up(pipe, attention, arguments, correction=added, decode=number == 0, **shared)
        on_step("warming up", len(SIDES), len(SIDES))
        for turn in range(repeat):
            for side in SIDES if turn % 2 == 0 else reversed(SIDES):
                attention, added = of_side[side]
                found[side].append(
                    sample(pipe, attention, arguments, correction=added, **shared, on_step=_told(on_step, side))
                )
    dense, sparse = (tuple(found[side]) for side in SIDES)
    return Comparison(dense, sparse, difference(dense[0].frames, sparse[0].frames, lpips), backend)


def warm_up(
    pipe: Any,
    pattern: Pattern,
    arguments: Mapping[str, Any],
    *,
    correction: Correction | None = None,
    impl: str = "auto",
    seed: int = 0,
    decode: bool = False,
) -> None:
    """Run one step under a pattern without its schedule, so that what is compiled or chosen once costs no time later.

    With several transformers, such as the two experts of Wan 2.2, as few steps run as reach all of them, at most 8.

    Args:
        decode: also decode a video.
        Others: see `sample`.
    """
    experts = set(transformers_of(pipe))
    output: dict[str, Any] = {} if decode else {"output_type": "latent"}
    # Which steps an expert takes depends on the scheduler and its shift, so they are tried.
    for steps in (2, 4, 8) if len(experts) > 1 else (1,):
        asked = steps_asked(type(pipe), steps, arguments.get("strength"))
        few = {**arguments, "num_inference_steps": asked, **output}
        warm = sample(pipe, bare(pattern), few, correction=correction, impl=impl, seed=seed)
        output = {"output_type": "latent"}  # one decoding is enough
        if {call.transformer for call in warm.report.calls} == experts:
            break


def _told(on_step: Callable[[str, int, int], None], task: str) -> Callable[[int, int], None]:
    return lambda done, steps: on_step(task, done, steps)
