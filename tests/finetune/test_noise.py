"""Noise levels of a training: spaced as those of the scheduler, sparse where the generation is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from vidsparse import Context, HeadModes, Radial, Reuse, StepSchedule
from vidsparse.finetune.noise import by_noise, draw_levels, shift_of, sparse_levels

SPARSE = Radial(density=0.3)


def unipc(shift: float = 3.0) -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


# Near 0 a step of 1/1000 is widened by the shift; Euler's scheduler applies the shift to its last level once more.
@pytest.mark.parametrize(
    ("scheduler", "tolerance"),
    [(unipc(3.0), 3e-3), (FlowMatchEulerDiscreteScheduler(shift=3.0), 9e-3)],
    ids=["unipc", "euler"],
)
def test_levels_are_spaced_as_those_of_the_scheduler(scheduler: Any, tolerance: float) -> None:
    assert shift_of(scheduler) == 3.0
    scheduler.set_timesteps(1000)
    expected = draw_levels(torch.linspace(1, 1e-3, 1000), 3.0)
    torch.testing.assert_close(scheduler.timesteps.float() / 1000, expected, rtol=0, atol=tolerance)


def test_levels_of_an_expert_stay_on_its_side_and_fill_it() -> None:
    uniform = torch.linspace(0, 1, 1001)
    for bounds in ((0.0, 1.0), (0.875, 1.0), (0.0, 0.875)):
        levels = draw_levels(uniform, 5.0, bounds)
        torch.testing.assert_close(torch.stack((levels[0], levels[-1])), torch.tensor(bounds), rtol=0, atol=1e-6)
        assert (levels.diff() > 0).all()


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)])
def test_schedulers_of_another_kind_are_refused(scheduler: Any) -> None:
    with pytest.raises(NotImplementedError, match=f"{type(scheduler).__name__} cannot be used for training"):
        shift_of(scheduler)


@pytest.mark.parametrize(
    "schedule",
    [
        StepSchedule(SPARSE, dense_steps=4),
        StepSchedule(SPARSE, dense_steps=4, dense_last_steps=2, dense_layers=(0,)),
        StepSchedule(SPARSE, dense_last_steps=1),
        StepSchedule(SPARSE, steps=(3, 9)),
        StepSchedule(SPARSE, dense_steps=2, sigmas=(0.2, 0.9)),
        StepSchedule(SPARSE, sigmas=(0.2, 0.9)),
    ],
    ids=["first", "first-last-layer", "last", "range", "first-and-sigmas", "sigmas"],
)
def test_a_schedule_by_noise_is_sparse_where_the_generation_is(schedule: StepSchedule) -> None:
    scheduler, steps = unipc(), 20
    found = by_noise(schedule, scheduler, steps)
    scheduler.set_timesteps(steps)
    for step, timestep in enumerate(scheduler.timesteps.tolist()):
        for layer in range(2):
            here = Context(step=step, steps=steps, sigma=timestep / 1000, layer=layer, layers=2)
            drawn = Context(step=0, steps=0, sigma=timestep / 1000, layer=layer, layers=2)
            assert found.is_dense(drawn) == schedule.is_dense(here), (step, layer)


@pytest.mark.parametrize(
    "table",
    [((("full", "full"), ("diagonal", "temporal")),), ((("full",), ("full",)), (("diagonal",), ("full",)))],
    ids=["first-layer-full", "noisiest-phase-full"],
)
def test_a_schedule_around_modes_that_are_full_somewhere(table: Any) -> None:
    """What the pattern runs dense by itself says nothing of the steps that the schedule leaves sparse."""
    scheduler, modes = unipc(), HeadModes(table)
    found = by_noise(StepSchedule(modes, dense_steps=2), scheduler, 30)
    assert isinstance(found, StepSchedule) and found.pattern is modes
    assert found.sigmas == by_noise(StepSchedule(SPARSE, dense_steps=2), scheduler, 30).sigmas


def test_other_patterns_and_the_scheduler_stay_as_they_are() -> None:
    scheduler = unipc()
    assert by_noise(SPARSE, scheduler, 20) is SPARSE
    by_noise(StepSchedule(SPARSE, dense_steps=4), scheduler, 20)
    assert scheduler.num_inference_steps is None
    with pytest.raises(ValueError, match=r"Reuse\(pattern=StepSchedule\(\.\.\.\)\) has its schedule inside"):
        by_noise(Reuse(StepSchedule(SPARSE, dense_steps=4)), scheduler, 20)
    with pytest.raises(ValueError, match="has no sparse step among 4"):
        by_noise(StepSchedule(SPARSE, dense_steps=4), scheduler, 4)


def test_the_sparse_levels_of_a_schedule() -> None:
    assert sparse_levels(SPARSE) == (0.0, 1.0)
    low, high = sparse_levels(by_noise(StepSchedule(SPARSE, dense_steps=4, dense_last_steps=2), unipc(), 20))
    scheduler = unipc()
    scheduler.set_timesteps(20)
    levels = [t / 1000 for t in scheduler.timesteps.tolist()]
    assert [low < level <= high for level in levels] == [False] * 4 + [True] * 14 + [False] * 2
    assert sparse_levels(StepSchedule(StepSchedule(SPARSE, sigmas=(0.1, 0.8)), sigmas=(0.3, 0.9))) == (0.3, 0.8)
