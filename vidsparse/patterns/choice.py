"""Several patterns in one: a pattern for each layer, or for each range of noise."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from dataclasses import dataclass

import torch

from vidsparse.block_map import Plan
from vidsparse.grid import VideoGrid
from vidsparse.patterns.base import Context, Pattern
from vidsparse.patterns.fields import check_indices, check_patterns, is_number


class Choice(Pattern):
    """A pattern that leaves each call to one of several patterns.

    Attributes:
        patterns: to choose from.
    """

    patterns: tuple[Pattern, ...]

    @abstractmethod
    def chosen(self, context: Context) -> Pattern:
        """The pattern of a call."""

    def plan(self, grid: VideoGrid, context: Context | None = None) -> Plan:
        context = Context() if context is None else context
        return self.chosen(context).plan(grid, context)

    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> Plan:
        return self.chosen(context).select(query, key, grid, context)

    @property
    def reads_content(self) -> bool:
        return any(pattern.reads_content for pattern in self.patterns)

    def check_model(self, layers: int, heads: int | None) -> None:
        for pattern in self.patterns:
            pattern.check_model(layers, heads)

    def check_grid(self, grid: VideoGrid) -> None:
        for pattern in self.patterns:
            pattern.check_grid(grid)

    def at(self, context: Context) -> Pattern:
        return self.chosen(context).at(context)

    def is_dense(self, context: Context) -> bool:
        return self.chosen(context).is_dense(context)


def counted(patterns: tuple[Pattern, ...], indices: tuple[int, ...]) -> str:
    """How often each class is chosen, such as "2 Dense, 10 Radial"."""
    names = Counter(type(patterns[index]).__name__ for index in indices)
    return ", ".join(f"{count} {name}" for name, count in names.items())


@dataclass(frozen=True, repr=False)
class PerLayer(Choice):
    """Gives each layer a pattern of its own.

        PerLayer((Dense(), Radial(density=0.3), Radial(density=0.1)), layers=(0, 1, 1, 2, 2, 2))

    No paper; published methods that search a setting for each layer, such as Sparse-vDiT (arXiv 2506.03065), give each
    head a mode of one pattern. Here any patterns can stand side by side.

    Attributes:
        patterns: to choose from. A `StepBudget` is about whole steps and is refused; put this pattern into it.
        layers: for each attention layer of the model, the index of its pattern in `patterns`.
    """

    patterns: tuple[Pattern, ...]
    layers: tuple[int, ...]

    def __post_init__(self) -> None:
        check_patterns(self, "patterns")
        check_indices(self, "layers", "patterns")

    def check_model(self, layers: int, heads: int | None) -> None:
        if layers != len(self.layers):
            raise ValueError(
                f"layers names patterns for {len(self.layers)} layers, but the model has {layers}; give one for each"
            )
        super().check_model(layers, heads)

    def __repr__(self) -> str:
        return f"PerLayer({counted(self.patterns, self.layers)})"  # a tuned one has a hundred fields

    def chosen(self, context: Context) -> Pattern:
        # The context of an unknown model has one layer.
        return self.patterns[self.layers[context.layer if context.layer < len(self.layers) else 0]]


@dataclass(frozen=True, repr=False)
class PerPhase(Choice):
    """Gives each range of noise a pattern of its own: one for the layout, one for the detail.

        PerPhase((Dense(), Radial(density=0.4), Radial(density=0.1)), sigmas=(0.9, 0.6))

    No paper; that early steps need more is common to all published schedules. The ranges are of noise, so that one
    setting serves runs of 4 and of 50 steps.

    Attributes:
        patterns: from the most noise to the least. A `StepBudget` is refused, as by `PerLayer`.
        sigmas: noise levels in (0, 1), falling, one fewer than `patterns`. The first pattern runs above the first of
            them, the last one at and below the last.
    """

    patterns: tuple[Pattern, ...]
    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        check_patterns(self, "patterns")
        levels = self.sigmas
        known = isinstance(levels, tuple) and all(is_number(level, 0, 1) and 0 < level < 1 for level in levels)
        if not known or list(levels) != sorted(set(levels), reverse=True) or len(levels) != len(self.patterns) - 1:
            raise ValueError(
                f"sigmas={levels!r} must be {len(self.patterns) - 1} falling noise levels between 0 and 1: those at "
                f"which one of the {len(self.patterns)} patterns gives way to the next"
            )

    def chosen(self, context: Context) -> Pattern:
        return self.patterns[sum(context.sigma <= level for level in self.sigmas)]

    def __repr__(self) -> str:
        parts = [
            f"{pattern!r} above noise {level:.2f}" for pattern, level in zip(self.patterns, self.sigmas, strict=False)
        ]
        return f"PerPhase({', '.join([*parts, repr(self.patterns[-1])])})"
