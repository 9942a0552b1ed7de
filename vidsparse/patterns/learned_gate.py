"""The key tiles that a small trained gate expects to matter, from pooled queries and keys."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, cast

import torch

from vidsparse.block_map import BlockMap, head_indices
from vidsparse.grid import Tile, VideoGrid
from vidsparse.patterns.base import ContentPattern, Context
from vidsparse.patterns.fields import check_share, check_sides
from vidsparse.patterns.gate_file import Gate, load_gate, trained_transformers
from vidsparse.patterns.gate_weights import Pooled
from vidsparse_kernels.layout import tile_sizes
from vidsparse_kernels.selection.rule import Rule, forced_tiles
from vidsparse_kernels.selection.select import select_tiles


@dataclass(frozen=True)
class LearnedGate(ContentPattern):
    """Keeps, for each query tile, the key tiles with the highest score of a gate that was trained for the model.

    Each layer and head has two matrices. With the mean query of tile i, the mean key of tile j, and the largest and the
    least key of tile j in each channel, tile j of n tokens has for tile i the score

        log n + (W_q mean(q)) . (W_k [mean(k), max(k), min(k)]) / sqrt(head_dim)

    whose softmax over j estimates the fraction of attention that each tile gets. `vidsparse finetune --train-gate`
    trains the matrices and nothing else, by the divergence (KL) of this softmax from the attention of the model, summed
    over the keys of a tile and averaged over its queries. It begins with matrices that leave the means as they are,
    which is `TopBlocks`.

        vidsparse.sparsify(pipe, LearnedGate("runs/gate", density=0.2))

    The model must be the one that the gate was trained for, which is checked when the pattern is put into it. The file
    is read then, and again when it has changed.

    Paper: Gao et al., SeerAttention, arXiv 2410.13276. Code: microsoft/SeerAttention at 005c6a6. Differences: made for
    video: tiles are boxes, nothing is causal, and the query's own tile is always kept; queries and keys are pooled with
    their rotary positions, so that the gate has none of its own; log n lowers the tiles that the border cuts; the gate
    learns from the sum of attention over a tile instead of its largest value, because a sum is what a tile adds to the
    output; text is exact, and not part of the gate.

    Attributes:
        gate: file of the gate, or the folder of its training, which has one for each transformer that was trained.
        density: the fraction of the key tiles that each query tile keeps, rounded, at least one tile. Or instead:
        threshold: it keeps the tiles with at least this estimated attention, and its own in any case.
        tile: sides of the tiles; by default those of the training.
    """

    gate: str
    density: float | None = None
    threshold: float | None = None
    tile: Tile | None = None

    named_defaults: ClassVar[dict[str, Any]] = {"gate": "FOLDER", "density": 0.2}
    named_alternatives = ("threshold",)

    def __post_init__(self) -> None:
        if not isinstance(self.gate, str) or not self.gate:
            raise ValueError(f"gate={self.gate!r} must be the name of a file or folder, such as gate=runs/gate")
        if (self.density is None) == (self.threshold is None):
            raise ValueError(
                f"give one of density and threshold, such as LearnedGate({self.gate!r}, density=0.2), not "
                f"density={self.density} and threshold={self.threshold}"
            )
        check_share(self, "density", "threshold", optional=True)
        check_sides(self, "tile", optional=True)

    @classmethod
    def named(cls, **settings: Any) -> LearnedGate:
        """Build the pattern from words: a threshold takes the place of the density, and not of the gate."""
        return cls(**{"gate": cls.named_defaults["gate"], **settings})

    def load(self, transformer: str = "transformer") -> Gate:
        """The gate of a transformer.

        Raises:
            ValueError: see `load_gate`.
        """
        return load_gate(self.gate, transformer)

    def tile_for(self, grid: VideoGrid, transformer: str = "transformer") -> Tile:
        """The tile sides used for a grid."""
        return self.tile or self.load(transformer).header.tile or grid.best_tile()

    def plan(self, grid: VideoGrid, context: Context | None = None) -> BlockMap:
        """The map for content that is all alike, for which every gate keeps the largest tiles."""
        context = Context() if context is None else context
        tile = self.tile_for(grid, context.transformer)
        log_sizes = tile_sizes(grid.view, tile).log()
        return self.keep(log_sizes.expand(1, context.heads, len(log_sizes), -1), grid, tile)

    @torch.no_grad()
    def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> BlockMap:
        gate = self.load(context.transformer)
        known = gate.header
        if not (context.layers == known.layers and context.heads == known.heads and query.shape[-1] == known.head_dim):
            raise ValueError(
                f"the gate {gate.path} is for {known.layers} layers of {known.heads} heads of {known.head_dim} "
                f"channels, and this is one of {context.layers} layers of {context.heads} heads of {query.shape[-1]}"
            )
        tile = self.tile or known.tile or grid.best_tile()
        weights = gate.weights(context.layer, query.device)
        if context.local_heads is not None:
            weights = weights.of_heads(head_indices(context.local_heads, query.device))
        return self.keep(weights.scores(Pooled.of(query, key, grid, tile)), grid, tile)

    def check_model(self, layers: int, heads: int | None) -> None:
        # The gates of two experts have the same shape; which transformer this is, `sparsify` knows.
        heads = 0 if heads is None else heads
        for gate in self._present():
            if gate.header.layers != layers or heads not in (0, gate.header.heads):
                raise ValueError(
                    f"the gate {gate.path} is for {gate.header.layers} layers of {gate.header.heads} heads, the model "
                    f"has {layers} layers of {heads or 'unknown'} heads; train one for it, and let all heads of a "
                    "layer have it"
                )

    def _present(self) -> list[Gate]:
        """The gates of all transformers that the folder has, or that of the file."""
        return [self.load(name) for name in trained_transformers(self.gate)] or [self.load()]

    def keep(self, scores: torch.Tensor, grid: VideoGrid, tile: Tile) -> BlockMap:
        """The map of scores, float32 [B, H, tiles, tiles]."""
        forced = _own(grid.view, tile, scores.device)
        count = scores.shape[-1]
        amount = None if self.density is None else max(1, round(self.density * count))
        rule = Rule("top_k", amount) if amount is not None else Rule("threshold", cast("float", self.threshold))
        counts, indices = select_tiles(scores, rule, forced)
        # The length of top-k rows is known; for a threshold this synchronises the device once.
        longest = int(counts.max()) if amount is None else amount
        return BlockMap(grid, tile, tile, counts, indices[..., :longest].contiguous())


@lru_cache(maxsize=32)
def _own(view: Tile, tile: Tile, device: torch.device) -> torch.Tensor:
    """Each query tile's own key tile: bool [1, 1, tiles, tiles]."""
    return forced_tiles(view, tile, tile).to(device)
