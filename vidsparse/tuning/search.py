"""Searches the pattern that meets a target, and tries it on videos that it was not found on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import torch

from vidsparse.generation.metrics import difference
from vidsparse.generation.sample import Sample, sample
from vidsparse.patterns import Dense, Pattern
from vidsparse.serialize import to_data
from vidsparse.tuning.allocate import allocate
from vidsparse.tuning.measure import Measurement, build
from vidsparse.tuning.store import Store, digest

OnStage = Callable[[str, int, int], None]
ROUNDS = 7  # of a search for a quality
IDENTICAL = 100.0  # dB, where no frame differs


@dataclass(frozen=True)
class Target:
    """What a profile has to reach; one of the four is given.

    Attributes:
        psnr: mean over the videos, in dB to their dense twins, at least. ssim: the same.
        speedup: of denoising, at least.
        density: of token pairs, mean over all attention calls, at most.

    Raises:
        ValueError: none or several are given, or a value that nothing can reach.
    """

    psnr: float | None = None
    ssim: float | None = None
    speedup: float | None = None
    density: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise ValueError(f"give one target of psnr, ssim, speedup and density, not {' and '.join(given) or 'none'}")
        limits = {"psnr": (0.0, 100.0), "ssim": (0.0, 1.0), "speedup": (1.0, 100.0), "density": (0.0, 1.0)}
        low, high = limits[self.name]
        if not (math.isfinite(self.value) and low < self.value < high):
            raise ValueError(f"target {self.name}={self.value} must be between {low:g} and {high:g}")

    @property
    def name(self) -> str:
        return next(name for name, value in vars(self).items() if value is not None)

    @property
    def value(self) -> float:
        return float(getattr(self, self.name))

    def __str__(self) -> str:
        return f"{self.name} {self.value:g}"


@dataclass(frozen=True)
class Trial:
    """What a pattern did to the held-out videos.

    Attributes:
        budget: share of the cost of dense attention that it was allocated for.
        psnr, ssim: of each video. seconds: of its denoising. density: of token pairs, dense calls included.
    """

    budget: float
    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    seconds: tuple[float, ...]
    density: float

    def value(self, name: str, dense_seconds: float) -> float:
        """What it reaches of a target. Of qualities, a standard error below the mean: other videos have another one."""
        if name == "speedup":
            return dense_seconds / median(self.seconds)
        if name == "density":
            return self.density
        found: tuple[float, ...] = getattr(self, name)
        error = stdev(found) / math.sqrt(len(found)) if len(found) > 1 else 0.0
        return mean(found) - error


@dataclass(frozen=True)
class Held:
    """Videos that are kept for trials: arguments of `pipe(...)` and seeds."""

    arguments: tuple[Mapping[str, Any], ...]
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.seeds)


@dataclass
class Search:
    """Finds a pattern for a target.

    Attributes:
        pipe: the pipeline. measurement: what was measured of it.
        candidates: patterns that heads choose from, `Dense` first.
        held: videos for trials.
        store: keeps dense videos and trials.
        on_stage: called with what is done, how much of it, and all.
        cost: what the budget is a share of: "seconds" as measured here, or "density", the same on every machine. A
            target of speed-up or density decides by itself.
    """

    pipe: Any
    measurement: Measurement
    candidates: tuple[Pattern, ...]
    held: Held
    store: Store
    on_stage: OnStage
    cost: str = "seconds"

    def __post_init__(self) -> None:
        self.trials: list[Trial] = []

    def run(self, target: Target) -> tuple[Pattern, Trial, bool]:
        """The pattern, its trial, and whether it reaches the target; if none does, the one that comes closest."""
        self.cost = {"speedup": "seconds", "density": "density"}.get(target.name, self.cost)
        return self._quality(target) if target.name in ("psnr", "ssim") else self._cost(target)

    def at(self, budget: float) -> Pattern:
        """The best pattern for a share of the cost of dense attention."""
        errors, costs, dense = self._units
        choice = allocate(errors, costs, max(budget * dense, float(costs.min(dim=1).values.sum())))
        return build(choice.view(self.measurement.errors.shape[:3]), self.candidates, self.measurement.phases)

    @property
    def cheapest(self) -> float:
        """The least budget that can be met."""
        _, costs, dense = self._units
        return float(costs.min(dim=1).values.sum()) / dense

    def try_out(self, budget: float, pattern: Pattern) -> Trial:
        """Generate the held-out videos with a pattern; those that the store has are not generated again."""
        name = f"trial-{digest(to_data(pattern))}"
        rows = []
        for number in range(len(self.held)):

            def make(number: int = number) -> list[float]:
                self.on_stage(f"trying a budget of {budget:.0%}", number, len(self.held))
                return self._tried(number, pattern)

            rows.append(self.store.kept(f"{name}-{number}", make))
        psnr, ssim, seconds, density = (tuple(column) for column in zip(*rows, strict=True))
        trial = Trial(budget, psnr, ssim, seconds, mean(density))
        self.trials.append(trial)
        return trial

    def _tried(self, number: int, pattern: Pattern) -> list[float]:
        """PSNR, SSIM, seconds of denoising and density of one video."""
        done = self._sample(number, pattern)
        apart = difference(self._dense(number)[0], done.frames)
        flops, dense = (sum(getattr(call, name) for call in done.report.calls) for name in ("flops", "dense_flops"))
        return [
            IDENTICAL if apart.psnr is None else apart.psnr,
            apart.ssim,
            done.denoising_seconds or done.seconds,
            flops / dense,
        ]

    @cached_property
    def dense_seconds(self) -> float:
        """Of denoising a held-out video, median."""
        return median(self._dense(number)[1] for number in range(len(self.held)))

    def _quality(self, target: Target) -> tuple[Pattern, Trial, bool]:
        """Bisection over the budget: the cheapest pattern whose trial reaches the quality."""
        low, high = self.cheapest, 1.0
        best: tuple[Pattern, Trial] | None = None
        closest: tuple[Pattern, Trial] | None = None
        for _ in range(ROUNDS):
            middle = math.sqrt(low * high)
            pattern = self.at(middle)
            trial = self.try_out(middle, pattern)
            value = trial.value(target.name, self.dense_seconds)
            if closest is None or value > closest[1].value(target.name, self.dense_seconds):
                closest = pattern, trial
            if value >= target.value:
                best, high = (pattern, trial), middle
            else:
                low = middle
            if high / low < 1.03:
                break
        assert closest is not None
        return (*best, True) if best else (*closest, False)

    def _cost(self, target: Target) -> tuple[Pattern, Trial, bool]:
        """The best pattern within a cost; for a speed-up, with a smaller cost as long as the trial falls short."""
        if target.name == "density":
            pattern = self.at(target.value)
            trial = self.try_out(target.value, pattern)
            return pattern, trial, trial.density <= target.value * 1.02
        budget, wanted = self._budget_of_speedup(target.value), 1 - 1 / target.value
        tried: list[tuple[float, Pattern, Trial]] = []
        for _ in range(4):
            budget = max(budget, self.cheapest)
            pattern = self.at(budget)
            trial = self.try_out(budget, pattern)
            tried.append((trial.value(target.name, self.dense_seconds), pattern, trial))
            if tried[-1][0] >= target.value:
                return pattern, trial, True
            if budget <= self.cheapest:
                break
            # What was saved is to what should be saved as this budget is to the next.
            saved = 1 - median(trial.seconds) / self.dense_seconds
            budget = 1 - (1 - budget) * min(2.0, wanted / max(saved, 0.1 * wanted)) - 0.01
        _, pattern, trial = max(tried, key=lambda found: found[0])
        return pattern, trial, False

    def _budget_of_speedup(self, speedup: float) -> float:
        """The share of attention's seconds that is left for a speed-up of denoising."""
        _, _, dense = self._units
        return 1 - self.dense_seconds * (1 - 1 / speedup) / (dense * self.measurement.branches)

    @cached_property
    def _units(self) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Errors and costs [units, candidates], and what all cost dense."""
        costs = self.measurement.costs(self.cost).flatten(0, 2)
        return self.measurement.errors.flatten(0, 2), costs, float(costs[:, 0].sum())

    def _dense(self, number: int) -> tuple[np.ndarray[Any, Any], float]:
        """Frames and seconds of a dense held-out video."""

        def make() -> dict[str, Any]:
            self.on_stage("dense videos", number, len(self.held))
            done = self._sample(number, Dense())
            return {"frames": torch.from_numpy(done.frames), "seconds": done.denoising_seconds or done.seconds}

        kept = self.store.kept(f"dense-{number}", make)
        return kept["frames"].numpy(), float(kept["seconds"])

    def _sample(self, number: int, pattern: Pattern) -> Sample:
        return sample(self.pipe, pattern, self.held.arguments[number], seed=self.held.seeds[number])
