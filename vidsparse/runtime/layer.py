"""One attention layer: `begin`, `attend` and `end` of its calls."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from vidsparse.attention import dense_flops
from vidsparse.block_map import head_groups
from vidsparse.corrections import Correction
from vidsparse.grid import VideoGrid
from vidsparse.patterns import Context, Pattern
from vidsparse.runtime.adapter import States
from vidsparse.runtime.balance import MeasuredCosts, balanced, planned_costs
from vidsparse.runtime.caches import MEASURED
from vidsparse.runtime.clock import Clock
from vidsparse.runtime.compiled import CompiledCall, handle_of
from vidsparse.runtime.guiders import GUIDED, GUIDER
from vidsparse.runtime.heads import (
    Operands,
    Part,
    attend_group,
    dense_attention,
    densities_of_heads,
    interleave,
    mean_densities,
)
from vidsparse.runtime.ranks import Ranks
from vidsparse.runtime.report import LayerCall, Log
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
    """

    pattern: dict[Any, Any] = field(default_factory=dict)
    correction: dict[tuple[int, ...], dict[Any, Any]] = field(default_factory=dict)
    heads: tuple[tuple[int, ...], ...] | None = None
    costs: MeasuredCosts | None = None

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


@dataclass(eq=False)
class Call:
    """One call of one attention layer, made before the transformer's forward pass.

    Attributes:
        reason: why the call runs the model's own attention, or None where it is sparse.
        context: layer, step and branch. memories: batch size -> what is kept of this branch from step to step.
        parts: what has run sparse. stopwatch: of the layer.
        shapes, unsupported: of a dense call inside a graph of `torch.compile`, until it is recorded: the shapes of its
            output, and why its processor could not run it sparse, or None.
        ranks: the GPUs that share the video, or None. ends: how many tokens at the start and at the end of the sequence
            each of them has, see `Adapter.ends`.
        dense: why `attend` sees all keys, in a family whose own attention cannot run on several GPUs, or None.
        densities: of all heads on all ranks, as `mean_densities` gives them.
    """

    options: SparsityOptions
    context: Context
    known_grid: VideoGrid | None
    memories: dict[int, Memory]
    reason: str | None = None
    parts: list[Part] = field(default_factory=list)
    stopwatch: Stopwatch | None = None
    shapes: list[torch.Size] | None = None
    unsupported: str | None = None
    ranks: Ranks | None = None
    ends: tuple[int, int] = (0, 0)
    dense: str | None = None
    densities: torch.Tensor | None = None

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
        heads = self._heads_of_ranks(ranks.size, self._memory(len(given.query)), context)
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
            self._memory(len(given.query)).costs = MeasuredCosts(densities[1])
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
        query, key, value, extra_valid, _ = given
        context = replace(context, value=value, extra_valid=extra_valid, memory=memory.pattern)
        groups = head_groups(options.pattern.select(query, key, self.grid, context), query.shape[2])
        # Drop the correction's state for head groups that no longer exist.
        for gone in memory.correction.keys() - {group.heads for group in groups}:
            del memory.correction[gone]
        attended = [
            attend_group(
                group,
                lowered,
                replace(context, memory=memory.correction.setdefault(group.heads, {})),
                options.impl,
                options.correction,
                options.strict,
            )
            for group in groups
        ]
        self.parts = [part for part, _ in attended]
        return interleave(self.parts, [out for _, out in attended])

    def _memory(self, batch: int) -> Memory:
        if batch not in self.memories and len(self.memories) == BATCH_SIZES:
            del self.memories[next(iter(self.memories))]
        return self.memories.setdefault(batch, Memory())


class Layer:
    """Decides how one attention layer runs, and records what ran; the `SparseLayer` of its processor.

    Args:
        options: what `sparsify` was asked for. log: gets the record of each call. clock: of the transformer.
        name: of the transformer, as "transformer". index, layers: which attention layer it is, of how many.
        attention_width: heads times head_dim; None where the output has this width.

    Attributes:
        call: the present call; None before the first. sparse: whether it is, unless its processor meets something that
            it does not know.
        handle: what graphs of `torch.compile` hold of the layer.
        memories: branch -> batch size -> what pattern and correction keep from step to step.
        device: where the last call computed; with offloading, inputs of the transformer may come from another one.
    """

    def __init__(
        self,
        options: SparsityOptions,
        log: Log,
        clock: Clock,
        name: str,
        index: int,
        layers: int,
        attention_width: int | None = None,
    ):
        self.options, self.log, self.clock = options, log, clock
        self.transformer, self.index, self.layers, self.attention_width = name, index, layers, attention_width
        self.call: Call | None = None
        self.sparse, self.handle = False, handle_of(self)
        self.device: torch.device | None = None
        self.video, self.memories = 0, dict[int, dict[int, Memory]]()
        clock.layers.add(self)

    def prepare(self) -> None:
        """Decide whether the call that begins is sparse; the clock asks before the forward pass."""
        self.record_compiled()
        clock, options = self.clock, self.options
        if self.video != clock.steps.video:
            self.video = clock.steps.video
            self.forget()
        steps = clock.steps
        context = Context(
            layer=self.index,
            layers=self.layers,
            step=steps.step,
            steps=steps.steps,
            sigma=steps.sigma,
            transformer=self.transformer,
            branch=steps.branch,
        )
        saver = GUIDER if self.index in clock.perturbation.left_out else clock.saver
        self.log.expect(self.transformer, self.index, steps.step, saver)
        memories = self.memories.setdefault(steps.branch, {})
        self.call = Call(options, context, clock.grid, memories, clock.irregular)
        if clock.grid is None:
            self._refuse_if_strict(clock.irregular)
        elif clock.grid.tokens < options.min_tokens:
            self.call.reason = f"fewer than min_tokens={options.min_tokens} tokens"
        else:
            options.pattern.check_grid(clock.grid)
            if options.pattern.is_dense(context):
                self.call.reason = "the pattern asks for it"
            elif self.index in clock.measured:
                self.call.reason = MEASURED
            elif self.index in clock.perturbation.replaced:
                self.call.reason = GUIDED
        if clock.ranks is not None:
            self._share(self.call, clock.ranks)
        self.sparse = self.call.reason is None

    def _share(self, call: Call, ranks: Ranks) -> None:
        """Prepare a call for several GPUs."""
        adapter, call.ranks = self.clock.adapter, ranks
        if call.known_grid is None:
            self._refuse_if_own_attention_cannot_share(call.reason)
            return
        call.ends = adapter.ends(call.known_grid)
        ranks.shares(call.known_grid.tokens - sum(call.ends))  # refuses what cannot be divided, before anything runs
        if not adapter.exchanges:
            call.reason, call.dense = None, call.reason

    def begin(self, unsupported: str | None = None) -> Call | CompiledCall:
        """Begin a call of the layer.

        Args:
            unsupported: why this call cannot be sparse, or None.

        Raises:
            NotImplementedError: it cannot be sparse and `strict` is set.
            RuntimeError: the layer was called before any forward pass of its transformer.
        """
        present = self._present
        if torch.compiler.is_compiling():
            if unsupported is not None:
                self._refuse_if_strict(unsupported)
            return CompiledCall(self, self.sparse, unsupported)
        call = present if unsupported is None else self._dense_call(present, unsupported)
        call.stopwatch = Stopwatch(self.device or self.clock.device)
        return call

    def end(self, call: Call | CompiledCall, out: States) -> States:
        """Record a call that is over; returns its output.

        Args:
            call: what `begin` returned.
            out: hidden states [..., tokens, width], or those of video and of text.
        """
        tensors = [out] if isinstance(out, torch.Tensor) else [*out]
        shapes = [x.shape for x in tensors]
        if isinstance(call, Call):
            self.device = tensors[0].device
            if call.stopwatch is not None and call.stopwatch.device != self.device:
                call.stopwatch = None  # it has measured how long another device fed this one
            self._record(call, shapes)
        elif call.reason is not None and self.call is not None:
            # Recorded later: that would break the graph. A sparse call is recorded by its operator.
            self.call.shapes, self.call.unsupported = shapes, call.unsupported
        return out

    @property
    def grid(self) -> VideoGrid:
        """The token grid of the present call.

        Raises:
            RuntimeError: there is no call, or its grid is unknown.
        """
        return self._present.grid

    def attend(self, given: Operands, lowered: Operands) -> torch.Tensor:
        """Attention of the present call inside a graph, timed and recorded: see `Call.attend_lowered`."""
        call = self._present
        call.stopwatch = Stopwatch(given.query.device)
        out = call.attend_lowered(given, lowered)
        self._record(call, [out.flatten(2).shape])
        return out

    @property
    def _present(self) -> Call:
        if self.call is None:
            raise RuntimeError("attention ran outside the transformer's forward, so its grid is unknown")
        return self.call

    def record_compiled(self) -> None:
        """Record the last call if it ran dense inside a graph."""
        if self.call is None or self.call.shapes is None:
            return
        call, shapes = self.call, self.call.shapes
        self.call.shapes = None
        if call.unsupported is not None:
            call = self._dense_call(call, call.unsupported)
        self._record(call, shapes)

    @untraced
    def _record(self, call: Call, shapes: list[torch.Size]) -> None:
        stopwatch, call.stopwatch = call.stopwatch, None
        if stopwatch is not None:
            stopwatch.stop()
        parts, call.parts = call.parts, []
        tokens, (*batch, _, width) = sum(shape[-2] for shape in shapes), shapes[0]
        if call.ranks is not None:  # the shapes are those of this GPU's tokens
            tokens = tokens * call.ranks.size if call.known_grid is None else call.known_grid.tokens
        flops = torch.Size(batch).numel() * dense_flops(tokens, self.attention_width or width)
        record = LayerCall(
            transformer=self.transformer,
            layer=self.index,
            step=call.context.step,
            tokens=tokens,
            impl=" and ".join(dict.fromkeys(part.choice.impl for part in parts)) or "dense",
            fallback="; ".join(dict.fromkeys(p.choice.fallback for p in parts if p.choice.fallback is not None))
            or None,
            tiles=tuple(sorted({part.group.block_map.query_tile for part in parts})),
            reason=call.reason or call.dense,
            dense_flops=flops,
            steps=call.context.steps,
            kept_bytes=sum(memory.nbytes for batches in self.memories.values() for memory in batches.values()),
        )
        if parts and call.densities is None:
            call.densities = mean_densities(parts)
        self.log.add(record, call.densities, stopwatch)

    def forget(self, branch: int | None = None) -> None:
        """Free what is kept from step to step, of one branch or of all."""
        for gone in [*self.memories] if branch is None else [branch]:
            self.memories.pop(gone, {}).clear()  # the last call refers to it too

    def _dense_call(self, call: Call, unsupported: str) -> Call:
        reason = self.clock.irregular or unsupported
        self._refuse_if_strict(reason)
        self._refuse_if_own_attention_cannot_share(reason)
        return replace(call, reason=reason)

    def _refuse_if_own_attention_cannot_share(self, reason: str | None) -> None:
        adapter = self.clock.adapter
        if self.clock.ranks is not None and not adapter.exchanges:
            raise NotImplementedError(
                f"{self.transformer} layer {self.index}: {reason}, and the attention that diffusers has for "
                f"{adapter.family} cannot run on several GPUs"
            )

    def _refuse_if_strict(self, unsupported: str | None) -> None:
        if self.options.strict:
            raise NotImplementedError(
                f"{self.transformer} layer {self.index} cannot be sparse: {unsupported} (strict=True)"
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)  # of a copy
        self.handle = handle_of(self)
        self.clock.layers.add(self)
