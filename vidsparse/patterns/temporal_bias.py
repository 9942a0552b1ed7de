"""Frames that are near in time weigh more: a bias on the logits, around any pattern."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vidsparse.block_map import Plan
from vidsparse.grid import VideoGrid
from vidsparse.patterns.base import Context, Pattern, patterns_in
from vidsparse.patterns.dense import Dense
from vidsparse.patterns.fields import check_number, check_range, check_wholes


@dataclass(frozen=True)
class TemporalBias(Pattern):
    """Runs `pattern`, and adds to each logit between video tokens of the latent frames i and j

        strength * exp(-(i - j)^2 / (2 * width^2)).

    A model that makes a longer video than those of its training tends to repeat one picture, because each frame sees
    all others about equally. With the bias, near frames weigh up to exp(strength) times more, so that the video can
    change over time. Tiles are chosen without the bias. Tokens of text and of conditions, before and after the video,
    get none, so that beside near frames they weigh less. Where `pattern` is dense and the bias is due, a map of all
    tiles takes the place of the model's own attention.

    Paper: VSTAR (temporal attention regularization), arXiv 2403.13501. Code: boschresearch/VSTAR at d52a55a.
    Differences: the published bias is for temporal attention of U-Nets, frame by frame at one place; here it is for
    full attention, in which a key of any place has the bias of its frame. The published strength is a multiple of the
    largest logit of each row, which block-sparse kernels never hold; here it is a number. The published code takes
    widths of 1, 4 and 8 frames of pixels, 1 in the finest layers and 8 in the next for 64 frames, and 14 of 25 steps; a
    transformer has no coarser layers, and a latent frame is often four frames of pixels. VSTAR also changes the prompt
    from frame to frame, which is left out. `strength` has no published value and was not tuned.

    It is the outermost pattern: put schedules, budgets and choices into it. The bias is exact up to rounding, in extra
    channels of queries and keys, at most one for each latent frame. The Triton kernels take 32, 64, 96 and 128 channels
    of a head: those of 64 become 96, but from 128 on FlexAttention runs instead, and an `impl` of "triton" is refused.
    No GPU has run it.

    Attributes:
        pattern: the pattern that it runs, with its schedule.
        strength: what is added for the same frame, in natural logarithms; 0 adds nothing.
        width: standard deviation of the bell, in latent frames.
        layers: indices of attention layers that have the bias, negative ones from the last; None: all.
        sigmas: the bias is for low <= noise level <= high, or None: for all. The noise level is 1 at the start.
    """

    pattern: Pattern
    strength: float = 1.0
    width: float = 4.0
    layers: tuple[int, ...] | None = None
    sigmas: tuple[float, float] | None = (0.5, 1.0)

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, Pattern):
            raise TypeError(f"pattern={self.pattern!r} must be a pattern, such as Radial(density=0.2)")
        if any(isinstance(inner, TemporalBias) for inner in patterns_in(self.pattern)):
            raise ValueError(f"pattern={self.pattern!r} has a temporal bias already; give one")
        check_number(self, "strength")
        check_number(self, "width", above=True)
        check_wholes(self, "layers", "indices, such as (0, 1)", optional=True)
        check_range(self, "sigmas", whole=False)

    def is_due(self, context: Context) -> bool:
        """Whether a call has the bias."""
        if self.strength == 0 or (self.sigmas is not None and not self.sigmas[0] <= context.sigma <= self.sigmas[1]):
            return False
        return self.layers is None or context.layer in {layer % context.layers for layer in self.layers}

    def matrix(self, frames: int) -> torch.Tensor:
        """The bias between latent frames, float64 [frames, frames]."""
        return frame_bias(self.strength, self.width, frames)

    def chosen(self, context: Context) -> Pattern:
        """The pattern whose map a call has."""
        return Dense() if self.pattern.is_dense(context) and self.is_due(context) else self.pattern

    def plan(self, grid: VideoGrid, context: Context | None = None) -> Plan:
        return (self.pattern if context is None else self.chosen(context)).plan(grid, context)

    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> Plan:
        return self.chosen(context).select(query, key, grid, context)

    @property
    def reads_content(self) -> bool:
        return self.pattern.reads_content

    def check_model(self, layers: int, heads: int | None) -> None:
        absent = [layer for layer in self.layers or () if not -layers <= layer < layers]
        if absent:
            raise ValueError(f"layers {absent} do not exist: the model has layers 0 to {layers - 1}")
        self.pattern.check_model(layers, heads)

    def check_grid(self, grid: VideoGrid) -> None:
        self.pattern.check_grid(grid)

    def at(self, context: Context) -> Pattern:
        return self.chosen(context).at(context)

    def is_dense(self, context: Context) -> bool:
        return self.pattern.is_dense(context) and not self.is_due(context)

    def skips(self, context: Context) -> bool:
        return self.pattern.skips(context)


def frame_bias(strength: float, width: float, frames: int) -> torch.Tensor:
    """The matrix of a `TemporalBias` of this strength and width: float64 [frames, frames], on the CPU."""
    place = torch.arange(frames, dtype=torch.float64, device="cpu")
    return strength * torch.exp(-(((place[:, None] - place) / width) ** 2) / 2)
