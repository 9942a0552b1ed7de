"""Ranges of denoising steps that a search tunes each by itself."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

SHARES = 0.0, 0.1, 0.25, 0.5  # of the steps: where phases start


@dataclass(frozen=True)
class Phases:
    """Ranges of denoising steps, each of one transformer.

    Attributes:
        steps: of the run.
        starts: the first step of each phase.
        sigmas: noise levels between one phase and the next.
    """

    steps: int
    starts: tuple[int, ...]
    sigmas: tuple[float, ...]

    @staticmethod
    def of(sigmas: tuple[float, ...], switch: int | None = None) -> Phases:
        """The phases of a run with these noise levels; a phase that begins at the level of the one before joins it.

        `switch` is what `switch_of` says.
        """
        starts = starts_of(len(sigmas), switch)
        starts = tuple(start for start in starts if start == 0 or sigmas[start] < sigmas[start - 1])
        return Phases(len(sigmas), starts, tuple((sigmas[s - 1] + sigmas[s]) / 2 for s in starts[1:]))

    @property
    def lengths(self) -> tuple[int, ...]:
        """The steps of each phase."""
        return lengths_of(self.starts, self.steps)

    def phase(self, step: int) -> int:
        """The phase of a step."""
        return sum(step >= start for start in self.starts) - 1


def starts_of(steps: int, switch: int | None = None) -> tuple[int, ...]:
    """The first step of each phase: the early ones are short, because they decide the layout.

    A phase also starts at `switch`, where the other expert takes over.
    """
    shares = {min(round(share * steps), steps - 1) for share in SHARES}
    return tuple(sorted(shares if switch is None else {*shares, switch}))


def lengths_of(starts: tuple[int, ...], steps: int) -> tuple[int, ...]:
    """The steps of each phase."""
    return tuple(end - start for start, end in zip(starts, (*starts[1:], steps), strict=True))


def is_middle(step: int, steps: int, switch: int | None = None) -> bool:
    """Whether a step is in the middle of a phase: its calls stand for the others."""
    starts = starts_of(steps, switch)
    return step in {start + length // 2 for start, length in zip(starts, lengths_of(starts, steps), strict=True)}


def switch_of(pipe: Any, steps: int) -> int | None:
    """The first step of the second expert, in a pipeline that has two and a `boundary_ratio`; None in any other.

    None too where all steps belong to one of them.
    """
    boundary = pipe.config.get("boundary_ratio")
    if boundary is None:
        return None
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(steps)
    least = boundary * scheduler.config.num_train_timesteps
    above = sum(float(timestep) >= least for timestep in scheduler.timesteps)
    return above if 0 < above < steps else None
