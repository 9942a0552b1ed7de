"""Steps of the sampling, schedules over them, and fallbacks: which calls run dense or slower, and why."""

from __future__ import annotations

import gc
import importlib.util
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanVideoToVideoPipeline,
)
from PIL import Image
from tiny_wan import SIZES, SPARSE, Pipeline, call, generate, tiny, tokens_of, wan_pipeline

import vidsparse
import vidsparse.runtime.heads
from vidsparse import Dense, Radial, StepSchedule, VideoGrid, sparsify
from vidsparse.attention import Choice
from vidsparse.runtime.pipeline import calling_pipeline

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not here")


def steps_of(run: vidsparse.Run) -> dict[int, int]:
    """Step -> calls of the first layer."""
    return {c.step: c.calls for c in run.report().calls if c.layer == 0}


@torch.no_grad()
def test_steps_without_a_scheduler_are_falling_timesteps() -> None:
    transformer, sizes = tiny(), SIZES["one-frame"]
    with sparsify(transformer, SPARSE) as run:
        for timestep in (900.0, 900.0, 500.0, 500.0, 100.0, 900.0, 899.0):  # the pairs are guidance's two calls
            call(transformer, sizes, timestep=timestep)
    assert steps_of(run) == {0: 3, 1: 3, 2: 1}


@torch.no_grad()
def test_steps_of_a_scheduler_are_its_indices() -> None:
    transformer, sizes = tiny(), SIZES["one-frame"]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = Pipeline(transformer=transformer, scheduler=scheduler)
    with sparsify(pipe, StepSchedule(SPARSE, dense_last_steps=1)) as run:
        scheduler.set_timesteps(5)
        for index in (2, 3, 3, 4):  # video to video starts in the middle
            call(transformer, sizes, timestep=float(scheduler.timesteps[index]))
        call(transformer, sizes, timestep=0.0)  # no timestep of the schedule: the number of steps is unknown again
    assert steps_of(run) == {2: 1, 3: 2, 4: 1, 5: 1}
    assert [c.step for c in run.report().calls if c.reason] == [4, 4]


@torch.no_grad()
@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    ],
    ids=["euler", "unipc"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_steps_of_video_to_video_count_from_the_first_that_runs(scheduler: Any, dtype: torch.dtype) -> None:
    pipe = WanVideoToVideoPipeline.from_pipe(wan_pipeline(scheduler=scheduler))
    pipe.to(dtype)
    pipe.set_progress_bar_config(disable=True)
    video = [Image.new("RGB", (32, 32), (20 * i, 0, 0)) for i in range(5)]
    for steps, strength, run_steps in ((8, 0.5, 4), (4, 1.0, 4), (50, 0.58, 28)):
        with sparsify(pipe, StepSchedule(SPARSE, dense_steps=1, dense_last_steps=1)) as run:
            settings = dict(num_inference_steps=steps, strength=strength, height=32, width=32, max_sequence_length=32)
            pipe(video, "a red circle", output_type="latent", **settings)
        calls = [c for c in run.report().calls if c.layer == 0]
        assert steps_of(run) == dict.fromkeys(range(run_steps), 2) and {c.steps for c in calls} == {run_steps}
        assert [c.step for c in calls if c.reason] == [0, run_steps - 1]


@torch.no_grad()
def test_rounded_timesteps_find_their_step() -> None:
    transformer, sizes = tiny(num_layers=1), SIZES["one-frame"]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    pipe = Pipeline(transformer=transformer, scheduler=scheduler)
    with sparsify(pipe, StepSchedule(SPARSE, dense_last_steps=1)) as run:
        scheduler.set_timesteps(50)
        rounded = scheduler.timesteps.bfloat16()
        assert len(set(rounded.tolist())) < 50  # of neighbours some are the same
        for timestep in scheduler.timesteps:
            for _ in range(2):  # guidance in calls of its own
                call(transformer, sizes, timestep=timestep.bfloat16())
            scheduler.step(torch.zeros(1), timestep, torch.zeros(1))
    assert {c.step: c.calls for c in run.report().calls} == dict.fromkeys(range(50), 2)
    assert [c.step for c in run.report().calls if c.reason] == [49]


@torch.no_grad()
def test_a_schedule_says_which_calls_were_dense() -> None:
    transformer, sizes = tiny(), SIZES["5x7x11"]
    with sparsify(transformer, StepSchedule(SPARSE, dense_steps=1, dense_layers=(-1,))) as run:
        found = [call(transformer, sizes, timestep=t) for t in (900.0, 500.0)]
    report = run.report()
    assert torch.equal(found[0], call(transformer, sizes, timestep=900.0))
    assert [(c.step, c.layer) for c in report.calls if c.reason is None] == [(1, 0)]
    assert sum(report.dense_reasons.values()) == 3
    assert "the pattern asks for it" in str(report)
    assert report.calls[0].impl == "dense" and report.calls[0].tiles == () and report.calls[0].density == 1


@torch.no_grad()
@pytest.mark.parametrize(("min_tokens", "dense"), [(385, False), (386, True)], ids=["reached", "missed-by-one"])
def test_min_tokens(min_tokens: int, dense: bool) -> None:
    transformer = tiny()
    with sparsify(transformer, SPARSE, min_tokens=min_tokens) as run:
        call(transformer)
    assert run.report().dense_reasons == ({"fewer than min_tokens=386 tokens": 2} if dense else {})


@torch.no_grad()
def test_a_slower_implementation_is_reported_with_its_reason_or_raises_if_strict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reason = "impl 'triton' takes head_dim 32, 64, 96, 128, not 12"
    monkeypatch.setattr(vidsparse.runtime.heads, "choose_impl", lambda *_: Choice("reference", reason))
    transformer = tiny()
    with sparsify(transformer, SPARSE) as run:
        call(transformer)
    (ran,) = run.report().ran
    assert ran == f"impl reference, tile (1, 4, 4), 385 tokens ({reason})" and f"ran: {ran}" in str(run.report())
    assert {c["fallback"] for c in run.report().to_dict()["calls"]} == {reason}
    with (
        sparsify(transformer, SPARSE, strict=True),
        pytest.raises(NotImplementedError, match=r"layer 0 would run impl 'reference': impl 'triton' .*strict=True"),
    ):
        call(transformer)


@needs_triton
@torch.no_grad()
def test_the_kernels_run_in_a_transformer(large_steps: None) -> None:
    transformer, device = tiny(attention_head_dim=32), "cuda" if torch.cuda.is_available() else "cpu"
    transformer.to(device)
    pattern, sizes = Radial(density=0.5, tile=(1, 8, 8)), (2, 14, 22)
    with sparsify(transformer, pattern, impl="triton") as run:
        found = call(transformer, sizes)
    with sparsify(transformer, pattern, impl="reference"):
        expected = call(transformer, sizes)
    assert all(0 < c.density < 1 for c in run.report().sparse)
    assert [c.impl for c in run.report().sparse] == ["triton", "triton"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_what_cannot_be_sparse_runs_dense_with_a_reason_or_raises_if_strict() -> None:
    transformer = tiny()
    attention, hidden, mask = transformer.blocks[1].attn1, torch.randn(1, 385, 24), torch.rand(1, 1, 385, 385) < 0.9
    expected = attention(hidden, None, mask)
    with sparsify(transformer, SPARSE) as run:
        call(transformer)
        assert torch.equal(attention(hidden, None, mask), expected)
    assert run.report().dense_reasons == {"the call has an attention mask": 1}
    with sparsify(transformer, SPARSE, strict=True):
        call(transformer)
        with pytest.raises(NotImplementedError, match=r"transformer layer 1 cannot be sparse: the call has an .* mask"):
            attention(hidden, None, mask)


def test_patterns_get_their_context() -> None:
    seen = []

    class Spy(Dense):
        def is_dense(self, context: vidsparse.Context) -> bool:
            return False

        def select(self, query: Any, key: Any, grid: VideoGrid, context: vidsparse.Context) -> vidsparse.BlockMap:
            seen.append(context)
            assert query.shape == key.shape == (1, grid.tokens, 2, 12)
            return self.plan(grid)

    transformer = tiny()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(4)
    timestep = float(scheduler.timesteps[1])
    pipe = Pipeline(transformer_2=transformer, scheduler=scheduler)
    with torch.no_grad(), sparsify(pipe, Spy()):
        call(transformer, timestep=timestep)
    common = dict(layers=2, step=1, steps=4, sigma=pytest.approx(timestep / 1000), heads=2, transformer="transformer_2")
    common["grid"] = tokens_of(SIZES["5x7x11"])
    assert seen == [vidsparse.Context(layer=layer, **common) for layer in range(2)]


def test_attention_outside_the_transformer_has_no_grid() -> None:
    transformer = tiny()
    with sparsify(transformer, SPARSE), pytest.raises(RuntimeError, match="outside the transformer's forward"):
        transformer.blocks[0].attn1(torch.randn(1, 385, 24))


# Whose scheduler it is

LAST_DENSE = StepSchedule(SPARSE, dense_steps=2, dense_last_steps=1)
ALL_STEPS = [(step, "sparse" if step in (2, 3, 4) else "dense") for step in range(6)]


def ways(run: vidsparse.Run) -> list[tuple[int, str]]:
    return [(c.step, "dense" if c.reason else "sparse") for c in run.report().calls if c.layer == 0]


def shifted(shift: float) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def test_steps_are_those_of_the_pipeline_that_calls() -> None:
    first = wan_pipeline(scheduler=shifted(3.0))
    second = WanPipeline.from_pipe(first)
    second.scheduler = shifted(8.0)
    second.set_progress_bar_config(disable=True)
    with sparsify(first, LAST_DENSE) as run:
        for pipe in (second, first, second):
            run.reset()
            generate(pipe, steps=6, guidance_scale=1.0)
            assert ways(run) == ALL_STEPS
        assert run.report().lost == ()


def test_steps_after_the_sparsified_pipeline_is_gone() -> None:
    pipe = wan_pipeline()
    run = sparsify(pipe, LAST_DENSE)
    pipe = WanPipeline.from_pipe(pipe)
    gc.collect()
    pipe.set_progress_bar_config(disable=True)
    generate(pipe, steps=6)
    assert ways(run) == ALL_STEPS
    run.restore()


@pytest.mark.parametrize("how", ["sparsify", "attn_processors"])
def test_a_transformer_alone_finds_the_scheduler_of_its_pipeline(how: str) -> None:
    pipe = wan_pipeline()
    with sparsify(pipe, LAST_DENSE):
        expected = generate(pipe, steps=6)
    if how == "sparsify":
        run = sparsify(pipe.transformer, LAST_DENSE)
        found = generate(pipe, steps=6)
        assert ways(run) == ALL_STEPS and run.report().lost == ()
    else:
        pipe.transformer.set_attn_processor(vidsparse.attn_processors(pipe.transformer, LAST_DENSE))
        found = generate(pipe, steps=6)
    assert torch.equal(found, expected)


@torch.no_grad()
def test_the_report_says_where_the_last_step_is_unknown() -> None:
    transformer, sizes = tiny(), SIZES["one-frame"]
    with sparsify(transformer, vidsparse.Reuse(LAST_DENSE)) as run:
        for timestep in (900.0, 600.0, 300.0):
            call(transformer, sizes, timestep=timestep)
    (lost,) = run.report().lost
    assert lost.startswith("dense_last_steps had no effect in 6 attention calls") and lost in str(run.report())
    with sparsify(transformer, StepSchedule(SPARSE, dense_steps=2)) as run:
        call(transformer, sizes)
    assert run.report().lost == ()


def test_the_pipeline_on_the_call_stack() -> None:
    transformer = tiny()

    class Loop(Pipeline):
        def __call__(self, module: torch.nn.Module) -> object:
            return self.denoise(module)

        def denoise(self, module: torch.nn.Module) -> object:
            return calling_pipeline(module)

    class Block:
        def __call__(self, components: Pipeline, module: torch.nn.Module) -> object:
            return calling_pipeline(module)

    loop = Loop(transformer_2=torch.compile(transformer, backend="eager"), scheduler=None)
    assert loop(transformer) is loop
    assert loop(tiny()) is None  # it calls a model that is not its own
    assert Block()(loop, transformer) is loop
    assert Loop(transformer=transformer)(transformer) is None  # no scheduler
    assert calling_pipeline(transformer) is None
