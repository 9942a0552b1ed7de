"""Report what really ran: density, tile, implementation and seconds of every layer and step, and whether it paid."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from vidsparse.grid import Tile
from vidsparse.runtime.chosen import ChosenMaps
from vidsparse.runtime.stopwatch import Stopwatch

PENDING_CALLS = 4096  # calls whose seconds are not read yet; reading them synchronises with a GPU


@dataclass(frozen=True)
class LayerCall:
    """The calls of one attention layer in one step that ran in one way (with separate CFG, two).

    Where several GPUs share a video, tokens, densities and FLOPs are those of the whole call, all heads on all GPUs,
    and the same in the report of each. Implementation, tiles, seconds and kept bytes are those of this GPU.

    Attributes:
        transformer: "transformer", "transformer_2" (the expert for less noise) or "transformer_ref" (for references).
        layer, step: indices.
        tokens: length of the sequence, of the queries where keys are of more frames.
        keys: length of the sequence of keys where it is another, else None.
        impl: what ran: "triton", "cpu", "flex", "reference", or "dense" for the model's own attention.
        fallback: why impl="auto" did not run what is fastest on this device, None if it did.
        tiles: query tiles, one for each shape that heads of the layer have; none when dense.
        reason: why the calls were dense, None when sparse.
        density: kept / all pairs of video tiles. token_density: kept / all pairs of tokens, text included.
        seconds: of the whole attention layer, projections included, over all calls. Where `torch.compile` puts the
            projections into a graph, of attention alone; 0 for a dense call there. The first call of a layer is left
            out if the inputs of the transformer came from another device than the one that computes.
        choosing: seconds of these in which the pattern chose its tiles; 0 for dense calls.
        flops, dense_flops: of attention's two matrix products, as run and as dense, over all calls; what a correction
            adds to sparse attention is not counted.
        steps: how many steps the run has, 0 while unknown.
        kept_bytes: what pattern and correction keep of the layer for later steps, all branches together.
        calls: how many.
        biased: whether they had the bias of a `TemporalBias`, whose extra channels are in no count of FLOPs.
    """

    transformer: str
    layer: int
    step: int
    tokens: int
    impl: str
    fallback: str | None
    tiles: tuple[Tile, ...]
    reason: str | None
    dense_flops: float
    density: float = 1.0
    token_density: float = 1.0
    seconds: float = 0.0
    choosing: float = 0.0
    flops: float = 0.0
    steps: int = 0
    kept_bytes: int = 0
    calls: int = 1
    keys: int | None = None
    biased: bool = False

    @property
    def way(self) -> tuple[object, ...]:
        """The properties that calls share if they are counted together."""
        return (
            *(self.transformer, self.layer, self.step, self.tokens, self.keys),
            *(self.impl, self.fallback, self.tiles, self.reason, self.steps == 0),
            self.biased,
        )

    def __add__(self, other: LayerCall) -> LayerCall:
        """Both together; densities are means over the calls."""
        calls = self.calls + other.calls
        share = self.calls / calls
        return replace(
            self,
            density=share * self.density + (1 - share) * other.density,
            token_density=share * self.token_density + (1 - share) * other.token_density,
            seconds=self.seconds + other.seconds,
            choosing=self.choosing + other.choosing,
            flops=self.flops + other.flops,
            dense_flops=self.dense_flops + other.dense_flops,
            kept_bytes=max(self.kept_bytes, other.kept_bytes),
            calls=calls,
        )


@dataclass(frozen=True)
class Skipped:
    """Attention calls of one step, all layers together, that its forward passes did not make.

    A cache of blocks leaves out the whole block; one of attention (PyramidAttentionBroadcast, FasterCache,
    TaylorSeerCache) reuses or predicts the output of attention, and the rest of the block runs.

    Attributes:
        transformer, step: as for `LayerCall`. calls: how many.
        by: what was on, such as "FirstBlockCache", "the schedule" or "a guider"; "something unknown" where nothing that
            is known was on, such as a cache of another package.
    """

    transformer: str
    step: int
    calls: int
    by: str


class Log:
    """Gathers the calls of a run.

    Densities and seconds stay on the device until they are asked for, or until `PENDING_CALLS` have gathered.

    Attributes:
        maps: what the pattern chose, where `Run.record` asked for it.
    """

    def __init__(self) -> None:
        self.maps = ChosenMaps()
        self._calls: dict[tuple[object, ...], LayerCall] = {}
        self._pending: list[tuple[LayerCall, torch.Tensor | None, Stopwatch | None, Stopwatch | None]] = []
        self._expected: Counter[tuple[str, int, int]] = Counter()  # transformer, layer, step
        self._savers: dict[tuple[str, int, int], dict[str, None]] = {}  # in order, each once

    def expect(self, transformer: str, layer: int, step: int, saver: str | None) -> None:
        """Count one forward pass that will call a layer, unless `saver` leaves it out."""
        self._expected[transformer, layer, step] += 1
        if saver is not None:
            self._savers.setdefault((transformer, layer, step), {})[saver] = None

    def add(
        self,
        call: LayerCall,
        densities: torch.Tensor | None,
        stopwatch: Stopwatch | None,
        choosing: Stopwatch | None = None,
    ) -> None:
        """Add one call.

        Args:
            call: density, seconds and FLOPs are added to it later.
            densities: of video tile pairs and of token pairs, float64 [2]; None for a dense call.
            stopwatch: stopped; None for a call that was not timed.
            choosing: of the choice of tiles, stopped; None for a call without one.
        """
        self._pending.append((call, densities, stopwatch, choosing))
        if len(self._pending) >= PENDING_CALLS:
            self._settle()

    def calls(self) -> tuple[LayerCall, ...]:
        """All calls, those that ran in the same way as one; synchronises with the device."""
        self._settle()
        return tuple(self._calls.values())

    def skipped(self) -> tuple[Skipped, ...]:
        """The calls that were expected and not made, of layers that are not in a forward pass now."""
        made: Counter[tuple[str, int, int]] = Counter()
        for call in self.calls():
            made[call.transformer, call.layer, call.step] += call.calls
        left_out: Counter[tuple[str, int, str]] = Counter()
        for place, expected in self._expected.items():
            by = " and ".join(self._savers.get(place, ())) or "something unknown"
            # Modules that are called by hand, and recomputed layers, run more often than forward passes expect.
            left_out[place[0], place[2], by] += max(0, expected - made[place])
        return tuple(Skipped(name, step, calls, by) for (name, step, by), calls in left_out.items() if calls)

    def clear(self) -> None:
        self.maps.clear()
        self._pending.clear()
        self._calls.clear()
        self._expected.clear()
        self._savers.clear()

    def _settle(self) -> None:
        """Add the pending calls, with their numbers, to the sums: memory stays bounded in a long training."""
        for call, densities, stopwatch, choosing in self._pending:
            density, token_density = (1.0, 1.0) if densities is None else densities.tolist()
            call = replace(
                call,
                density=density,
                token_density=token_density,
                seconds=0.0 if stopwatch is None else stopwatch.seconds(),
                choosing=0.0 if stopwatch is None or choosing is None else choosing.seconds(),
                flops=token_density * call.dense_flops,
            )
            known = self._calls.get(call.way)
            self._calls[call.way] = call if known is None else known + call
        self._pending.clear()

    def __deepcopy__(self, memo: dict[int, object]) -> Log:
        """The log of a copied transformer starts empty."""
        return Log()


@dataclass(frozen=True)
class Report:
    """All attention calls since `sparsify` (or the last reset), and their sums.

    Attributes:
        lost: what was changed since `sparsify` so that it does not run any more, such as an exchanged transformer.
        skipped: attention calls that caches or the schedule left out. They are in no other number of the report.
    """

    calls: tuple[LayerCall, ...]
    pattern: str
    lost: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    @property
    def skipped_calls(self) -> int:
        """How many attention calls were left out: forward passes times layers, less the calls that ran."""
        return sum(s.calls for s in self.skipped)

    @property
    def sparse(self) -> list[LayerCall]:
        """The calls that ran sparse."""
        return [c for c in self.calls if c.reason is None]

    @property
    def sparse_calls(self) -> int:
        return sum(c.calls for c in self.sparse)

    @property
    def dense_calls(self) -> int:
        return sum(c.calls for c in self.calls) - self.sparse_calls

    @property
    def biased_calls(self) -> int:
        """How many calls had the bias of a `TemporalBias`."""
        return sum(c.calls for c in self.calls if c.biased)

    @property
    def density(self) -> float:
        """Mean density of video tile pairs over the sparse calls; 1 when there is none."""
        return _mean([(c.density, c.calls) for c in self.sparse])

    @property
    def token_density(self) -> float:
        """Mean density of all token pairs over the sparse calls; 1 when there is none."""
        return _mean([(c.token_density, c.calls) for c in self.sparse])

    @property
    def seconds(self) -> float:
        """Seconds in the attention layers."""
        return sum(c.seconds for c in self.calls)

    @property
    def choosing_seconds(self) -> float:
        """Seconds of these in which the pattern chose its tiles."""
        return sum(c.choosing for c in self.calls)

    @property
    def flops_saved(self) -> float:
        """The fraction of dense attention FLOPs that were not spent, dense calls counted in."""
        dense = sum(c.dense_flops for c in self.calls)
        return 1 - sum(c.flops for c in self.calls) / dense if dense else 0.0

    @property
    def dense_reasons(self) -> dict[str, int]:
        """Reason -> how many calls ran dense for it."""
        counts: Counter[str] = Counter()
        for call in self.calls:
            if call.reason is not None:
                counts[call.reason] += call.calls
        return dict(counts)

    @property
    def ran(self) -> list[str]:
        """How the sparse calls ran: implementation, tile, tokens and keys, and the reason for a fallback."""
        kinds = sorted({(c.impl, c.tiles, c.tokens, c.keys or 0, c.fallback or "") for c in self.sparse})
        return [
            f"impl {impl}, tile {' and '.join(map(str, tiles))}, {tokens} tokens"
            + (f" that see {keys}" if keys else "")
            + (f" ({fallback})" if fallback else "")
            for impl, tiles, tokens, keys, fallback in kinds
        ]

    @property
    def kept_bytes(self) -> int:
        """The most that patterns and corrections kept at a step for later ones, over all layers."""
        layers: dict[tuple[str, int, int], int] = {}  # a layer may run in several ways in a step
        for call in self.calls:
            place = call.transformer, call.step, call.layer
            layers[place] = max(layers.get(place, 0), call.kept_bytes)
        kept: Counter[tuple[str, int]] = Counter()
        for (transformer, step, _), count in layers.items():
            kept[transformer, step] += count
        return max(kept.values(), default=0)

    @property
    def advice(self) -> list[str]:
        """Reasons why sparsity could not pay in this run, each with its number; empty when it could."""
        found = []
        tokens = max((c.keys or c.tokens for c in self.calls), default=None)
        if tokens is not None and tokens < 4096:
            found.append(f"{tokens} tokens are few: under 4096, projections outweigh attention")
        if self.sparse_calls and self.token_density > 0.6:
            found.append(
                f"density {self.token_density:.2f} is high: at most {1 / self.token_density:.2f}x in attention"
            )
        calls = self.dense_calls + self.sparse_calls
        if self.dense_calls > calls / 2:
            found.append(f"{self.dense_calls / calls:.0%} of the calls ran dense ({'; '.join(self.dense_reasons)})")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        return {
            "pattern": self.pattern,
            "density": self.density,
            "token_density": self.token_density,
            "seconds": self.seconds,
            "choosing_seconds": self.choosing_seconds,
            "flops_saved": self.flops_saved,
            "kept_bytes": self.kept_bytes,
            "sparse_calls": self.sparse_calls,
            "dense_calls": self.dense_calls,
            "biased_calls": self.biased_calls,
            "dense_reasons": self.dense_reasons,
            "skipped_calls": self.skipped_calls,
            "skipped": [asdict(s) for s in self.skipped],
            "lost": list(self.lost),
            "advice": self.advice,
            "calls": [asdict(c) for c in self.calls],
        }

    def __repr__(self) -> str:
        calls = self.sparse_calls + self.dense_calls
        found = f"{self.sparse_calls} of {calls} calls sparse, density {self.density:.2f}" if calls else "no calls"
        return f"Report({self.pattern}, {found})"

    def _repr_html_(self) -> str:
        from vidsparse.pictures.html import report_html

        return report_html(self)

    def __str__(self) -> str:
        if not self.calls:
            return "\n".join([f"{self.pattern}: no attention has run", *(f"lost: {text}" for text in self.lost)])
        lines = [
            f"{self.pattern}: {self.sparse_calls} of {self.sparse_calls + self.dense_calls} attention calls sparse, "
            f"{self.flops_saved:.0%} of the attention FLOPs saved, {self.seconds:.2f} s in attention layers"
        ]
        if self.sparse:
            lines.append(
                f"measured density: {self.density:.3f} of video tile pairs, {self.token_density:.3f} of token pairs"
            )
            lines += [f"ran: {text}" for text in self.ran]
        if self.biased_calls:
            lines.append(f"temporal bias: {self.biased_calls} calls")
        if self.kept_bytes:
            lines.append(f"kept from step to step: {self.kept_bytes / 1e6:.2f} MB")
        lines += [f"dense: {count} calls, {reason}" for reason, count in self.dense_reasons.items()]
        made = self.sparse_calls + self.dense_calls
        for by in dict.fromkeys(s.by for s in self.skipped):
            count = sum(s.calls for s in self.skipped if s.by == by)
            lines.append(f"skipped: {count} of {made + self.skipped_calls} attention calls, by {by}")
        lines += [f"lost: {text}" for text in self.lost]
        return "\n".join(lines + [f"note: {text}" for text in self.advice])


def _mean(weighted: list[tuple[float, int]]) -> float:
    total = sum(weight for _, weight in weighted)
    return sum(value * weight for value, weight in weighted) / total if total else 1.0
