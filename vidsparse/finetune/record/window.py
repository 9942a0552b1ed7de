"""What a training has measured since the last line of its log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vidsparse.finetune.learner import Learned

LEVELS = 4  # equal ranges of noise levels, each with a loss of its own in the log


@dataclass
class Window:
    """Steps since the last log line. Plain data, so that a checkpoint between two lines keeps it.

    Attributes:
        videos: noise level and loss of each video whose loss is finite, over all processes.
        norms: norm of the gradient of each step that was made, before it is clipped.
        skipped: steps that were left out because a loss or the gradient was not finite.
        seconds: of the steps. steps: how many.
        attention: steps, density and saved share of FLOPs of each report of sparse attention.
    """

    videos: list[tuple[float, float]] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    skipped: int = 0
    seconds: float = 0.0
    steps: int = 0
    attention: list[tuple[int, float, float]] = field(default_factory=list)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Window:
        """What `state` returned."""
        pairs = [(float(level), float(loss)) for level, loss in state["videos"]]
        measured = [(int(steps), float(density), float(saved)) for steps, density, saved in state["attention"]]
        return cls(**{**state, "videos": pairs, "attention": measured, "norms": list(state["norms"])})

    def state(self) -> dict[str, Any]:
        """The content, for a checkpoint."""
        return asdict(self)

    def add(self, learned: Learned, seconds: float) -> None:
        """Add a step and how long it took; losses that are not finite are left out."""
        self.videos += [video for video in learned.videos if math.isfinite(video[1])]
        self.norms += [learned.norm] if learned.made else []
        self.skipped += not learned.made
        self.steps += 1
        self.seconds += seconds

    def line(self) -> dict[str, Any]:
        """The means, for a line of the log; None stands for what no step has."""
        weights = sum(steps for steps, _, _ in self.attention)
        density, saved = (
            sum(one[0] * one[place] for one in self.attention) / weights if weights else None for place in (1, 2)
        )
        line: dict[str, Any] = {
            "loss": _mean(loss for _, loss in self.videos),
            "loss_by_level": loss_by_level(self.videos),
            "grad_norm": _mean(self.norms),
            "seconds_per_step": round(self.seconds / self.steps, 4) if self.steps else None,
            "density": density,
            "flops_saved": saved,
        }
        return line | ({"skipped": self.skipped} if self.skipped else {})


def loss_by_level(videos: Iterable[tuple[float, float]]) -> dict[str, float]:
    """The mean loss of each range of noise levels that has a video."""
    ranges: dict[str, list[float]] = {}
    for level, loss in sorted(videos):
        place = min(LEVELS - 1, int(level * LEVELS))
        ranges.setdefault(f"{place / LEVELS:g}-{(place + 1) / LEVELS:g}", []).append(loss)
    return {name: sum(losses) / len(losses) for name, losses in ranges.items()}


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None
