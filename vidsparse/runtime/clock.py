"""Where a forward call of a transformer stands: grid, step and branch, read by a hook and not by copied pipelines."""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch

from vidsparse.grid import VideoGrid
from vidsparse.runtime.adapter import Adapter


class Clock:
    """Keeps what a forward pre-hook reads.

    Attributes:
        grid: the tokens of the present call; None before the first, and where the adapter cannot tell.
        irregular: why it cannot, or None.
        timestep: its noise as the adapter tells it, falling from 1000.
        step, steps: index of the denoising step, and how many there are, 0 while that is unknown.
        branch: which call of the step this is. video: how many videos have begun.
    """

    def __init__(self, transformer: torch.nn.Module, adapter: Adapter, scheduler: Callable[[], Any]):
        self.adapter, self.scheduler = adapter, scheduler
        self.grid: VideoGrid | None = None
        self.irregular: str | None = None
        self.timestep, self.step, self.steps = float("inf"), 0, 0
        self.branch, self.video, self.index = 0, 0, None
        self.timesteps: Any = None  # the scheduler's own object
        self.device = torch.device("cpu")
        self.signature = inspect.signature(type(transformer).forward)
        self.remove = transformer.register_forward_pre_hook(_Hook(self), with_kwargs=True).remove
        weakref.finalize(self, self.remove)

    def expect_another_video(self) -> None:
        """Take the next call for the first of a video, whatever its noise."""
        self.timestep = float("-inf")

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def read(self, transformer: torch.nn.Module, call: Mapping[str, Any]) -> None:
        grid, self.irregular = None, None
        try:
            grid = self.adapter.grid(transformer, call)
        except NotImplementedError as error:
            self.irregular = str(error)
        timestep = self.adapter.timestep(transformer, call)
        scheduler = self.scheduler()
        timesteps = getattr(scheduler, "timesteps", None)  # None also before some schedulers have been set
        # Transformers get timesteps in the dtype of their weights, and some families count the other way round.
        dtype = torch.as_tensor(call.get("timestep", 0.0)).dtype
        rounded = torch.as_tensor(() if timesteps is None else timesteps).to(dtype).tolist()
        schedule = [self.adapter.timestep(transformer, {"timestep": t}) for t in rounded]
        index = getattr(scheduler, "step_index", None)  # how many steps it has made; None before the first
        # Noise only falls within a run: a rise, or another video, is the start of the next one. Text has any length.
        # A run that was broken off may be followed by one with less noise; but that has set timesteps of its own.
        view, before = (None if it is None else it.view for it in (grid, self.grid))
        if view != before or timestep > self.timestep or timesteps is not self.timesteps:
            self.step, self.branch, self.video = 0, 0, self.video + 1
        elif timestep < self.timestep or index != self.index:
            self.step, self.branch = self.step + 1, 0
        else:
            self.branch += 1  # the same step again: classifier-free guidance in calls of its own
        self.steps = 0
        if schedule.count(timestep) == 1:
            self.step, self.steps = schedule.index(timestep), len(schedule)
        elif schedule and (self.step == 0 if index is None else index < len(schedule)):
            # Rounded to the dtype of the weights, timesteps may be unknown to the scheduler, or known twice.
            self.step, self.steps = index or 0, len(schedule)
        self.grid, self.timestep, self.index, self.timesteps = grid, timestep, index, timesteps
        self.device = next(x.device for x in call.values() if isinstance(x, torch.Tensor))


class _Hook:
    """Drives a clock that it does not keep alive: with `attn_processors`, both go when the processors go."""

    def __init__(self, clock: Clock):
        self.clock = weakref.ref(clock)

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        clock = self.clock()
        if clock is not None:
            clock.read(module, clock.signature.bind_partial(module, *args, **kwargs).arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        """A copy of the transformer has processors of its own, and so a clock."""
        clock = self.clock()
        return self if clock is None else _Hook(copy.deepcopy(clock, memo))

    def __reduce__(self) -> Any:
        raise TypeError("a sparsified transformer cannot be pickled; restore it first, and sparsify what was loaded")
