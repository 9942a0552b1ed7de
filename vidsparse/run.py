"""Puts a pattern into a diffusers pipeline or transformer, keeps count of what runs, and takes it out again."""

from __future__ import annotations

import inspect
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch

from vidsparse.attention import Choice, check_impl, choose_impl, sparse_attention
from vidsparse.block_map import BlockMap
from vidsparse.grid import VideoGrid
from vidsparse.patterns import Context, Pattern
from vidsparse.report import LayerCall, Report
from vidsparse_pipelines import adapter_for
from vidsparse_pipelines.base import Adapter, Attend

PENDING_CALLS = 4096  # calls whose seconds are not read yet; reading them waits for a GPU
TRAIN_TIMESTEPS = 1000  # diffusers' flow-matching schedulers count noise from 0 to this


class _Clock:
    """Where a transformer's current forward call stands: grid and step, read by a forward pre-hook."""

    def __init__(self, transformer: torch.nn.Module, adapter: Adapter, scheduler: Callable[[], Any]):
        self.adapter, self.scheduler = adapter, scheduler
        self.grid: VideoGrid | None = None
        self.timestep, self.step, self.steps = float("inf"), 0, 0
        self.device = torch.device("cpu")
        self._signature = inspect.signature(type(transformer).forward)
        # The hook must not keep the clock alive: with `attn_processors`, it goes when its processors go.
        reference = weakref.ref(self)

        def read(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            clock = reference()
            if clock is None:
                hook.remove()
            else:
                clock.read(module, clock._signature.bind_partial(module, *args, **kwargs).arguments)

        hook = transformer.register_forward_pre_hook(read, with_kwargs=True)
        self.remove = hook.remove

    def read(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> None:
        grid, timestep = self.adapter.grid(transformer, call), self.adapter.timestep(call)
        scheduler = self.scheduler()
        schedule: list[float] = torch.as_tensor(getattr(scheduler, "timesteps", ())).tolist()
        # Noise only falls within a run: a rise, or another grid, is the start of the next one.
        if grid != self.grid or timestep > self.timestep:
            self.step = 0
        elif timestep < self.timestep:
            self.step += 1
        self.steps = 0
        if timestep in schedule:
            self.step, self.steps = schedule.index(timestep), len(schedule)
        self.grid, self.timestep = grid, timestep
        self.device = call["hidden_states"].device


class _Layer:
    """Decides and runs one attention layer; the `SparseLayer` of its processor."""

    def __init__(self, owner: Run, clock: _Clock, name: str, index: int, layers: int):
        self.owner, self.clock = owner, clock
        self.transformer, self.index, self.layers = name, index, layers

    def run(
        self,
        dense: Callable[[], torch.Tensor],
        sparse: Callable[[Attend], torch.Tensor],
        unsupported: str | None = None,
    ) -> torch.Tensor:
        grid, owner = self.clock.grid, self.owner
        if grid is None:
            raise RuntimeError("attention ran outside the transformer's forward, so its grid is unknown")
        if unsupported is not None and owner.strict:
            raise NotImplementedError(
                f"{self.transformer} layer {self.index} cannot be sparse: {unsupported} (strict=True)"
            )
        context = Context(
            layer=self.index,
            layers=self.layers,
            step=self.clock.step,
            steps=self.clock.steps,
            sigma=self.clock.timestep / TRAIN_TIMESTEPS,
            transformer=self.transformer,
        )
        reason = unsupported
        if reason is None and grid.tokens < owner.min_tokens:
            reason = f"fewer than min_tokens={owner.min_tokens} tokens"
        if reason is None and owner.pattern.is_dense(context):
            reason = "the pattern asks for it"
        block_map: BlockMap | None = None
        choice = Choice("dense")

        def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            nonlocal block_map, choice
            block_map = owner.pattern.select(query, key, grid, replace(context, heads=query.shape[2]))
            kind = query.device.type
            if torch.is_autocast_enabled(kind):
                # As for PyTorch's own attention: norms give float32 under autocast, attention has the lower precision.
                query, key, value = (x.to(torch.get_autocast_dtype(kind)) for x in (query, key, value))
            choice = choose_impl(owner.impl, query, block_map)
            if choice.fallback is not None and owner.strict:
                name = f"{self.transformer} layer {self.index}"
                raise NotImplementedError(f"{name} would run impl {choice.impl!r}: {choice.fallback} (strict=True)")
            with torch.autocast(kind, enabled=False):
                return sparse_attention(query, key, value, block_map, impl=choice.impl)

        started = _moment(self.clock.device)
        out = dense() if reason is not None else sparse(attend)
        call = self._call(grid, out, block_map, choice, reason)
        owner._pending.append((call, started, _moment(self.clock.device)))
        if len(owner._pending) >= PENDING_CALLS:
            owner._settle()
        return out

    def _call(
        self, grid: VideoGrid, out: torch.Tensor, block_map: BlockMap | None, choice: Choice, reason: str | None
    ) -> LayerCall:
        # Two products of tokens x tokens x width (heads times head_dim), a multiplication and an addition each.
        dense_flops = 4.0 * out.shape[0] * grid.tokens**2 * out.shape[-1]
        share = block_map.token_density if block_map else 1.0
        return LayerCall(
            transformer=self.transformer,
            layer=self.index,
            step=self.clock.step,
            tokens=grid.tokens,
            impl=choice.impl,
            fallback=choice.fallback,
            tile=block_map.query_tile if block_map else None,
            reason=reason,
            density=block_map.density if block_map else 1.0,
            token_density=share,
            seconds=0.0,
            flops=share * dense_flops,
            dense_flops=dense_flops,
        )


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


class Run:
    """A pattern at work in one pipeline or transformer; what `sparsify` returns. Also a context manager.

    No state is shared between runs, and none lives on a class.
    """

    def __init__(self, pattern: Pattern, impl: str, strict: bool, min_tokens: int):
        self.pattern, self.impl, self.strict, self.min_tokens = pattern, impl, strict, min_tokens
        self._calls: dict[tuple[object, ...], LayerCall] = {}
        self._pending: list[tuple[LayerCall, float | torch.cuda.Event, float | torch.cuda.Event]] = []
        self._originals: list[tuple[torch.nn.Module, Any]] = []
        self._clocks: list[_Clock] = []

    def report(self) -> Report:
        """What has run since `sparsify`, or since the last `reset`."""
        self._settle()
        return Report(tuple(self._calls.values()), repr(self.pattern))

    def reset(self) -> None:
        """Forget what has run; the next report starts here."""
        self._pending.clear()
        self._calls.clear()

    def _settle(self) -> None:
        """Add the pending calls, with their seconds, to the sums: memory stays bounded in a long training."""
        for call, start, end in self._pending:
            key = (
                call.transformer,
                call.layer,
                call.step,
                call.tokens,
                call.impl,
                call.fallback,
                call.tile,
                call.reason,
            )
            timed = replace(call, seconds=_seconds(start, end))
            self._calls[key] = self._calls[key] + timed if key in self._calls else timed
        self._pending.clear()

    def restore(self) -> None:
        """Put back the very processor objects that stood there, and remove all hooks. Safe to call twice."""
        for module, original in self._originals:
            module.set_processor(original)  # type: ignore[operator]
        for clock in self._clocks:
            clock.remove()
        self._originals.clear()
        self._clocks.clear()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def _processors(
        self, transformer: torch.nn.Module, name: str, scheduler: Callable[[], Any]
    ) -> dict[str, tuple[torch.nn.Module, Any]]:
        """Attention module name -> (module, our processor) for one transformer."""
        adapter = adapter_for(transformer)
        check_impl(self.impl, next(transformer.parameters()).device)
        attentions = adapter.self_attentions(transformer)
        for module in attentions.values():
            if isinstance(getattr(module.processor, "layer", None), _Layer):
                raise ValueError(
                    f"{name} is already sparsified; restore the earlier run, or set the processors of before"
                )
        clock = _Clock(transformer, adapter, scheduler)
        self._clocks.append(clock)
        return {
            key: (module, adapter.processor(module.processor, _Layer(self, clock, name, index, len(attentions))))
            for index, (key, module) in enumerate(attentions.items())
        }


def sparsify(
    pipe_or_transformer: Any, pattern: Pattern, *, impl: str = "auto", strict: bool = False, min_tokens: int = 0
) -> Run:
    """Make the video self-attention of a pipeline or transformer sparse, at once.

        run = vidsparse.sparsify(pipe, Radial(density=0.2))
        video = pipe("a red circle moving left on a blue background").frames[0]
        print(run.report())
        run.restore()

    Args:
        pipe_or_transformer: a diffusers pipeline (its `transformer`, and `transformer_2` where it has one) or a
            transformer of a supported class.
        pattern: who looks at whom; wrap it in `StepSchedule` to keep the first steps dense.
        impl: implementation of the attention, see `sparse_attention`.
        strict: raise where a layer cannot be sparse, instead of running it dense and saying so in the report.
        min_tokens: run dense below this many tokens.

    Returns:
        The run: `report()`, `reset()`, `restore()`; as a context manager it restores on exit, also after Ctrl-C.

    Raises:
        TypeError: not a pattern, or something that has no transformer.
        NotImplementedError: a transformer that no adapter serves, or `impl="triton"` without a CUDA device.
        ValueError: already sparsified; an unknown `impl`.
    """
    if not isinstance(pattern, Pattern):
        raise TypeError(f"pattern={pattern!r} must be a pattern, such as vidsparse.Radial(density=0.2)")
    targets = _transformers(pipe_or_transformer)
    run = Run(pattern, impl, strict, min_tokens)
    scheduler = _scheduler_of(pipe_or_transformer)
    try:
        found = [pair for name, t in targets.items() for pair in run._processors(t, name, scheduler).values()]
        for module, processor in found:
            run._originals.append((module, module.processor))
            module.set_processor(processor)  # type: ignore[operator]
    except BaseException:
        run.restore()
        raise
    return run


def attn_processors(transformer: torch.nn.Module, pattern: Pattern, *, impl: str = "auto") -> dict[str, Any]:
    """Sparse processors for `transformer.set_attn_processor(...)`, the diffusers way.

    The dict holds a processor for every attention of the transformer: sparse ones for video self-attention, the present
    ones elsewhere. Setting `transformer.attn_processors` of before puts everything back. Steps are counted from the
    transformer's own calls, since no scheduler is known here: their number is not, so `dense_last_steps` has no effect.
    There is no report either; use `sparsify` for these.
    """
    if not isinstance(pattern, Pattern):
        raise TypeError(f"pattern={pattern!r} must be a pattern, such as vidsparse.Radial(density=0.2)")
    run = Run(pattern, impl, strict=False, min_tokens=0)
    ours = run._processors(transformer, "transformer", lambda: None)
    present: dict[str, Any] = dict(transformer.attn_processors)  # type: ignore[arg-type]
    return present | {f"{name}.processor": processor for name, (_, processor) in ours.items()}


def _transformers(target: Any) -> dict[str, torch.nn.Module]:
    if isinstance(target, torch.nn.Module):
        return {"transformer": target}
    found = {name: getattr(target, name, None) for name in ("transformer", "transformer_2")}
    modules = {name: module for name, module in found.items() if isinstance(module, torch.nn.Module)}
    if not modules:
        raise TypeError(f"{type(target).__name__} has no transformer; pass a diffusers pipeline or a transformer")
    return modules


def _scheduler_of(target: Any) -> Callable[[], Any]:
    # Looked up at each call, since users exchange a pipeline's scheduler; weakly: a run keeps no pipeline alive.
    reference = None if isinstance(target, torch.nn.Module) else weakref.ref(target)
    return lambda: getattr(reference() if reference else None, "scheduler", None)
