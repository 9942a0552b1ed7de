"""Video to video at a strength below 1: how many steps run, as diffusers counts them, and what is refused."""

from __future__ import annotations

import diffusers
import pytest
import torch

from vidsparse.generation.strength import check_strength, steps_asked, steps_run, takes_strength

V2V = diffusers.WanVideoToVideoPipeline


@pytest.mark.parametrize("cls", [V2V, diffusers.CogVideoXVideoToVideoPipeline])
def test_steps_are_those_that_diffusers_runs(cls: type) -> None:
    class Scheduler:
        order = 1

    pipe = object.__new__(cls)
    pipe.__dict__["scheduler"] = Scheduler()
    for steps in range(1, 51):
        for strength in (0.07, 0.3, 0.58, 0.8, 1.0):
            run = len(pipe.get_timesteps(steps, torch.arange(steps), strength, "cpu")[0])
            assert steps_run(cls, steps, strength) == run
            assert steps_run(cls, steps_asked(cls, steps, strength), strength) >= steps
    assert steps_run(cls, 10) == 8, "the default of the pipeline"


def test_other_pipelines_run_all_steps() -> None:
    for cls in (diffusers.WanPipeline, diffusers.LTXConditionPipeline):
        assert not takes_strength(cls) and steps_run(cls, 10, 0.5) == steps_asked(cls, 10, 0.5) == 10


def test_a_strength_that_cannot_be_is_refused() -> None:
    check_strength(V2V, 0.1, 10)
    check_strength(diffusers.WanPipeline, None, 10)
    with pytest.raises(ValueError, match=r"--strength 0\.09 of 10 steps leaves no step; give a higher one"):
        check_strength(V2V, 0.09, 10)
    with pytest.raises(ValueError, match="LTXConditionPipeline takes none; leave it out"):
        check_strength(diffusers.LTXConditionPipeline, 0.5, 10)
