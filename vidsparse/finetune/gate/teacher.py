"""A pattern that runs dense, and teaches the gate of each layer what its attention is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from vidsparse.block_map import BlockMap, Plan
from vidsparse.finetune.gate.distillation import divergence, kept_attention
from vidsparse.grid import Tile, VideoGrid
from vidsparse.patterns import Context, Dense, Pattern
from vidsparse.patterns.exact_blocks import pooled_attention
from vidsparse.patterns.gate_weights import GateWeights, Pooled


@dataclass
class Lesson:
    """Sums over the layers that have run since the last `clear`: float64 tensors on the device.

    Attributes:
        divergence: of the gate.
        recall: the fraction of attention that the gate keeps. untrained: the same of the means alone, as it began.
        layers: how many have run.
    """

    divergence: torch.Tensor | float = 0.0
    recall: torch.Tensor | float = 0.0
    untrained: torch.Tensor | float = 0.0
    layers: int = 0

    def clear(self) -> None:
        """Begin again."""
        vars(self).update(vars(Lesson()))

    def means(self) -> dict[str, float]:
        """The mean over the layers, by name."""
        count = max(1, self.layers)
        names = ("divergence", "recall", "untrained")
        return {name: float(getattr(self, name)) / count for name in names}


@dataclass(frozen=True, eq=False)
class GateTeacher(Pattern):
    """Runs the model's attention unchanged, and adds the gradient of each layer's divergence to the gate's weights.

    Every layer learns from its own queries and keys, during the forward pass and without one through the model.

    Attributes:
        keep: the map of scores, see `LearnedGate.keep`. tile: sides of the tiles; None: the best ones of the grid.
        weights: of each layer, which learn. factor: of the loss.
        rows: query tiles of each call that teach, drawn at random; a call with no more has all.
        generator: of the draws, on the CPU.
        lesson: what was measured.
    """

    keep: Callable[[torch.Tensor, VideoGrid, Tile], BlockMap]
    tile: Tile | None
    weights: Sequence[GateWeights]
    factor: float
    rows: int
    generator: torch.Generator
    lesson: Lesson = field(default_factory=Lesson)

    def plan(self, grid: VideoGrid, context: Context | None = None) -> BlockMap:
        return Dense().plan(grid, context)

    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> Plan:
        query, key, tile = query.detach(), key.detach(), self.tile or grid.best_tile()
        pooled = Pooled.of(query, key, grid, tile)
        count = pooled.query.shape[2]
        rows = torch.randperm(count, generator=self.generator)[: self.rows].sort().values
        attention = pooled_attention(query, key, grid, tile, rows.tolist())
        with torch.enable_grad():
            scores = self.weights[context.layer].scores(pooled)
            loss = divergence(attention, scores[:, :, rows.to(scores.device)])
            (loss * self.factor).backward()
        self._measure(loss.detach(), attention, scores.detach(), pooled, rows, grid)
        return Dense().plan(grid, context)

    @torch.no_grad()
    def _measure(
        self,
        loss: torch.Tensor,
        attention: torch.Tensor,
        scores: torch.Tensor,
        pooled: Pooled,
        rows: torch.Tensor,
        grid: VideoGrid,
    ) -> None:
        lesson, tile = self.lesson, self.tile or grid.best_tile()
        heads, head_dim = pooled.query.shape[1], pooled.query.shape[-1]
        means = GateWeights(*(x.to(scores.device) for x in GateWeights.untrained(heads, head_dim))).scores(pooled)
        recalls = []
        for estimate in (scores, means):
            kept = self.keep(estimate, grid, tile).to_dense()[:, :, rows.to(scores.device)]
            recalls.append(kept_attention(attention, kept).double())
        lesson.divergence = lesson.divergence + loss.double()
        lesson.recall, lesson.untrained = lesson.recall + recalls[0], lesson.untrained + recalls[1]
        lesson.layers += 1
