"""What really ran: density, tile, implementation and seconds of every layer and step, and whether it paid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from vidsparse.grid import Tile


@dataclass(frozen=True)
class LayerCall:
    """One call of one attention layer.

    Attributes:
        transformer: "transformer" or "transformer_2".
        layer, step: indices.
        tokens: length of the sequence.
        impl: what ran: "cpu", "flex", "reference", or "dense" for the model's own attention.
        density: kept / all pairs of video tiles. token_density: kept / all pairs of tokens, text included.
        tile: query tile, None when dense.
        seconds: of the whole attention layer, projections included.
        flops, dense_flops: of the two matrix products, as run and as dense.
        reason: why the call was dense, None when sparse.
    """

    transformer: str
    layer: int
    step: int
    tokens: int
    impl: str
    density: float
    token_density: float
    tile: Tile | None
    seconds: float
    flops: float
    dense_flops: float
    reason: str | None


@dataclass(frozen=True)
class Report:
    """All attention calls since `sparsify` (or the last reset), and their sums."""

    calls: tuple[LayerCall, ...]
    pattern: str

    @property
    def sparse_calls(self) -> list[LayerCall]:
        return [c for c in self.calls if c.reason is None]

    @property
    def density(self) -> float:
        """Mean density of video tile pairs over the sparse calls; 1 when there is none."""
        return _mean(c.density for c in self.sparse_calls)

    @property
    def token_density(self) -> float:
        """Mean density of all token pairs over the sparse calls; 1 when there is none."""
        return _mean(c.token_density for c in self.sparse_calls)

    @property
    def seconds(self) -> float:
        """Seconds in the attention layers."""
        return sum(c.seconds for c in self.calls)

    @property
    def flops_saved(self) -> float:
        """The fraction of dense attention FLOPs that were not spent, dense calls counted in."""
        dense = sum(c.dense_flops for c in self.calls)
        return 1 - sum(c.flops for c in self.calls) / dense if dense else 0.0

    @property
    def dense_reasons(self) -> dict[str, int]:
        """Reason -> how many calls ran dense for it."""
        return dict(Counter(c.reason for c in self.calls if c.reason is not None))

    @property
    def advice(self) -> list[str]:
        """Why sparsity could not pay in this run, each with its number; empty when it could."""
        found = []
        if self.calls and max(c.tokens for c in self.calls) < 4096:
            found.append(
                f"{max(c.tokens for c in self.calls)} tokens are few: under 4096, projections outweigh attention"
            )
        if self.sparse_calls and self.token_density > 0.6:
            found.append(
                f"density {self.token_density:.2f} is high: at most {1 / self.token_density:.2f}x in attention"
            )
        dense = len(self.calls) - len(self.sparse_calls)
        if self.calls and dense / len(self.calls) > 0.5:
            found.append(f"{dense / len(self.calls):.0%} of the calls ran dense: {self.dense_reasons}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        return {
            "pattern": self.pattern,
            "density": self.density,
            "token_density": self.token_density,
            "seconds": self.seconds,
            "flops_saved": self.flops_saved,
            "sparse_calls": len(self.sparse_calls),
            "dense_calls": len(self.calls) - len(self.sparse_calls),
            "dense_reasons": self.dense_reasons,
            "advice": self.advice,
            "calls": [asdict(c) for c in self.calls],
        }

    def __str__(self) -> str:
        if not self.calls:
            return f"{self.pattern}: no attention has run"
        lines = [
            f"{self.pattern}: {len(self.sparse_calls)} of {len(self.calls)} attention calls sparse, "
            f"{self.flops_saved:.0%} of the attention FLOPs saved, {self.seconds:.2f} s in attention layers"
        ]
        kinds = sorted({(c.impl, c.tile, c.tokens) for c in self.sparse_calls})
        if kinds:
            lines.append(
                f"measured density: {self.density:.3f} of video tile pairs, {self.token_density:.3f} of token pairs"
            )
            lines += [f"ran: impl {impl}, tile {tile}, {tokens} tokens" for impl, tile, tokens in kinds]
        lines += [f"dense: {count} calls, {reason}" for reason, count in self.dense_reasons.items()]
        return "\n".join(lines + [f"note: {text}" for text in self.advice])


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else 1.0
