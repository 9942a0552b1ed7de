"""Puts a pattern into a diffusers pipeline or transformer, keeps count of what runs, and takes it out again."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

import torch

from vidsparse.attention import check_impl
from vidsparse.corrections import Correction
from vidsparse.patterns import Pattern
from vidsparse.runtime.clock import Clock
from vidsparse.runtime.layer import Layer, Pending, Settings
from vidsparse.runtime.registry import adapter_for
from vidsparse.runtime.report import LayerCall, Report

PENDING_CALLS = 4096  # calls whose seconds are not read yet; reading them waits for a GPU


class Run:
    """A pattern at work in one pipeline or transformer; what `sparsify` returns. Also a context manager.

    No state is shared between runs, and none lives on a class.
    """

    def __init__(self, settings: Settings, pipeline: Callable[[], Any]):
        self.settings, self._pipeline = settings, pipeline
        self._transformers: dict[str, Callable[[], torch.nn.Module | None]] = {}
        self._calls: dict[tuple[object, ...], LayerCall] = {}
        self._pending: list[Pending] = []
        self._replaced: list[_Replaced] = []
        self._clocks: list[Clock] = []
        self._computing = ""  # the transformer of the last call

    def report(self) -> Report:
        """What has run since `sparsify`, or since the last `reset`."""
        self._settle()
        correction = self.settings.correction
        name = f"{self.settings.pattern!r}" + ("" if correction is None else f" with {correction!r}")
        return Report(tuple(self._calls.values()), name, tuple(self._lost()))

    def reset(self) -> None:
        """Forget what has run; the next report starts here."""
        self._pending.clear()
        self._calls.clear()

    def expect_another_video(self) -> None:
        """Forget what patterns and corrections keep from step to step: the next call shows another video.

        A generation needs it not, since its noise rises where a video begins. A training does, whose noise may fall
        from one video to the next.
        """
        for clock in self._clocks:
            clock.expect_another_video()

    def _record(self, call: Pending) -> None:
        name, self._computing = self._computing, call.call.transformer
        if (name, self._computing) == ("transformer", "transformer_2"):
            self._forget(name)  # noise only falls: the first expert has done its part
        self._pending.append(call)
        if len(self._pending) >= PENDING_CALLS:
            self._settle()

    def _settle(self) -> None:
        """Add the pending calls, with their seconds, to the sums: memory stays bounded in a long training."""
        for pending in self._pending:
            call = pending.settled()
            key = (
                call.transformer,
                call.layer,
                call.step,
                call.tokens,
                call.impl,
                call.fallback,
                call.tiles,
                call.reason,
            )
            self._calls[key] = self._calls[key] + call if key in self._calls else call
        self._pending.clear()

    def _forget(self, transformer: str) -> None:
        """Free what the layers of a transformer keep from step to step."""
        for attention in self._replaced:
            layer = getattr(attention.ours, "layer", None)
            if isinstance(layer, Layer) and layer.transformer == transformer:
                layer.memories.clear()

    def restore(self) -> None:
        """Put back the very processor objects that stood there, and remove all hooks. Safe to call twice."""
        for attention in self._replaced:
            _set_processor(attention.module, attention.original)
        for clock in self._clocks:
            clock.remove()
        self._replaced.clear()
        self._clocks.clear()
        self._transformers.clear()

    def __enter__(self) -> Run:
        if not self._replaced:
            raise ValueError("this run was restored; call sparsify again")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def _lost(self) -> list[str]:
        """What was changed since `sparsify` and so runs without it."""
        others = [attention for attention in self._replaced if attention.module.processor is not attention.ours]
        pipeline = self._pipeline()
        lost = [
            f"pipe.{name} is another model than at sparsify, and runs without it; restore, then sparsify again"
            for name, known in self._transformers.items()
            if pipeline is not None and _bare(getattr(pipeline, name, None)) is not known()
        ]
        if others:
            lost.append(
                f"{len(others)} of {len(self._replaced)} attention layers were given other processors after sparsify, "
                "as by fuse_qkv_projections or set_attn_processor, and run without it; restore, then sparsify again"
            )
        return lost

    def _processors(self, transformer: torch.nn.Module, name: str) -> dict[str, _Replaced]:
        """Attention module name -> what stands there and what will, for one transformer."""
        adapter = adapter_for(transformer)
        impl, device = self.settings.impl, next(transformer.parameters()).device
        # Weights that are offloaded rest on a CPU; where they compute, the first call checks again.
        check_impl(impl, torch.device("cuda") if impl == "triton" and torch.cuda.is_available() else device)
        attentions = adapter.self_attentions(transformer)
        for heads in {adapter.heads(module) for module in attentions.values()}:
            self.settings.pattern.check_model(len(attentions), heads)
        for module in attentions.values():
            if isinstance(getattr(module.processor, "layer", None), Layer):
                raise ValueError(
                    f"{name} is already sparsified; restore the earlier run, or set the processors of before"
                )
        pipeline = self._pipeline
        # The scheduler is looked up at each call, since users exchange it; the clock must not hold the run.
        clock = Clock(transformer, adapter, lambda: getattr(pipeline(), "scheduler", None))
        self._clocks.append(clock)
        self._transformers[name] = weakref.ref(transformer)
        replaced = {}
        for index, (key, module) in enumerate(attentions.items()):
            width = adapter.width(module)
            layer = Layer(self.settings, self._record, clock, name, index, len(attentions), width)
            replaced[key] = _Replaced(module, module.processor, adapter.processor(module.processor, layer))
        return replaced


def sparsify(
    pipe_or_transformer: Any,
    pattern: Pattern,
    *,
    correction: Correction | None = None,
    impl: str = "auto",
    strict: bool = False,
    min_tokens: int = 0,
) -> Run:
    """Make the video self-attention of a pipeline or transformer sparse, at once.

        run = vidsparse.sparsify(pipe, Radial(density=0.2))
        video = pipe("a red circle moving left on a blue background").frames[0]
        print(run.report())
        run.restore()

    It trains too. With gradient checkpointing each forward pass needs its backward before the next forward: what is
    computed again takes noise level and grid from the last call, and so the map.

    Args:
        pipe_or_transformer: a diffusers pipeline (its `transformer`, and `transformer_2` or `transformer_ref` where it
            has one) or a transformer of a supported class.
        pattern: who looks at whom; wrap it in `StepSchedule` to keep the first steps dense.
        correction: what is added back for dropped tiles, such as `PooledComplement()`; None adds nothing.
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
    settings = _settings(pattern, correction, impl, strict, min_tokens)
    targets = _transformers(pipe_or_transformer)
    run = Run(settings, _weakly(pipe_or_transformer))
    try:
        found = [new for name, t in targets.items() for new in run._processors(t, name).values()]
        for attention in found:
            run._replaced.append(attention)
            _set_processor(attention.module, attention.ours)
    except BaseException:
        run.restore()
        raise
    return run


def attn_processors(
    transformer: torch.nn.Module, pattern: Pattern, *, correction: Correction | None = None, impl: str = "auto"
) -> dict[str, Any]:
    """Sparse processors for `transformer.set_attn_processor(...)`, the diffusers way.

    The dict holds a processor for every attention of the transformer: sparse ones for video self-attention, the present
    ones elsewhere. Setting `transformer.attn_processors` of before puts everything back. Steps are counted from the
    transformer's own calls, since no scheduler is known here: their number is not, so `dense_last_steps` has no effect.
    There is no report either; use `sparsify` with a pipeline for these, and where a pattern or a correction keeps
    something from step to step: a generation that was broken off is told from the next by the scheduler alone.
    """
    settings = _settings(pattern, correction, impl)
    adapter_for(transformer)
    if not hasattr(transformer, "attn_processors"):
        name = type(transformer).__name__
        raise NotImplementedError(f"{name} has no attn_processors in this diffusers; use vidsparse.sparsify instead")
    run = Run(settings, _weakly(transformer))
    ours = run._processors(transformer, "transformer")
    present: dict[str, Any] = dict(transformer.attn_processors)  # type: ignore[arg-type]
    return present | {f"{name}.processor": attention.ours for name, attention in ours.items()}


class _Replaced(NamedTuple):
    """An attention module and its processors."""

    module: Any
    original: Any
    ours: Any


def _set_processor(module: Any, processor: Any) -> None:
    # Some attention modules of diffusers, such as Mochi's, have a processor but no way to set it.
    if hasattr(module, "set_processor"):
        module.set_processor(processor)
    else:
        module.processor = processor


def _settings(
    pattern: Pattern, correction: Correction | None, impl: str, strict: bool = False, min_tokens: int = 0
) -> Settings:
    if not isinstance(pattern, Pattern):
        raise TypeError(f"pattern={pattern!r} must be a pattern, such as vidsparse.Radial(density=0.2)")
    if correction is not None and not isinstance(correction, Correction):
        raise TypeError(f"correction={correction!r} must be a correction or None")
    return Settings(pattern, correction, impl, strict, min_tokens)


def _transformers(target: Any) -> dict[str, torch.nn.Module]:
    if isinstance(target, torch.nn.Module):
        return {"transformer": _bare(target)}
    found = {name: _bare(getattr(target, name, None)) for name in ("transformer", "transformer_2", "transformer_ref")}
    modules = {name: module for name, module in found.items() if isinstance(module, torch.nn.Module)}
    if not modules:
        raise TypeError(f"{type(target).__name__} has no transformer; pass a diffusers pipeline or a transformer")
    return modules


def _bare(module: Any) -> Any:
    """The model within what `torch.compile(model)` gives."""
    return getattr(module, "_orig_mod", module)


def _weakly(target: Any) -> Callable[[], Any]:
    # A run keeps no pipeline alive; a transformer alone has none.
    return (lambda: None) if isinstance(target, torch.nn.Module) else weakref.ref(target)
