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
from vidsparse.runtime.caches import MEASURED
from vidsparse.runtime.clock import Clock
from vidsparse.runtime.heads import Operands, Part, attend_group, interleave, mean_densities
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
    """

    pattern: dict[Any, Any] = field(default_factory=dict)
    correction: dict[tuple[int, ...], dict[Any, Any]] = field(default_factory=dict)

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
    """One call of one attention layer.

    It is made before the transformer's forward pass, so that graphs of `torch.compile` hold only `reason` and tensors.

    Attributes:
        reason: why the call runs the model's own attention, or None where it is sparse.
        context: layer, step and branch. memories: batch size -> what is kept of this branch from step to step.
        planned: whether it was decided before the forward pass that the call is dense or sparse.
        parts: what has run sparse. stopwatch: of the layer; inside a graph of `attend` alone.
        shapes: of the output of a call inside a graph, until it is recorded.
    """

    options: SparsityOptions
    context: Context
    known_grid: VideoGrid | None
    device: torch.device
    memories: dict[int, Memory]
    reason: str | None = None
    planned: bool = True
    parts: list[Part] = field(default_factory=list)
    stopwatch: Stopwatch | None = None
    shapes: list[torch.Size] | None = None

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
        in_graph = self.stopwatch is None
        stopwatch = self.stopwatch = self.stopwatch or Stopwatch(self.device)
        options, memory, kind = self.options, self._memory(len(query)), query.device.type
        context = replace(
            self.context, heads=query.shape[2], value=value, extra_valid=extra_valid, memory=memory.pattern
        )
        # As for PyTorch's own attention: norms give float32 under autocast, attention has the lower precision.
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
        with torch.autocast(kind, enabled=False):  # the scores that maps are chosen by keep their precision
            groups = head_groups(options.pattern.select(query, key, self.grid, context), context.heads)
            # Drop the correction's state for head groups that no longer exist.
            for gone in memory.correction.keys() - {group.heads for group in groups}:
                del memory.correction[gone]
            query, key, value = (x.to(low) for x in (query, key, value))
            operands = Operands(query, key, value, extra_valid, None if gate is None else gate.to(low))
            attended = [
                attend_group(
                    group,
                    operands,
                    replace(context, memory=memory.correction.setdefault(group.heads, {})),
                    options.impl,
                    options.correction,
                    options.strict,
                )
                for group in groups
            ]
        self.parts = [part for part, _ in attended]
        if in_graph:
            stopwatch.stop()
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
        call: the present call; None before the first.
        memories: branch -> batch size -> what pattern and correction keep from step to step.
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
        self.log.expect(self.transformer, self.index, steps.step, clock.saver)
        memories = self.memories.setdefault(steps.branch, {})
        self.call = Call(options, context, clock.grid, clock.device, memories, clock.irregular)
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

    def begin(self, unsupported: str | None = None) -> Call:
        """Begin a call of the layer.

        Args:
            unsupported: why this call cannot be sparse, or None.

        Raises:
            NotImplementedError: it cannot be sparse and `strict` is set.
            RuntimeError: the layer was called before any forward pass of its transformer.
        """
        if self.call is None:
            raise RuntimeError("attention ran outside the transformer's forward, so its grid is unknown")
        call = self.call if unsupported is None else self._dense_call(self.call, unsupported)
        if not torch.compiler.is_compiling():  # reading the time would break the graph
            call.stopwatch = Stopwatch(call.device)
        return call

    def end(self, call: Call, out: States) -> States:
        """Record a call that is over; returns its output.

        Args:
            call: what `begin` returned.
            out: hidden states [..., tokens, width], or those of video and of text.
        """
        shapes = [out.shape] if isinstance(out, torch.Tensor) else [x.shape for x in out]
        if torch.compiler.is_compiling() and call.planned:
            call.shapes = shapes  # recorded later: that would break the graph
        else:
            self._record(call, shapes)
        return out

    def record_compiled(self) -> None:
        """Record the last call if it ran inside a graph."""
        if self.call is not None and self.call.shapes is not None:
            self._record(self.call, self.call.shapes)
            self.call.shapes = None

    @untraced
    def _record(self, call: Call, shapes: list[torch.Size]) -> None:
        stopwatch, call.stopwatch = call.stopwatch, None
        if stopwatch is not None and call.shapes is None:
            stopwatch.stop()
        parts, call.parts = call.parts, []
        tokens, (*batch, _, width) = sum(shape[-2] for shape in shapes), shapes[0]
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
            reason=call.reason,
            dense_flops=flops,
            steps=call.context.steps,
            kept_bytes=sum(memory.nbytes for batches in self.memories.values() for memory in batches.values()),
        )
        self.log.add(record, mean_densities(parts) if parts else None, stopwatch)

    def forget(self, branch: int | None = None) -> None:
        """Free what is kept from step to step, of one branch or of all."""
        for gone in [*self.memories] if branch is None else [branch]:
            self.memories.pop(gone, {}).clear()  # the last call refers to it too

    def _dense_call(self, call: Call, unsupported: str) -> Call:
        reason = self.clock.irregular or unsupported
        self._refuse_if_strict(reason)
        return replace(call, reason=reason, planned=False)

    def _refuse_if_strict(self, unsupported: str | None) -> None:
        if self.options.strict:
            raise NotImplementedError(
                f"{self.transformer} layer {self.index} cannot be sparse: {unsupported} (strict=True)"
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)  # of a copy
        self.clock.layers.add(self)
