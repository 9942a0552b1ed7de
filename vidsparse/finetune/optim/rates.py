"""Learning rates step by step, by the names of diffusers' training scripts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

# Those that depend on the number of steps.
FALLING = ("linear", "cosine", "cosine_with_restarts", "polynomial")
SCHEDULES = ("constant", "constant_with_warmup", *FALLING)


@dataclass(frozen=True)
class RateSchedule:
    """The factor of the learning rate in each step; a step's factor depends on its number alone.

    Attributes:
        kind: a schedule of `diffusers.optimization.get_scheduler`. "constant" has no warm-up.
        steps: of the whole training.
        warmup: steps in which the rate rises to its peak; the first of them has a rate above 0.
        decay: fraction of all steps, at the end, in which "constant" and "constant_with_warmup" fall to 0.
        cycles: of "cosine_with_restarts". power: of "polynomial".

    Raises:
        ValueError: an unknown schedule, or numbers that it does not take.
    """

    kind: str
    steps: int
    warmup: int = 0
    decay: float = 0.0
    cycles: int = 1
    power: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULES:
            raise ValueError(f"lr_scheduler={self.kind!r} is unknown; choose one of {', '.join(SCHEDULES)}")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay={self.decay} must be in [0, 1], a part of the steps")
        if self.decay and self.kind in FALLING:
            raise ValueError(
                f"decay={self.decay} is for a constant rate, and {self.kind} falls by itself; leave it out"
            )
        if self.cycles < 1 or not self.power > 0:
            raise ValueError(f"lr_num_cycles={self.cycles} must be 1 or more, and lr_power={self.power} above 0")
        if self.kind in FALLING and self.warmup >= self.steps:
            raise ValueError(f"warmup={self.warmup} leaves none of the {self.steps} steps for {self.kind} to fall in")

    @property
    def needs_steps(self) -> bool:
        """Whether another number of steps would change the rates."""
        return self.kind in FALLING or self.decay > 0

    def factor(self, step: int) -> float:
        """The factor of a step, counted from 0."""
        if self.kind != "constant" and step < self.warmup:
            rising = (step + 1) / self.warmup
            return min(rising, self._falling(step))
        if self.kind in FALLING:
            return _factors(self.kind, self.warmup, self.steps, self.cycles, self.power)(step)
        return self._falling(step)

    def _falling(self, step: int) -> float:
        return min(1.0, (self.steps - step) / (self.decay * self.steps)) if self.decay else 1.0


@lru_cache(maxsize=8)
def _factors(kind: str, warmup: int, steps: int, cycles: int, power: float) -> Callable[[int], float]:
    """The function of a schedule of diffusers."""
    from diffusers.optimization import get_scheduler

    unused = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(kind, unused, None, warmup, steps, cycles, power)
    factor: Callable[[int], float] = scheduler.lr_lambdas[0]
    return factor
