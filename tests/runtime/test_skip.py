"""Steps that a schedule skips: what comes out of them, for which branch, and what is kept."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, FlowMatchEulerDiscreteScheduler
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from tiny_wan import SIZES, SPARSE, WITHOUT_PROMPT, Pipeline, call, generate, state, tiny, wan_pipeline

import vidsparse
from vidsparse import Dense, StepBudget, StepSchedule, sparsify
from vidsparse.runtime.skip import StepSkip, copied_output

ONE = SIZES["one-frame"]
HALF = StepBudget(SPARSE, budget=0.5, sparse_cost=0.5)  # of ten steps 4, 6 and 8 are skipped


def ten_steps() -> tuple[Any, Any, list[float]]:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    transformer = tiny()
    return transformer, Pipeline(transformer=transformer, scheduler=scheduler), scheduler.timesteps.tolist()


def skip_of(transformer: Any) -> StepSkip:
    found = vars(transformer)["forward"]
    assert isinstance(found, StepSkip)
    return found


def test_an_output_is_copied_part_by_part() -> None:
    one = torch.ones(2)
    out = {"video": [one, None], "sound": (one, "a word")}
    found = copied_output(out)
    one.zero_()
    assert found["video"][0].tolist() == [1.0, 1.0] and found["video"][1] is None and found["sound"][1] == "a word"
    named = copied_output(Transformer2DModelOutput(sample=torch.ones(2)))
    assert isinstance(named, Transformer2DModelOutput) and named.sample.tolist() == [1.0, 1.0]


@torch.no_grad()
def test_skipped_steps_repeat_the_computed_ones_of_their_branch() -> None:
    transformer, pipe, timesteps = ten_steps()
    expected: list[dict[str, torch.Tensor]] = []
    with sparsify(transformer, StepSchedule(SPARSE, dense_steps=2, dense_last_steps=1)):
        for timestep in timesteps[:9]:
            expected.append(
                {
                    "with": call(transformer, ONE, timestep=timestep),
                    "without": call(transformer, ONE, timestep=timestep, **WITHOUT_PROMPT),
                }
            )
    with sparsify(pipe, HALF) as run:
        found = []
        for timestep in timesteps:
            out = {"with": call(transformer, ONE, timestep=timestep)}
            out["without"] = call(transformer, ONE, timestep=timestep, **WITHOUT_PROMPT)
            found.append(out)
        assert not skip_of(transformer)._computed, "freed after the last step"
    for branch in ("with", "without"):
        for step in (0, 1, 2, 3, 5, 7):
            assert torch.equal(found[step][branch], expected[step][branch])
        for step in (4, 6, 8):
            assert torch.equal(found[step][branch], found[step - 1][branch])
    report = run.report()
    assert {(s.step, s.calls, s.by) for s in report.skipped} == {(s, 4, "the schedule") for s in (4, 6, 8)}
    assert report.skipped_calls == 12 and report.sparse_calls + report.dense_calls == 28
    assert "skipped: 12 of 40 attention calls, by the schedule" in str(report)
    assert report.to_dict()["skipped_calls"] == 12


@torch.no_grad()
def test_a_video_does_not_go_by_the_one_before() -> None:
    transformer, pipe, timesteps = ten_steps()
    with sparsify(pipe, HALF) as run:
        for timestep in timesteps[:4]:
            call(transformer, ONE, timestep=timestep)
        call(transformer, (2, 10, 12), timestep=timesteps[4])  # of another size: another video, in the middle
        assert run.report().skipped == ()
        call(transformer, (2, 10, 12), timestep=timesteps[6])
        assert [s.step for s in run.report().skipped] == [6]
        call(transformer, (2, 10, 12), timestep=timesteps[8], batch=2)  # not what was computed for one sample
        assert [s.step for s in run.report().skipped] == [6]


def test_steps_with_gradients_are_computed() -> None:
    transformer, pipe, timesteps = ten_steps()
    with sparsify(pipe, HALF) as run:
        for timestep in timesteps[:5]:
            out = call(transformer, ONE, timestep=timestep)
    assert out.requires_grad and run.report().skipped == ()


def test_a_pipeline_skips_and_is_put_back() -> None:
    pipe = wan_pipeline(experts=2)
    before = [state(t) for t in (pipe.transformer, pipe.transformer_2)]
    plain = generate(pipe, steps=10)
    run = sparsify(pipe, StepBudget(Dense(), budget=0.7, sparse_cost=1.0))
    saved = generate(pipe, steps=10)
    assert sum(s.calls for s in run.report().skipped) == 3 * 2 * 2  # steps, branches, layers
    assert {s.transformer for s in run.report().skipped} == {"transformer", "transformer_2"}
    run.restore()
    assert not torch.equal(saved, plain) and torch.equal(generate(pipe, steps=10), plain)
    assert [state(t) for t in (pipe.transformer, pipe.transformer_2)] == before
    assert "forward" not in vars(pipe.transformer)


@torch.no_grad()
def test_a_copy_skips_by_itself() -> None:
    transformer, _, timesteps = ten_steps()
    with sparsify(transformer, HALF):
        call(transformer, ONE, timestep=timesteps[0])
        copied = copy.deepcopy(transformer)
    assert skip_of(copied)._computed == {}
    for step in (2, 3, 4):
        with copied.cache_context("cond", step_index=step, num_inference_steps=10):
            call(copied, ONE, timestep=timesteps[step])
    assert len(skip_of(copied)._computed) == 1
    assert copied.blocks[0].attn1.processor.layer.clock.saver == "the schedule"


@torch.no_grad()
def test_the_report_says_where_a_budget_has_no_effect() -> None:
    transformer = tiny()
    with sparsify(transformer, HALF) as run:
        for timestep in (900.0, 600.0, 300.0):
            call(transformer, ONE, timestep=timestep)
    (lost,) = run.report().lost
    assert lost.startswith("budget had no effect in 6 attention calls")


@torch.no_grad()
def test_a_schedule_that_skips_and_a_cache_exclude_each_other() -> None:
    transformer, pipe, timesteps = ten_steps()
    config = FirstBlockCacheConfig()
    transformer.enable_cache(config)
    with pytest.raises(
        ValueError, match=r"transformer has FirstBlockCache on, and the schedule skips steps too; disable"
    ):
        sparsify(transformer, HALF)
    transformer.disable_cache()
    with sparsify(pipe, HALF):
        with pytest.raises(ValueError, match="sparsified with a schedule that skips steps"):
            vidsparse.enable_cache(pipe, config)
        transformer.enable_cache(config)  # past vidsparse
        with pytest.raises(ValueError, match="has FirstBlockCache on"):
            call(transformer, ONE, timestep=timesteps[0])
        transformer.disable_cache()
        call(transformer, ONE, timestep=timesteps[0])
