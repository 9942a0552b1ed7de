"""One attention layer: how its calls run, and the record of each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from vidsparse.attention import dense_flops
from vidsparse.grid import VideoGrid
from vidsparse.patterns import Context
from vidsparse.runtime.adapter import States
from vidsparse.runtime.caches import MEASURED
from vidsparse.runtime.call import Call, Memory, SparsityOptions, Unrecorded
from vidsparse.runtime.clock import Clock
from vidsparse.runtime.compiled import CompiledCall, handle_of
from vidsparse.runtime.guiders import GUIDED, GUIDER
from vidsparse.runtime.heads import Operands, mean_densities
from vidsparse.runtime.proxies import learned_proxies
from vidsparse.runtime.ranks import Ranks
from vidsparse.runtime.report import LayerCall, Log
from vidsparse.runtime.stopwatch import Stopwatch
from vidsparse.runtime.untraced import untraced

FULL = "it is the full branch of FreeSwim"


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
        original: the processor that ran the layer before.
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
        self.original: Any = None
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
            grid=clock.key_grid or clock.grid,
            key_grid=clock.key_grid,
        )
        saver = GUIDER if self.index in clock.perturbation.left_out else clock.saver
        self.log.expect(self.transformer, self.index, steps.step, saver)
        memories = self.memories.setdefault(steps.branch, {})
        self.call = Call(options, context, clock.grid, memories, clock.irregular, maps=self.log.maps)
        self.call.proxies = learned_proxies(options.correction, clock.proxies[self.index], self.transformer)
        if clock.grid is None:
            self._refuse_if_strict(clock.irregular)
        elif clock.grid.tokens < options.min_tokens:
            self.call.reason = f"fewer than min_tokens={options.min_tokens} tokens"
        else:
            options.check_grid(clock.key_grid or clock.grid)
            if options.pattern.is_dense(context):
                self.call.reason = "the pattern asks for it"
            elif clock.full_branch:
                self.call.reason = FULL
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
        # What diffusers has for uneven parts has no backward pass.
        if not adapter.exchanges or (ranks.uneven and torch.is_grad_enabled()):
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
        if call.proxies is not None:
            call.learned = call.proxies()  # in dense calls too: streams that offload expect the same modules in each
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
            call.learned = None
            self.device = tensors[0].device
            if call.stopwatch is not None and call.stopwatch.device != self.device:
                call.stopwatch = None  # it has measured how long another device fed this one
            self._record(call, shapes)
        elif call.reason is not None and self.call is not None:
            # Recorded later: that would break the graph. A sparse call is recorded by its operator.
            self.call.unrecorded = Unrecorded(shapes, call.unsupported)
        return out

    @property
    def grid(self) -> VideoGrid:
        """The token grid of the present call.

        Raises:
            RuntimeError: there is no call, or its grid is unknown.
        """
        return self._present.grid

    def attend(self, given: Operands, lowered: Operands) -> torch.Tensor:
        """Attention of the present call inside a graph, timed and recorded: see `Call.attend_lowered`.

        Raises:
            NotImplementedError: proxies learn, whose gradient would end at the graph.
        """
        call = self._present
        weights = () if call.proxies is None else call.proxies.parameters()
        if torch.is_grad_enabled() and any(x.requires_grad for x in weights):
            raise NotImplementedError(
                "learned proxies do not train in a graph of torch.compile, which gives gradients to queries, keys and "
                "values alone; train without torch.compile, or with ProxyTokens(learned=False)"
            )
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
        if self.call is None or self.call.unrecorded is None:
            return
        call, ran = self.call, self.call.unrecorded
        call.unrecorded = None
        self._record(call if ran.unsupported is None else self._dense_call(call, ran.unsupported), ran.shapes)

    @untraced
    def _record(self, call: Call, shapes: list[torch.Size]) -> None:
        stopwatch, call.stopwatch = call.stopwatch, None
        choosing, call.choosing = call.choosing, None
        if stopwatch is not None:
            stopwatch.stop()
        parts, call.parts = call.parts, []
        tokens, (*batch, _, width) = sum(shape[-2] for shape in shapes), shapes[0]
        if call.ranks is not None:  # the shapes are those of this GPU's tokens
            tokens = tokens * call.ranks.size if call.known_grid is None else call.known_grid.tokens
        keys = None if call.context.key_grid is None else call.context.key_grid.tokens
        flops = torch.Size(batch).numel() * dense_flops(tokens, self.attention_width or width, keys)
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
            keys=keys,
            biased=bool(parts) and self.options.bias(call.context) is not None,
            kept_bytes=sum(memory.nbytes for batches in self.memories.values() for memory in batches.values()),
        )
        if parts and call.densities is None:
            call.densities = mean_densities(parts)
        self.log.add(record, call.densities, stopwatch, choosing)

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
