"""One attention layer at work: whether it is sparse in this call, with which map, and what to write down about it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch

from vidsparse.attention import Choice, choose_impl, sparse_attention
from vidsparse.block_map import HeadGroup, head_groups
from vidsparse.corrections import Correction, SparseCall
from vidsparse.grid import VideoGrid
from vidsparse.patterns import Context, Dense, Pattern
from vidsparse.runtime.adapter import Attend, Output
from vidsparse.runtime.clock import Clock
from vidsparse.runtime.report import LayerCall

TRAIN_TIMESTEPS = 1000  # diffusers' flow-matching schedulers count noise from 0 to this

Moment = float | torch.cuda.Event


@dataclass(frozen=True)
class Settings:
    """What `sparsify` was asked for."""

    pattern: Pattern
    correction: Correction | None
    impl: str
    strict: bool
    min_tokens: int


class Layer:
    """Decides and runs one attention layer; the `SparseLayer` of its processor."""

    def __init__(
        self,
        settings: Settings,
        record: Callable[[Pending], None],
        clock: Clock,
        name: str,
        index: int,
        layers: int,
        width: int | None = None,
    ):
        self.settings, self.record, self.clock = settings, record, clock
        self.transformer, self.index, self.layers = name, index, layers
        self.width = width  # heads times head_dim; None: that of the output
        self.video, self.memories = 0, defaultdict[int, dict[Any, Any]](dict)

    @property
    def grid(self) -> VideoGrid:
        """The token grid of the present forward call. Raises `RuntimeError` where there is none."""
        if self.clock.grid is None:
            raise RuntimeError(
                self.clock.irregular or "attention ran outside the transformer's forward, so its grid is unknown"
            )
        return self.clock.grid

    # What it decides is Python, which no graph holds; the projections within are compiled.
    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
    def run(
        self,
        dense: Callable[[], Output],
        sparse: Callable[[Attend], Output],
        unsupported: str | None = None,
    ) -> Output:
        settings, unsupported = self.settings, self.clock.irregular or unsupported
        if unsupported is not None and settings.strict:
            raise NotImplementedError(
                f"{self.transformer} layer {self.index} cannot be sparse: {unsupported} (strict=True)"
            )
        if self.video != self.clock.video:
            self.video = self.clock.video
            self.memories.clear()
        context = Context(
            layer=self.index,
            layers=self.layers,
            step=self.clock.step,
            steps=self.clock.steps,
            sigma=self.clock.timestep / TRAIN_TIMESTEPS,
            transformer=self.transformer,
            branch=self.clock.branch,
            memory=self.memories[self.clock.branch],
        )
        reason = unsupported
        if reason is None and self.grid.tokens < settings.min_tokens:
            reason = f"fewer than min_tokens={settings.min_tokens} tokens"
        if reason is None:
            settings.pattern.check_grid(self.grid)
            if settings.pattern.is_dense(context):
                reason = "the pattern asks for it"
        done: list[_Done] = []
        started = _moment(self.clock.device)
        out = dense() if reason is not None else sparse(partial(self._attend, context, done))
        call = self._call((out,) if isinstance(out, torch.Tensor) else out, done, reason)
        self.record(Pending(call, _densities(done), started, _moment(self.clock.device)))
        if self.clock.step + 1 == self.clock.steps:
            del self.memories[self.clock.branch]  # the VAE comes next, and needs the room
        return out

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _attend(
        self,
        context: Context,
        done: list[_Done],
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extra_valid: torch.Tensor | None = None,
        gate: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention under the pattern's map, or maps; `done` gets what ran."""
        here = replace(context, heads=query.shape[2], value=value, extra_valid=extra_valid)
        kind = query.device.type
        # As for PyTorch's own attention: norms give float32 under autocast, attention has the lower precision.
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
        with torch.autocast(kind, enabled=False):  # the scores that maps are chosen by keep their precision
            groups = head_groups(self.settings.pattern.select(query, key, self.grid, here), here.heads)
            # What a correction remembers of groups of heads that are no more would never be asked for again.
            remembered = context.memory.get("correction", {})
            for gone in remembered.keys() - {group.heads for group in groups}:
                del remembered[gone]
            query, key, value = (x.to(low) for x in (query, key, value))
            gate = None if gate is None else gate.to(low)
            done.extend(self._attend_group(group, query, key, value, extra_valid, gate, here) for group in groups)
        return done[0].out if len(done) == 1 else _interleave(done)

    def _attend_group(
        self,
        group: HeadGroup,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        extra_valid: torch.Tensor | None,
        gate: torch.Tensor | None,
        context: Context,
    ) -> _Done:
        """Attention of the heads of one group."""
        if len(group.heads) < context.heads:
            heads = _indices(group.heads, query.device)
            query, key, value = (x.index_select(2, heads) for x in (query, key, value))
            gate = None if gate is None else gate.index_select(2, heads)
        choice = choose_impl(self.settings.impl, query, group.block_map)
        if choice.fallback is not None and self.settings.strict:
            name = f"{self.transformer} layer {self.index}"
            raise NotImplementedError(f"{name} would run impl {choice.impl!r}: {choice.fallback} (strict=True)")
        tensors = query, key, value
        options: dict[str, Any] = {"extra_valid": extra_valid, "impl": choice.impl}
        correction = self.settings.correction
        if correction is None and group.empty == "zero":
            return _Done(group, choice, sparse_attention(*tensors, group.block_map, **options))
        ran = [group.block_map]

        def exact() -> tuple[torch.Tensor, torch.Tensor]:
            ran.append(Dense(group.block_map.query_tile).plan(group.block_map.grid))
            return sparse_attention(*tensors, ran[-1], **options, return_lse=True)

        out, lse = sparse_attention(*tensors, group.block_map, **options, return_lse=True)
        if group.empty == "mean":
            alone = lse.isneginf().transpose(1, 2)[..., None]
            out = torch.where(alone, _mean(value, group.block_map.layout.padding_mask(extra_valid)), out)
        if correction is None:
            return _Done(group, choice, out)
        memory = context.memory.setdefault("correction", {}).setdefault(group.heads, {})
        here = replace(context, heads=len(group.heads), memory=memory)
        out = correction.correct(SparseCall(*tensors, out, lse, group.block_map, here, exact, extra_valid, gate))
        return _Done(group._replace(block_map=ran[-1]), choice, out)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _call(self, out: tuple[torch.Tensor, ...], done: list[_Done], reason: str | None) -> LayerCall:
        tokens, (batch, _, width) = sum(part.shape[1] for part in out), out[0].shape
        # Two products of tokens x tokens x width, a multiplication and an addition each.
        dense_flops = 4.0 * batch * tokens**2 * (self.width or width)
        return LayerCall(
            transformer=self.transformer,
            layer=self.index,
            step=self.clock.step,
            tokens=tokens,
            impl=" and ".join(dict.fromkeys(part.choice.impl for part in done)) or "dense",
            fallback="; ".join(dict.fromkeys(p.choice.fallback for p in done if p.choice.fallback is not None)) or None,
            tiles=tuple(sorted({part.group.block_map.query_tile for part in done})),
            reason=reason,
            density=1.0,
            token_density=1.0,
            seconds=0.0,
            flops=dense_flops,
            dense_flops=dense_flops,
            kept_bytes=_kept_bytes(self.memories),
        )


class _Done(NamedTuple):
    """Attention of some heads [batch, tokens, heads of the group, head_dim], the map that ran and what ran it."""

    group: HeadGroup
    choice: Choice
    out: torch.Tensor


class Pending(NamedTuple):
    """A call whose densities and seconds are still with the device."""

    call: LayerCall
    densities: torch.Tensor | None  # float64 [2]; None for a dense call
    start: float | torch.cuda.Event
    end: float | torch.cuda.Event

    def settled(self) -> LayerCall:
        """The call with its numbers, waited for."""
        density, token_density = (1.0, 1.0) if self.densities is None else self.densities.tolist()
        return replace(
            self.call,
            density=density,
            token_density=token_density,
            seconds=_seconds(self.start, self.end),
            flops=token_density * self.call.dense_flops,
        )


def _densities(done: list[_Done]) -> torch.Tensor | None:
    """The densities of a layer, each head counting the same."""
    if not done:
        return None
    total = torch.stack([len(part.group.heads) * part.group.block_map.densities for part in done]).sum(dim=0)
    return total / sum(len(part.group.heads) for part in done)


def _mean(value: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
    """The mean of the tokens that are not hidden: [batch, 1, heads, head_dim]."""
    if hidden is None:
        return value.mean(dim=1, keepdim=True)
    hidden = hidden[:, :, None, None].to(value.device)
    return value.masked_fill(hidden, 0).mean(dim=1, keepdim=True) / (~hidden).to(value).mean(dim=1, keepdim=True)


def _interleave(done: list[_Done]) -> torch.Tensor:
    """Put the heads of all groups where they belong: [batch, tokens, heads, head_dim]."""
    batch, tokens, _, head_dim = done[0].out.shape
    out = done[0].out.new_empty(batch, tokens, sum(len(part.group.heads) for part in done), head_dim)
    for part in done:
        out.index_copy_(2, _indices(part.group.heads, out.device), part.out)
    return out


@lru_cache(maxsize=1024)
@torch.inference_mode(False)  # for a later training too
def _indices(heads: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Heads as a tensor on the device: made of a list in each call, it would be waited for."""
    return torch.tensor(heads, device=device)


def _kept_bytes(memory: Mapping[Any, Any]) -> int:
    """Bytes of what stands in a memory, and in those within it, and says its `nbytes`."""
    return sum(_kept_bytes(x) if isinstance(x, Mapping) else getattr(x, "nbytes", 0) for x in memory.values())


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _moment(device: torch.device) -> float | torch.cuda.Event:
    """Now, on the time line of a device: a CUDA device runs behind the program that feeds it."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _seconds(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(start, float) or isinstance(end, float):
        return float(end) - float(start)  # type: ignore[arg-type]
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000
