"""Where a forward call of a transformer stands: grid, step and branch, read by a hook and not by copied pipelines."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch

from vidsparse.grid import VideoGrid
from vidsparse_pipelines.base import Adapter


class Clock:
    """Where a transformer's current forward call stands: grid and step, read by a forward pre-hook."""

    def __init__(self, transformer: torch.nn.Module, adapter: Adapter, scheduler: Callable[[], Any]):
        self.adapter, self.scheduler = adapter, scheduler
        self.grid: VideoGrid | None = None
        self.timestep, self.step, self.steps = float("inf"), 0, 0
        self.branch, self.video = 0, 0
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
            self.step, self.branch, self.video = 0, 0, self.video + 1
        elif timestep < self.timestep:
            self.step, self.branch = self.step + 1, 0
        else:
            self.branch += 1  # the same noise again: classifier-free guidance in calls of its own
        self.steps = 0
        if timestep in schedule:
            self.step, self.steps = schedule.index(timestep), len(schedule)
        self.grid, self.timestep = grid, timestep
        self.device = call["hidden_states"].device
