"""One call of one attention layer: attention under the maps of its pattern, on one GPU or on several."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from vidsparse.block_map import HeadGroup, head_groups, head_indices
from vidsparse.corrections import Correction
from vidsparse.corrections.proxy_weights import Proxies, ProxyWeights
from vidsparse.grid import VideoGrid
from vidsparse.patterns import Context, Pattern, SlidingClip, TemporalBias
from vidsparse.patterns.base import patterns_in
from vidsparse.runtime.balance import MeasuredCosts, balanced, planned_costs
from vidsparse.runtime.chosen import ChosenMaps
from vidsparse.runtime.frame_channels import widen
from vidsparse.runtime.heads import Operands, Part, attend_group, dense_attention, densities_of_heads, interleave
from vidsparse.runtime.ranks import Ranks
from vidsparse.runtime.stopwatch import Stopwatch
from vidsparse.runtime.untraced import untraced

# Batch sizes that a branch keeps a memory for: FasterCache leaves half of the batch out in some steps.
BATCH_SIZES = 2


@dataclass
class Memory:
    """What is kept from step to step for one branch and batch size.

    Attributes:
        pattern: the pattern's own. correction: heads of a group -> the correction's own.
        heads: under context parallelism the heads of each rank. costs: of the heads, measured at the last call.
        biased: whether the correction's are of a call with a temporal bias, whose heads have more channels.
    """

    pattern: dict[Any, Any] = field(default_factory=dict)
    correction: dict[tuple[int, ...], dict[Any, Any]] = field(default_factory=dict)
    heads: tuple[tuple[int, ...], ...] | None = None
    costs: MeasuredCosts | None = None
    biased: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether pattern and correction keep nothing."""
        return not self.pattern and not any(self.correction.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all values that say their `nbytes`."""
        kept = [*self.pattern.values(), *(x for memory in self.correction.values() for x in memory.values())]
        return sum(getattr(x, "nbytes", 0) for x in kept)


@dataclass(frozen=True)
class SparsityOptions:
    """The arguments of `sparsify`."""

    pattern: Pattern
    correction: Correction | None = None
    impl: str = "auto"
    strict: bool = False
    min_tokens: int = 0

    def check_grid(self, grid: VideoGrid) -> None:
        """Refuse a video.

        Raises:
            ValueError: one that the pattern is not for, or a correction that would undo a `SlidingClip`.
        """
        self.pattern.check_grid(grid)
        if self.correction is None:
            return
        for inner in patterns_in(self.pattern):
            if isinstance(inner, SlidingClip) and grid.frames > inner.frames:
                raise ValueError(
                    f"correction={self.correction!r} would add frames beyond the clips of {inner.frames} latent frames "
                    f"of SlidingClip in a video of {grid.frames}; give no correction"
                )

    def bias(self, context: Context) -> TemporalBias | None:
        """The temporal bias of a call, or None."""
        return self.pattern if isinstance(self.pattern, TemporalBias) and self.pattern.is_due(context) else None


@dataclass(frozen=True)
class Unrecorded:
    """A dense call that ran inside a graph: the shapes of its output, and why its processor could not run it sparse."""

    shapes: list[torch.Size]
    unsupported: str | None


@dataclass(eq=False)
class Call:
    """One call of one attention layer, made before the transformer's forward pass.

    Attributes:
        reason: why the call runs the model's own attention, or None where it is sparse.
        context: layer, step and branch. memories: batch size -> what is kept of this branch from step to step.
        parts: what has run sparse. stopwatch: of the layer. choosing: of the choice of tiles, once it is made.
        unrecorded: of a dense call inside a graph of `torch.compile`, until it is recorded.
        ranks: the GPUs that share the video, or None. ends: how many tokens at the start and at the end of the sequence
            each of them has, see `Adapter.ends`.
        dense: why `attend` sees all keys, in a family whose own attention cannot run on several GPUs, or None.
        densities: of all heads on all ranks, as `mean_densities` gives them.
        heads: batch size -> the heads of each rank, once they are chosen. A block that gradient checkpointing computes
            again has the same, though costs were measured in between.
        maps: gets what the pattern chooses.
        proxies: what the layer has learned for `ProxyTokens`, or None. learned: its weights, while the layer runs.
    """

    options: SparsityOptions
    context: Context
    known_grid: VideoGrid | None
    memories: dict[int, Memory]
    reason: str | None = None
    parts: list[Part] = field(default_factory=list)
    stopwatch: Stopwatch | None = None
    choosing: Stopwatch | None = None
    unrecorded: Unrecorded | None = None
    ranks: Ranks | None = None
    ends: tuple[int, int] = (0, 0)
    dense: str | None = None
    densities: torch.Tensor | None = None
    heads: dict[int, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    maps: ChosenMaps = field(default_factory=ChosenMaps)
    proxies: ProxyWeights | None = None
    learned: Proxies | None = None

    @property
    def grid(self) -> VideoGrid:
        """The token grid of the forward pass.

        Raises:
            RuntimeError: it is unknown, and the call cannot be sparse.
        """
        if self.known_grid is None:
            raise RuntimeError("this call has no token grid and cannot be sparse; run the model's own processor")
        return self.known_grid

    @untraced
    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extra_valid: torch.Tensor | None = None,
        gate: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention under the map, or maps, of the pattern.

        Args:
            query, key, value: [batch, tokens, heads, head_dim].
            extra_valid: int [batch], how many of the prefix and suffix tokens, in sequence order, are real; None: all.
            gate: for a model that has learned a gate of the output, of the shape of the query.

        Returns:
            [batch, tokens, heads, head_dim].
        """
        kind = query.device.type
        # As for PyTorch's own attention: norms give float32 under autocast, attention has the lower precision.
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
        with torch.autocast(kind, enabled=False):  # the scores that maps are chosen by keep their precision
            given = Operands(query, key, value, extra_valid, gate)
            return self.attend_lowered(given, given.to(low))

    def attend_lowered(self, given: Operands, lowered: Operands) -> torch.Tensor:
        """The same without autocast: maps are chosen by the operands as given, attention is of the lowered ones."""
        context = replace(self.context, heads=given.query.shape[2])
        if self.ranks is None:
            return self._attend(given, lowered, context)
        return self._attend_shared(self.ranks, given, lowered, context)

    def _attend_shared(self, ranks: Ranks, given: Operands, lowered: Operands, context: Context) -> torch.Tensor:
        """Attention of this rank's tokens: all tokens of some heads, between two exchanges with the other ranks.

        Every rank makes the same exchanges, whatever its map: nothing here depends on what the tensors hold.
        """
        batch = len(given.query)
        if batch not in self.heads:
            self.heads[batch] = self._heads_of_ranks(ranks.size, self._memory(batch), context)
        heads = self.heads[batch]
        exchange = ranks.exchange(self.grid.tokens, self.ends, heads)
        expected = exchange.tokens[exchange.rank] + sum(self.ends)
        if (tokens := given.query.shape[1]) != expected:
            raise ValueError(
                f"this GPU has {tokens} of the {self.grid.tokens} tokens, expected {expected}; let "
                "vidsparse.enable_parallelism divide them, without a cp_plan of your own"
            )
        local = lowered.exchanged(exchange)
        same = given.query.dtype == lowered.query.dtype
        own = replace(context, local_heads=exchange.own_heads, gather=exchange.gather)
        out = exchange.join_heads(self._attend(local if same else given.exchanged(exchange), local, own))
        if self.parts:
            densities = exchange.gather(densities_of_heads(self.parts))
            self.densities = densities.mean(dim=1)
            self._memory(batch).costs = MeasuredCosts(densities[1])
        return out

    def _heads_of_ranks(self, ranks: int, memory: Memory, context: Context) -> tuple[tuple[int, ...], ...]:
        """The heads of each rank. They move to balance the work, but not while something of earlier steps is kept."""
        if memory.heads is None or memory.is_empty:
            costs = [1.0] * context.heads if self.dense is not None else None
            costs = costs or planned_costs(self.options.pattern, self.grid, context)
            if costs is None:
                costs = [1.0] * context.heads if memory.costs is None else memory.costs.read()
            memory.heads = balanced(costs, ranks)
        return memory.heads

    def _attend(self, given: Operands, lowered: Operands, context: Context) -> torch.Tensor:
        """Attention of the heads that are here, with all of their tokens."""
        if self.dense is not None:
            return dense_attention(lowered.query, lowered.key, lowered.value, self.grid, lowered.extra_valid)
        options, memory = self.options, self._memory(len(given.query))
        query, key, value, extra_valid = given[:4]
        context = replace(context, value=value, extra_valid=extra_valid, memory=memory.pattern)
        choosing = Stopwatch(query.device)
        groups = head_groups(options.pattern.select(query, key, self.grid, context), query.shape[2])
        self.choosing = choosing.stop()
        if context.key_grid is not None:
            _check_keys(groups, options.pattern, context.key_grid)
        self.maps.add(context, self.grid, groups)
        bias = options.bias(context)
        if memory.biased != (bias is not None):
            memory.biased = bias is not None
            memory.correction.clear()
        # Drop the correction's state for head groups that no longer exist.
        for gone in memory.correction.keys() - {group.heads for group in groups}:
            del memory.correction[gone]
        operands = lowered if bias is None else widen(lowered, bias, self.grid, context.key_grid)
        proxies = self._proxies(query.device, context.local_heads)
        attended = [
            attend_group(
                group,
                operands,
                replace(context, memory=memory.correction.setdefault(group.heads, {})),
                options.impl,
                options.correction,
                options.strict,
                proxies,
            )
            for group in groups
        ]
        self.parts = [part for part, _ in attended]
        out = interleave(self.parts, [out for _, out in attended])
        return out if bias is None else out[..., : value.shape[-1]]

    def _proxies(self, device: torch.device, heads: tuple[int, ...] | None) -> Proxies | None:
        """What the layer has learned for its heads, or for those that are here."""
        if self.proxies is None:
            return None
        found: Proxies = (self.proxies() if self.learned is None else self.learned).to(device)
        return found if heads is None else found.of_heads(head_indices(heads, device))

    def _memory(self, batch: int) -> Memory:
        if batch not in self.memories and len(self.memories) == BATCH_SIZES:
            del self.memories[next(iter(self.memories))]
        return self.memories.setdefault(batch, Memory())


def _check_keys(groups: tuple[HeadGroup, ...], pattern: Pattern, keys: VideoGrid) -> None:
    """Refuse a map for other keys than those of the call; a map may see them as a line, in raster order."""
    for group in groups:
        if (found := group.block_map.key_grid) not in (keys, keys.raster):
            raise ValueError(
                f"{pattern!r} gave a map for keys of {found}, but those of the call are {keys}; let its select read "
                "context.key_grid, or set two_grids = False in its class"
            )
