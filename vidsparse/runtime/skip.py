"""Skips whole steps of one transformer: its output is predicted from the last steps that were computed."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch

from vidsparse.patterns import Context, Pattern
from vidsparse.runtime.caches import cache_name
from vidsparse.runtime.clock import Clock
from vidsparse.runtime.substitute import Substitute


class StepSkip(Substitute):
    """Takes the place of `forward` on one transformer whose pattern skips steps.

    In a skipped step no part of the transformer runs. Its output follows the line through the outputs of the last two
    computed steps of the same branch, over the noise level; with one computed step it is that step's output. What is
    kept are these outputs, as large as the latents. Steps with gradients are always computed, as are those of a branch
    that has nothing to go by.

    It is a listener of the clock: asked before the attention layers, and told when a video ends.
    """

    method = "forward"
    index = -1

    def __init__(self, transformer: torch.nn.Module, clock: Clock, pattern: Pattern, name: str):
        super().__init__(transformer)
        self._clock, self._pattern, self._name = weakref.ref(clock), pattern, name
        self._video, self._skipping = 0, False
        self._computed: dict[int, list[tuple[float, Any]]] = {}  # branch -> noise level and output, oldest first
        self._shapes: dict[int, list[torch.Size]] = {}
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
        branch, sigma = clock.steps.branch, clock.steps.sigma
        shapes = [x.shape for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
        if self._skipping and self._shapes[branch] == shapes:
            return predicted(self._computed[branch], sigma)
        out = forward(*args, **kwargs)
        before = self._computed.get(branch, []) if self._shapes.get(branch) == shapes else []
        self._computed[branch] = [*(pair for pair in before[-1:] if pair[0] != sigma), (sigma, _detached(out))]
        self._shapes[branch] = shapes
        return out

    def forget(self, branch: int | None = None) -> None:
        """Free the outputs of one branch or of all."""
        for gone in [*self._computed] if branch is None else [branch]:
            self._computed.pop(gone, None)
            self._shapes.pop(gone, None)

    def record_compiled(self) -> None:
        """Nothing: skipped steps run in no graph."""

    def copied(self, memo: dict[int, Any]) -> None:
        clock = self._clock()
        self._computed, self._shapes = {}, {}
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


def predicted(computed: list[tuple[float, Any]], sigma: float) -> Any:
    """The output at noise level `sigma`, on the line through the last computed outputs.

    Args:
        computed: one or two pairs of noise level and output, oldest first. Outputs are tensors, or tuples, lists and
            mappings of them; anything else in them is taken from the last.
    """
    last, newest = computed[-1]
    if len(computed) == 1:
        return newest
    earlier, oldest = computed[0]
    ratio = (sigma - last) / (last - earlier)

    def along(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
        return torch.lerp(new.float(), old.float(), -ratio).to(new.dtype)

    return _each(newest, along, oldest)


def _detached(out: Any) -> Any:
    return _each(out, lambda x, _: x.detach(), out)


def _each(out: Any, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], other: Any) -> Any:
    """An output with every tensor in it changed, given what is in the same place of another."""
    if isinstance(out, dict):  # also the outputs of diffusers with names
        return type(out)(**{key: _each(value, change, other[key]) for key, value in out.items()})
    if isinstance(out, (list, tuple)):
        return type(out)(_each(x, change, y) for x, y in zip(out, other, strict=True))
    return change(out, other) if isinstance(out, torch.Tensor) else out
