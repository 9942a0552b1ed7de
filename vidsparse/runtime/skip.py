"""Skips whole steps of one transformer: its output is that of the last step that was computed."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import torch

from vidsparse.patterns import Context, Pattern
from vidsparse.runtime.caches import cache_name
from vidsparse.runtime.clock import Clock
from vidsparse.runtime.substitute import Substitute


class StepSkip(Substitute):
    """Takes the place of `forward` on one transformer whose pattern skips steps.

    In a skipped step no part of the transformer runs, and its output is that of the last computed step of the same
    branch. What is kept is this output, as large as the latents. Steps with gradients are always computed, as are those
    of a branch that has nothing to go by, or gets inputs of other sizes.

    It is a listener of the clock: asked before the attention layers, and told when a video ends.
    """

    method = "forward"
    index = -1

    def __init__(self, transformer: torch.nn.Module, clock: Clock, pattern: Pattern, name: str):
        super().__init__(transformer)
        self._clock, self._pattern, self._name = weakref.ref(clock), pattern, name
        self._video, self._skipping = 0, False
        self._computed: dict[int, tuple[list[torch.Size], Any]] = {}  # branch -> sizes of inputs, and output
        clock.substitutes.append(self)
        clock.layers.add(self)

    def prepare(self) -> None:
        """Decide whether the call that begins is skipped.

        Raises:
            ValueError: a cache of diffusers is on too, which would count skipped steps wrongly.
        """
        clock, module = self._clock(), self._module()
        if clock is None or module is None:
            return
        refuse_cache(module, self._name)
        steps = clock.steps
        if self._video != steps.video:
            self._video = steps.video
            self.forget()
        context = Context(
            step=steps.step, steps=steps.steps, sigma=steps.sigma, transformer=self._name, branch=steps.branch
        )
        self._skipping = not torch.is_grad_enabled() and steps.branch in self._computed and self._pattern.skips(context)
        if self._skipping:
            clock.saver = "the schedule"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        clock, forward = self._clock(), self.beneath()
        if not self._used or clock is None or torch.is_grad_enabled():
            return forward(*args, **kwargs)
        shapes = [x.shape for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
        kept = self._computed.get(clock.steps.branch)
        if self._skipping and kept is not None and kept[0] == shapes:
            return copied_output(kept[1])
        out = forward(*args, **kwargs)
        self._computed[clock.steps.branch] = shapes, copied_output(out)
        return out

    def forget(self, branch: int | None = None) -> None:
        """Free the outputs of one branch or of all."""
        for gone in [*self._computed] if branch is None else [branch]:
            self._computed.pop(gone, None)

    def record_compiled(self) -> None:
        """Nothing: skipped steps run in no graph."""

    def copied(self, memo: dict[int, Any]) -> None:
        clock = self._clock()
        self._computed = {}
        if clock is not None:
            self._clock = weakref.ref(copy.deepcopy(clock, memo))


def refuse_cache(transformer: torch.nn.Module, name: str) -> None:
    """Refuse a cache of diffusers beside a schedule that skips steps.

    Raises:
        ValueError: one is on.
    """
    if (cache := cache_name(transformer)) is not None:
        raise ValueError(
            f"{name} has {cache} on, and the schedule skips steps too; disable the cache, or take a StepSchedule, "
            "which skips none"
        )


def copied_output(out: Any) -> Any:
    """A transformer's output with a copy of each tensor: pipelines may write into what they get.

    Args:
        out: a tensor; or a tuple, list or mapping of outputs, as diffusers' outputs with names are; anything else is
            taken as it is.
    """
    if isinstance(out, dict):
        return type(out)(**{key: copied_output(value) for key, value in out.items()})
    if isinstance(out, (list, tuple)):
        return type(out)(copied_output(part) for part in out)
    return out.detach().clone() if isinstance(out, torch.Tensor) else out
