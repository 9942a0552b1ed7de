"""A pattern at work: what `sparsify` returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, NamedTuple, NoReturn

import torch

from vidsparse.grid import is_whole
from vidsparse.patterns import StepBudget, StepSchedule
from vidsparse.patterns.base import patterns_in
from vidsparse.runtime.call import SparsityOptions
from vidsparse.runtime.chosen import ChosenMap
from vidsparse.runtime.clock import Clock
from vidsparse.runtime.pipeline import uncompiled
from vidsparse.runtime.report import Log, Report


class Replaced(NamedTuple):
    """An attention module, its own processor and ours."""

    module: Any
    original: Any
    ours: Any


class Run:
    """A pattern at work in one pipeline or transformer; what `sparsify` returns. Also a context manager.

    No state is shared between runs, and none lives on a class.
    """

    def __init__(self, options: SparsityOptions, pipeline: Callable[[], object | None], log: Log | None = None):
        self.options, self.pipeline, self.log = options, pipeline, log or Log()
        self.transformers: dict[str, Callable[[], torch.nn.Module | None]] = {}
        self.replaced: list[Replaced] = []
        self.clocks: dict[str, Clock] = {}

    def report(self) -> Report:
        """Report what has run since `sparsify`, or since the last `reset`."""
        correction = self.options.correction
        name = f"{self.options.pattern!r}" + ("" if correction is None else f" with {correction!r}")
        for clock in self.clocks.values():
            clock.record_compiled()
        return Report(self.log.calls(), name, tuple(self._lost()), self.log.skipped())

    def record(self, *, layers: Iterable[int], steps: Iterable[int], branches: Iterable[int] = (0,)) -> None:
        """Keep the maps that the pattern chooses from now on, for `maps`; those that are there are forgotten.

        A map of a long video takes megabytes, so say which: memory is bounded by layers x steps x branches. A map that
        stays the same takes memory once, and a later video replaces the maps of an earlier one. On a GPU, each map that
        is kept synchronises with it.

        Args:
            layers: indices; negative ones count from the last.
            steps: indices of denoising steps.
            branches: which of the different calls of a step. With classifier-free guidance in two calls, 0 is the call
                with the prompt and 1 the call without it.

        Raises:
            ValueError: a layer that does not exist, or something else than whole numbers.
            RuntimeError: the run was restored.
        """
        if not self.replaced:
            raise RuntimeError("this run was restored; call sparsify again")
        count = max(attention.ours.layer.layers for attention in self.replaced)
        layers = tuple(layers)
        if absent := [layer for layer in layers if is_whole(layer) and not -count <= layer < count]:
            raise ValueError(f"layer {absent[0]} does not exist: the model has layers 0 to {count - 1}")
        layers = tuple(layer + count if is_whole(layer) and layer < 0 else layer for layer in layers)
        self.log.maps.ask(layers, steps, branches)

    @property
    def maps(self) -> tuple[ChosenMap, ...]:
        """The maps that `record` asked for, by transformer, step, layer and branch. Dense calls have none."""
        return self.log.maps.found()

    def reset(self) -> None:
        """Forget what has run; the next report starts here."""
        for clock in self.clocks.values():
            clock.record_compiled()
        self.log.clear()

    def expect_another_video(self) -> None:
        """Announce that the next call begins another video, which frees what is kept from step to step.

        Not needed for generation: a new video is detected because its noise level rises. In training the level can fall
        from one video to the next, so call this before each.
        """
        for clock in self.clocks.values():
            clock.steps.expect_another_video()

    def restore(self) -> None:
        """Put back the very processor objects that were there before, and remove all hooks. Safe to call twice."""
        for attention in self.replaced:
            set_processor(attention.module, attention.original)
        for clock in self.clocks.values():
            clock.remove()
            clock.record_compiled()
        self.replaced.clear()
        self.clocks.clear()
        self.transformers.clear()

    def __enter__(self) -> Run:
        if not self.replaced:
            raise ValueError("this run was restored; call sparsify again")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def __repr__(self) -> str:
        place = f"{len(self.replaced)} layers of {' and '.join(self.transformers)}" if self.replaced else "restored"
        return f"Run({self.options.pattern!r}, {place})"

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a run of sparsify cannot be pickled or copied; restore it first, and sparsify what was loaded")

    def _lost(self) -> list[str]:
        """Describe what was asked for and does not run."""
        others = [attention for attention in self.replaced if attention.module.processor is not attention.ours]
        pipeline = self.pipeline()
        lost = [
            f"pipe.{name} is another model than at sparsify, and runs without it; restore, then sparsify again"
            for name, known in self.transformers.items()
            if pipeline is not None and uncompiled(getattr(pipeline, name, None)) is not known()
        ]
        if others:
            lost.append(
                f"{len(others)} of {len(self.replaced)} attention layers were given other processors after sparsify, "
                "as by fuse_qkv_projections or set_attn_processor, and run without it; restore, then sparsify again"
            )
        uncounted = sum(call.calls for call in self.log.calls() if call.steps == 0)
        inside = list(patterns_in(self.options.pattern))
        if uncounted and any(isinstance(p, StepSchedule) and p.dense_last_steps for p in inside):
            lost.append(
                f"dense_last_steps had no effect in {uncounted} attention calls: no pipeline with a scheduler made "
                "them, so the number of steps, and which is the last, is unknown"
            )
        if uncounted and any(isinstance(p, StepBudget) for p in inside):
            lost.append(
                f"budget had no effect in {uncounted} attention calls: no pipeline with a scheduler made them, so the "
                "number of steps is unknown"
            )
        return lost


def set_processor(module: Any, processor: Any) -> None:
    """Set the processor of an attention module."""
    # Some attention modules of diffusers, such as Mochi's, have a processor but no way to set it.
    if hasattr(module, "set_processor"):
        module.set_processor(processor)
    else:
        module.processor = processor
