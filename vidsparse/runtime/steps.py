"""Step, branch and video of a call: what the pipeline tells of it, else what the calls before it let one infer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from vidsparse.grid import VideoGrid
from vidsparse.runtime.adapter import TRAIN_TIMESTEPS
from vidsparse.runtime.cache_context import Told

BRANCHES = 8  # different calls of one step; guidance makes at most four in the pipelines of diffusers


@dataclass(frozen=True)
class Schedule:
    """The state of a scheduler at one call.

    Attributes:
        timesteps: the scheduler's own object, which is another one for each run; None where there is no scheduler.
        noise: those of the run as the adapter reads them, falling from at most 1000; a run may leave out the first.
        index: how many steps the run has made; None before the first.
    """

    timesteps: Any = None
    noise: tuple[float, ...] = ()
    index: int | None = None


# The name of a call if it was told, and the modules that a guider has changed for it.
_Kind = tuple[str | None, tuple[str, ...]]


@dataclass(frozen=True)
class _Known:
    """A call of the present step: its kind, the branch that it is, its arguments."""

    kind: _Kind
    branch: int
    arguments: dict[str, Any]


class StepCounter:
    """Counts steps, and the branches of guidance within them.

    What the pipeline tells counts: the name of a call, its step and its noise. The rest is inferred. Noise only falls
    within a video, so a rise begins another one. Calls of one step that have the same name, or none, differ in their
    arguments, in an order that is the same in every step: the n-th different call of a name is one branch. A call with
    the arguments of an earlier one is the same branch again, unless a guider has changed the model in between.

    Attributes:
        timestep: noise of the present call, falling from 1000. sigma: the same in [0, 1], as told where it is told.
        step, steps: index of the denoising step, and how many there are, 0 while unknown.
        branch: which of the different calls of the step this is, numbered as they first came in the video.
        video: how many videos have begun.
    """

    def __init__(self) -> None:
        self.timestep, self.sigma = float("inf"), 1.0
        self.step = self.steps = self.branch = self.video = 0
        self._view: tuple[int, int, int] | None = None
        self._schedule, self._told = Schedule(), Told()
        self._calls: list[_Known] = []  # different calls of this step
        self._before: set[int] = set()  # branches of the step before
        self._branches: dict[tuple[_Kind, int], int] = {}  # kind, and which call of this kind -> branch

    @property
    def is_last(self) -> bool:
        """True in the last step; False where the number of steps is unknown."""
        return self.step + 1 == self.steps

    @property
    def over(self) -> set[int]:
        """In the last step, the branches to free: the present one, and those that the step before did not have.

        A guider may stop a branch before the video ends.
        """
        return {*self._branches.values()} - self._before | {self.branch}

    def expect_another_video(self) -> None:
        """Count the next call as the first of a video, whatever its noise."""
        self.timestep = float("-inf")

    def advance(
        self,
        call: Mapping[str, Any],
        grid: VideoGrid | None,
        timestep: float,
        schedule: Schedule,
        told: Told = Told(),  # noqa: B008 (frozen)
        changed: tuple[str, ...] = (),
    ) -> None:
        """Count one call.

        Args:
            call: the arguments of the transformer's `forward`, by name.
            grid: its tokens, None where unknown. The text may have another length in each branch.
            timestep: its noise, falling from 1000.
            schedule: of the pipeline that makes the call.
            told: what the pipeline says of the call.
            changed: names of the modules that a guider has changed for the call.
        """
        before, view = self._schedule, None if grid is None else grid.view
        arguments = {name: _snapshot(value) for name, value in call.items()}
        counted = None if told.step is None or self._told.step is None else told.step - self._told.step
        # After a run that was interrupted, the next may start with less noise, but its timesteps are another object.
        other = view != self._view or timestep > self.timestep or schedule.timesteps is not before.timesteps
        if other or (counted is not None and counted < 0):
            self._begin_video()
        elif timestep < self.timestep or schedule.index != before.index if counted is None else counted > 0:
            self._before = {known.branch for known in self._calls}
            self.step, self._calls = self.step + 1, []
        self._find_branch((told.name, changed), arguments)
        self._view, self.timestep, self._schedule, self._told, self.steps = view, timestep, schedule, told, 0
        self.sigma = timestep / TRAIN_TIMESTEPS if told.sigma is None else told.sigma
        noise, index = schedule.noise, schedule.index
        if told.step is not None:
            self.step, self.steps = told.step, len(noise) if told.steps is None else told.steps
        elif noise.count(timestep) == 1:
            self.step, self.steps = noise.index(timestep), len(noise)
        elif noise and (self.step == 0 if index is None else index < len(noise)):
            # Rounded to the dtype of the weights, timesteps may be unknown to the scheduler, or known twice.
            self.step, self.steps = index or 0, len(noise)

    def release(self) -> None:
        """Drop the arguments of the calls of this step; further different calls keep counting."""
        self._calls = [replace(known, arguments={}) for known in self._calls]

    def _begin_video(self) -> None:
        self.step, self.video = 0, self.video + 1
        self._calls, self._before, self._branches = [], set(), {}

    def _find_branch(self, kind: _Kind, arguments: dict[str, Any]) -> None:
        of_kind = [known for known in self._calls if known.kind == kind]
        for known in of_kind:
            if _equal(known.arguments, arguments):
                self.branch = known.branch
                return
        if len(self._calls) == BRANCHES:  # more than guidance makes: other videos at the same noise
            self._begin_video()
            of_kind = []
        self.branch = self._branches.setdefault((kind, len(of_kind)), len(self._branches))
        self._calls.append(_Known(kind, self.branch, arguments))


@dataclass(frozen=True)
class _Snapshot:
    """A tensor without its gradient, and how often it had been written to."""

    tensor: torch.Tensor
    version: int | None

    def equals(self, other: _Snapshot) -> bool:
        a, b = self.tensor, other.tensor
        if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
            return False
        if a.data_ptr() == b.data_ptr() and a.stride() == b.stride():
            return self.version == other.version
        return torch.equal(a, b)


def _snapshot(value: Any) -> Any:
    """The value with every tensor in it as a `_Snapshot`."""
    if isinstance(value, torch.Tensor):
        detached = value.detach()
        return _Snapshot(detached, None if detached.is_inference() else detached._version)
    if isinstance(value, Mapping):
        return {key: _snapshot(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_snapshot(x) for x in value]
    return value


def _equal(a: Any, b: Any) -> bool:
    """Compare two snapshots of arguments; objects that are not plain data are equal only if they are the same."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, _Snapshot):
        return a.equals(b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return isinstance(a, (bool, int, float, str)) and a == b
