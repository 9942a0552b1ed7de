"""`restore` and `report` without the run: what they find, what they leave alone, what they refuse."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from tiny_wan import SPARSE, Pipeline, call, generate, state, tiny, wan_pipeline

import vidsparse
from vidsparse import Dense, Radial, attn_processors, sparsify
from vidsparse.runtime.active import active_runs


@pytest.mark.parametrize("kept", [True, False], ids=["run-kept", "run-lost"])
def test_restore_finds_the_run(kept: bool) -> None:
    transformer = tiny()
    pipe, before, plain = Pipeline(transformer=transformer), state(transformer), call(transformer)
    run = sparsify(pipe, SPARSE)
    if not kept:
        del run
    assert not torch.equal(call(transformer), plain)
    report = vidsparse.report(pipe)
    assert report.sparse_calls == 2 and report.pattern == repr(SPARSE)
    assert vidsparse.restore(pipe) is True
    assert state(transformer) == before and torch.equal(call(transformer), plain)
    assert vidsparse.restore(pipe) is False
    if kept:
        assert repr(run).endswith(", restored)")
        run.restore()
    assert state(transformer) == before


def test_the_run_that_is_found_is_the_one_that_was_returned() -> None:
    pipe = Pipeline(transformer=tiny())
    with sparsify(pipe, SPARSE) as run:
        assert active_runs(pipe) == [run] == active_runs(pipe.transformer)
    assert active_runs(pipe) == []


def test_an_old_run_does_not_undo_a_new_one() -> None:
    transformer = tiny()
    old = sparsify(transformer, SPARSE)
    vidsparse.restore(transformer)
    new = sparsify(transformer, Radial(0.6))
    old.restore()
    assert active_runs(transformer) == [new] and vidsparse.report(transformer).pattern == repr(Radial(0.6))


def test_experts_of_one_run_end_together_and_report_together() -> None:
    pipe = wan_pipeline(experts=2)
    sparsify(pipe, SPARSE)  # nobody keeps the run
    generate(pipe)
    for target in (pipe, pipe.transformer):
        assert {c.transformer for c in vidsparse.report(target).calls} == {"transformer", "transformer_2"}
    assert len(active_runs(pipe)) == 1
    assert vidsparse.restore(pipe) and not active_runs(pipe.transformer_2)
    run = sparsify(pipe, SPARSE)
    assert vidsparse.restore(pipe.transformer_2) and not active_runs(pipe) and not run.replaced


def test_two_runs_in_one_pipeline() -> None:
    pipe = wan_pipeline(experts=2)
    before = [state(t) for t in (pipe.transformer, pipe.transformer_2)]
    runs = [sparsify(pipe.transformer, SPARSE), sparsify(pipe.transformer_2, Dense())]
    with pytest.raises(ValueError, match="were sparsified each by itself; pass one of them"):
        vidsparse.report(pipe)
    assert vidsparse.report(pipe.transformer).pattern == repr(SPARSE)
    assert active_runs(pipe) == runs and vidsparse.restore(pipe)
    assert [state(t) for t in (pipe.transformer, pipe.transformer_2)] == before


def test_processors_of_attn_processors_are_found() -> None:
    transformer = tiny()
    before = state(transformer)
    transformer.set_attn_processor(attn_processors(transformer, SPARSE))
    call(transformer)
    assert vidsparse.report(transformer).sparse_calls == 2
    assert vidsparse.restore(transformer) and state(transformer) == before


def test_processors_that_wait_to_be_set_are_left_alone() -> None:
    transformer = tiny()
    processors = attn_processors(transformer, SPARSE)
    assert not vidsparse.restore(transformer)
    transformer.set_attn_processor(processors)
    call(transformer)
    assert vidsparse.report(transformer).sparse_calls == 2


def test_a_copy_has_a_run_of_its_own() -> None:
    transformer = tiny()
    before = state(transformer)[1]
    run = sparsify(transformer, SPARSE)
    copied = copy.deepcopy(transformer)
    call(copied)
    assert vidsparse.report(copied).sparse_calls == 2 and not vidsparse.report(transformer).calls
    assert vidsparse.restore(copied) and state(copied)[1] == before
    assert active_runs(transformer) == [run] and not active_runs(copied)


def test_a_processor_of_another_class_is_put_back() -> None:
    """One that becomes sparse by itself, and keeps no reference to what was there."""

    class Mine:
        def __init__(self, inner: Any):
            self.inner = inner

        def sparse_processor(self, layer: Any) -> Any:
            made = Mine(self.inner)
            made.layer = layer  # type: ignore[attr-defined]
            return made

        def __call__(self, attn: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            out: torch.Tensor = self.inner(attn, *args, **kwargs)
            return out

    transformer = tiny()
    mine = Mine(transformer.blocks[0].attn1.processor)
    transformer.blocks[0].attn1.processor = mine
    sparsify(transformer, SPARSE)
    assert transformer.blocks[0].attn1.processor is not mine
    assert vidsparse.restore(transformer) and transformer.blocks[0].attn1.processor is mine


def test_nothing_is_kept_alive() -> None:
    pipe = Pipeline(transformer=tiny())
    sparsify(pipe, SPARSE)
    call(pipe.transformer)
    vidsparse.report(pipe)
    gone = weakref.ref(pipe.transformer), weakref.ref(pipe)
    gc.disable()
    try:
        del pipe
        assert [x() for x in gone] == [None, None]
    finally:
        gc.enable()


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="this WanTransformer3DModel is not sparsified"):
        vidsparse.report(tiny())
    for function in (vidsparse.report, vidsparse.restore):
        with pytest.raises(TypeError, match="str has no transformer"):
            function("pipe")
    assert vidsparse.restore(torch.nn.Linear(1, 1)) is False
