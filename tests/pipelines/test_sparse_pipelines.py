"""Whole Wan pipelines: what runs sparse in them, and what they are afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from tiny_wan import SPARSE, generate, state, wan_pipeline

from vidsparse import StepSchedule, sparsify


@torch.no_grad()
@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    ],
    ids=["euler", "unipc"],
)
def test_a_pipeline_runs_sparse_and_is_the_same_afterwards(scheduler: Any) -> None:
    pipe = wan_pipeline(scheduler=scheduler)
    before, expected = state(pipe.transformer), generate(pipe)
    with sparsify(pipe, StepSchedule(SPARSE, dense_steps=1, dense_last_steps=1)) as run:
        sparse = generate(pipe)
    calls = run.report().calls
    # 4 steps x 2 calls for guidance x 2 layers, the middle two steps sparse.
    assert [(c.step, c.calls) for c in calls] == [(step, 2) for step in range(4) for _ in range(2)]
    assert {c.step for c in calls if c.reason is None} == {1, 2}
    assert {c.tokens for c in calls} == {3 * 8 * 8}
    assert not torch.equal(sparse, expected)
    assert state(pipe.transformer) == before
    assert torch.equal(generate(pipe), expected)


@torch.no_grad()
def test_a_pipeline_at_another_size_and_another_number_of_steps() -> None:
    pipe = wan_pipeline()
    with sparsify(pipe, StepSchedule(SPARSE, dense_last_steps=1)) as run:
        generate(pipe, steps=2)
        generate(pipe, steps=3, size=48, guidance_scale=1.0)
        generate(pipe, steps=3, size=48, guidance_scale=1.0)
    assert [(c.step, c.tokens, c.reason is None, c.calls) for c in run.report().calls if c.layer == 0] == [
        *[(0, 192, True, 2), (1, 192, False, 2)],
        *[(0, 432, True, 2), (1, 432, True, 2), (2, 432, False, 2)],
    ]


@torch.no_grad()
def test_both_experts_of_a_pipeline() -> None:
    pipe = wan_pipeline(experts=2)
    before = state(pipe.transformer), state(pipe.transformer_2)
    with sparsify(pipe, StepSchedule(SPARSE, dense_steps=1, dense_last_steps=1)) as run:
        generate(pipe, guidance_scale=1.0)
    calls = [c for c in run.report().calls if c.layer == 0]
    # The steps are those of the run, not of the expert, so the second expert's first call is no first step.
    timesteps = pipe.scheduler.timesteps.tolist()
    assert [c.transformer for c in calls] == ["transformer" if t >= 500 else "transformer_2" for t in timesteps]
    assert {c.transformer for c in calls} == {"transformer", "transformer_2"}
    assert [c.step for c in calls] == [0, 1, 2, 3]
    assert [c.reason is None for c in calls] == [False, True, True, False]
    assert (state(pipe.transformer), state(pipe.transformer_2)) == before


@torch.no_grad()
def test_two_pipelines_do_not_share_state() -> None:
    one, two = wan_pipeline(), wan_pipeline()
    with sparsify(one, SPARSE) as first:
        sparse = generate(one)
        plain = generate(two)
    assert first.report().sparse_calls == 16
    assert not torch.equal(sparse, plain)
    assert torch.equal(generate(one), plain)
