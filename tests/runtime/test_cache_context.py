"""What a pipeline tells in `cache_context`, and the steps and branches that follow from it."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from tiny_wan import SIZES, SPARSE, WITHOUT_PROMPT, call, generate, tiny, wan_pipeline

import vidsparse
from vidsparse import Reuse, StepSchedule, TopBlocks, sparsify
from vidsparse.runtime.cache_context import Ear, Told
from vidsparse.runtime.steps import StepCounter

ONE = SIZES["one-frame"]


def steps(transformer: Any) -> StepCounter:
    counter: StepCounter = transformer.blocks[0].attn1.processor.layer.clock.steps
    return counter


def method_of(transformer: Any) -> object:
    return vars(transformer).get("cache_context")


@torch.no_grad()
def test_a_name_is_a_branch_whatever_comes_first() -> None:
    transformer, found = tiny(), []
    with sparsify(transformer, SPARSE):
        # Guidance that begins in the second step and changes its order in the third.
        for timestep, names in ((900.0, ["cond"]), (600.0, ["cond", "uncond"]), (300.0, ["uncond", "cond"])):
            for name in names:
                with transformer.cache_context(name):
                    call(transformer, ONE, timestep=timestep, **(WITHOUT_PROMPT if name == "uncond" else {}))
                found.append((steps(transformer).step, name, steps(transformer).branch))
    assert found == [(0, "cond", 0), (1, "cond", 0), (1, "uncond", 1), (2, "uncond", 1), (2, "cond", 0)]


@torch.no_grad()
def test_different_calls_of_one_name_are_different_branches() -> None:
    transformer, found = tiny(), []
    with sparsify(transformer, SPARSE):
        for timestep in (900.0, 600.0):
            for text in (1.0, 2.0, 1.0):
                with transformer.cache_context("cond"):
                    call(transformer, ONE, timestep=timestep, encoder_hidden_states=torch.full((1, 7, 16), text))
                found.append(steps(transformer).branch)
    assert found == [0, 1, 0] * 2


@torch.no_grad()
def test_told_steps_and_noise_count() -> None:
    transformer, seen = tiny(), []
    with sparsify(transformer, StepSchedule(SPARSE, dense_last_steps=1)) as run:
        for step, sigma in ((5, 0.4), (6, 0.3), (9, 0.1), (2, 0.05)):  # the last begins another video
            context = dict(step_index=step, num_inference_steps=10, sigma=sigma)
            with transformer.cache_context("cond", **context):
                call(transformer, ONE, timestep=500.0)  # says nothing of the step
            counter = steps(transformer)
            seen.append((counter.step, counter.steps, counter.sigma, counter.video))
        call(transformer, ONE, timestep=500.0)
        assert steps(transformer).sigma == 0.5
    assert seen == [(5, 10, 0.4, 1), (6, 10, 0.3, 1), (9, 10, 0.1, 1), (2, 10, 0.05, 2)]
    assert [c.step for c in run.report().calls if c.reason] == [9, 9]


def test_noise_on_another_scale_is_not_taken() -> None:
    assert Told.of("cond", {"sigma": torch.tensor(80.0), "step_index": torch.tensor(3)}) == Told("cond", 3)
    assert Told.of("cond", {}) == Told("cond")


@pytest.mark.parametrize("experts", [1, 2])
def test_latents_are_those_of_a_pipeline_that_tells_nothing(experts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = StepSchedule(Reuse(TopBlocks(density=0.4), refresh_every=2), dense_steps=1, dense_last_steps=1)
    pipe = wan_pipeline(experts)
    with sparsify(pipe, pattern) as run:
        told, calls = generate(pipe, steps=6), {(c.step, c.layer, c.reason): c.calls for c in run.report().calls}
    monkeypatch.setattr(Ear, "fits", classmethod(lambda cls, transformer: False))
    with sparsify(pipe, pattern) as run:
        assert torch.equal(generate(pipe, steps=6), told)
        assert calls == {(c.step, c.layer, c.reason): c.calls for c in run.report().calls}


@torch.no_grad()
def test_steps_go_on_where_every_block_is_skipped() -> None:
    transformer = tiny()
    forwards = [block.forward for block in transformer.blocks]
    with sparsify(transformer, SPARSE) as run:
        for timestep in (900.0, 600.0, 300.0):
            for block, forward in zip(transformer.blocks, forwards, strict=True):
                block.forward = (lambda hidden_states, *_: hidden_states) if timestep == 600.0 else forward
            call(transformer, ONE, timestep=timestep)
    assert {c.step for c in run.report().calls} == {0, 2}
    (skipped,) = run.report().skipped
    assert (skipped.step, skipped.calls, skipped.by) == (1, 2, "something unknown")


def test_restore_puts_back_the_method_of_the_class_in_any_order() -> None:
    transformer = tiny()
    earlier, later = Ear(transformer), Ear(transformer)
    earlier.remove()
    assert method_of(transformer) is later
    with transformer.cache_context("cond"):
        assert (earlier.told.name, later.told.name) == ("cond", "cond")
    assert later.told == Told()
    later.remove()
    later.remove()
    assert method_of(transformer) is None


def test_what_others_put_on_top_stays() -> None:
    transformer = tiny()
    ear = Ear(transformer)
    top = vars(transformer)["cache_context"] = lambda name: ear(name)
    ear.remove()
    assert method_of(transformer) is top
    with transformer.cache_context("cond"):
        pass


def test_processors_alone_keep_nothing_alive() -> None:
    transformer = tiny()
    original = transformer.attn_processors
    transformer.set_attn_processor(vidsparse.attn_processors(transformer, SPARSE))
    clock = weakref.ref(transformer.blocks[0].attn1.processor.layer.clock)
    transformer.set_attn_processor(original)
    gc.collect()
    assert clock() is None and method_of(transformer) is None
    gone = weakref.ref(transformer)
    ear = Ear(transformer)
    del transformer, original
    gc.collect()
    assert gone() is None
    with pytest.raises(RuntimeError, match="the transformer of this cache_context is gone"), ear("cond"):
        pass


@torch.no_grad()
def test_a_copy_hears_what_it_is_told_itself() -> None:
    transformer = tiny()
    with sparsify(transformer, SPARSE):
        copied = copy.deepcopy(transformer)
        with copied.cache_context("cond", step_index=3, num_inference_steps=5):
            call(copied, ONE)
        assert (steps(copied).step, steps(transformer).video) == (3, 0)
    assert method_of(transformer) is None and isinstance(method_of(copied), Ear)
