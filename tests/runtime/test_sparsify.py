"""`sparsify` and `attn_processors`: what they put in, what they leave behind, what they refuse."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from tiny_wan import SIZES, SPARSE, Pipeline, call, masked, state, tiny, tokens_of, wan_pipeline

from vidsparse import Dense, Radial, SlidingTile, attn_processors, sparsify

# Putting it in and taking it out


def test_restore_puts_back_the_very_objects() -> None:
    transformer = tiny()
    before = state(transformer)
    run = sparsify(transformer, SPARSE)
    inside = state(transformer)
    assert inside[1] == before[1] + 2
    # Self-attention of the two layers is ours, cross-attention is not touched.
    changed = [name for name, p in zip(transformer.attn_processors, before[0], strict=True) if p not in inside[0]]
    assert changed == ["blocks.0.attn1.processor", "blocks.1.attn1.processor"]
    run.restore()
    assert state(transformer) == before
    run.restore()
    assert state(transformer) == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit], ids=lambda e: e.__name__)
def test_the_context_manager_restores_whatever_happens(error: type[BaseException]) -> None:
    transformer = tiny()
    before = state(transformer)
    with pytest.raises(error, match="stop"), sparsify(transformer, SPARSE):
        raise error("stop")
    assert state(transformer) == before


def test_ctrl_c_within_the_forward_pass_restores(monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = tiny()
    before = state(transformer)

    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["vidsparse.runtime.heads"], "sparse_attention", interrupt)
    with pytest.raises(KeyboardInterrupt), sparsify(transformer, SPARSE):
        call(transformer)
    assert state(transformer) == before


def test_ctrl_c_within_sparsify_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = tiny()
    before = state(transformer)

    set_processor = transformer.blocks[1].attn1.set_processor
    interrupts = iter([KeyboardInterrupt])

    def interrupted_once(processor: object) -> None:
        for interrupt in interrupts:
            raise interrupt
        set_processor(processor)

    monkeypatch.setattr(transformer.blocks[1].attn1, "set_processor", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        sparsify(transformer, SPARSE)
    assert state(transformer) == before


def test_a_second_sparsify_is_refused_and_changes_nothing() -> None:
    transformer = tiny()
    run = sparsify(transformer, SPARSE)
    inside = state(transformer)
    for again in (lambda: sparsify(transformer, Dense()), lambda: attn_processors(transformer, Dense())):
        with pytest.raises(ValueError, match=r"transformer is already sparsified; .*restore"):
            again()
        assert state(transformer) == inside
    run.restore()
    sparsify(transformer, SPARSE).restore()


def test_a_pipeline_with_one_sparsified_expert_is_refused_as_a_whole() -> None:
    one, two = tiny(), tiny()
    run = sparsify(two, SPARSE)
    before = state(one), state(two)
    with pytest.raises(ValueError, match="transformer_2 is already sparsified"):
        sparsify(Pipeline(transformer=one, transformer_2=two), SPARSE)
    assert (state(one), state(two)) == before
    run.restore()


@torch.no_grad()
def test_two_transformers_do_not_share_state() -> None:
    one, two = tiny(), tiny()
    with sparsify(one, SPARSE) as first, sparsify(two, SlidingTile(window=(1, 4, 4), tile=(1, 4, 4))) as second:
        call(one, SIZES["5x7x11"], timestep=900.0)
        call(two, SIZES["odd-pixels"], timestep=800.0)
        call(one, SIZES["5x7x11"], timestep=100.0)
    assert [(c.step, c.tokens) for c in first.report().calls[::2]] == [(0, 385), (1, 385)]
    assert [(c.step, c.tokens) for c in second.report().calls[::2]] == [(0, 80)]
    assert first.report().density != second.report().density


@torch.no_grad()
def test_a_second_size_uses_its_own_map() -> None:
    transformer = tiny()
    with sparsify(transformer, SPARSE) as run:
        found = {name: call(transformer, sizes) for name, sizes in SIZES.items()}
        found["5x7x11"] = call(transformer, SIZES["5x7x11"])
    for name, sizes in SIZES.items():
        with masked(transformer, SPARSE, tokens_of(sizes)):
            torch.testing.assert_close(found[name], call(transformer, sizes), rtol=1e-4, atol=1e-5)
    assert [(c.tokens, c.calls) for c in run.report().calls[::2]] == [(385, 2), (80, 1), (30, 1)]
    assert {c.step for c in run.report().calls} == {0}


@torch.no_grad()
def test_attn_processors_the_diffusers_way() -> None:
    transformer = tiny()
    before, originals = state(transformer), transformer.attn_processors
    processors = attn_processors(transformer, SPARSE)
    assert processors.keys() == originals.keys()
    assert [name for name in originals if processors[name] is originals[name]] == [
        "blocks.0.attn2.processor",
        "blocks.1.attn2.processor",
    ]
    transformer.set_attn_processor(processors)
    found = call(transformer)
    transformer.set_attn_processor(dict(originals))
    assert state(transformer)[0] == before[0]
    with masked(transformer, SPARSE, tokens_of(SIZES["5x7x11"])):
        torch.testing.assert_close(found, call(transformer), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_hook_of_attn_processors_goes_when_they_go() -> None:
    transformer = tiny()
    before, originals = state(transformer), transformer.attn_processors
    transformer.set_attn_processor(attn_processors(transformer, SPARSE))
    call(transformer)
    assert state(transformer)[1] == before[1] + 2
    transformer.set_attn_processor(dict(originals))
    call(transformer)
    assert state(transformer) == before


@torch.no_grad()
def test_an_attention_backend_set_afterwards_reaches_the_original() -> None:
    transformer = tiny()
    original = transformer.blocks[0].attn1.processor
    with sparsify(transformer, SPARSE):
        transformer.set_attention_backend("native")
        assert str(original._attention_backend.value) == "native"
        transformer.reset_attention_backend()
        assert original._attention_backend is None


# Bad input


class Unsupported(torch.nn.Module):
    pass


@pytest.mark.parametrize(
    ("target", "settings", "error", "message"),
    [
        (Unsupported, {}, NotImplementedError, r"no adapter for Unsupported; .* WanTransformer3DModel"),
        (lambda: Pipeline(transformer=Unsupported()), {}, NotImplementedError, r"no adapter for Unsupported"),
        (lambda: Pipeline(unet=Unsupported()), {}, TypeError, r"Pipeline has no transformer"),
        (lambda: None, {}, TypeError, r"NoneType has no transformer"),
        (tiny, {"pattern": 0.2}, TypeError, r"pattern must be a pattern, .*, not 0\.2"),
        (
            tiny,
            {"pattern": Radial},
            TypeError,
            r"must be a pattern, such as vidsparse\.Radial\(density=0\.2\), not the class Radial",
        ),
        (tiny, {"pattern": tiny}, TypeError, r"must be a pattern, .*, not a function"),
        (tiny, {"strict": "no"}, TypeError, r"strict must be True or False, not 'no'"),
        (tiny, {"strict": 1}, TypeError, r"strict must be True or False, not 1"),
        (tiny, {"min_tokens": -5}, ValueError, r"min_tokens=-5 must be at least 0"),
        (tiny, {"min_tokens": 2.5}, TypeError, r"min_tokens must be a whole number of tokens, not 2\.5"),
        (tiny, {"min_tokens": True}, TypeError, r"min_tokens must be a whole number of tokens, not True"),
        (tiny, {"impl": "fast"}, ValueError, r"impl='fast' is unknown"),
        (lambda: tiny().to("meta"), {"impl": "triton"}, NotImplementedError, r"use impl='auto'"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_bad_input(target: Callable[[], Any], settings: dict[str, Any], error: type[Exception], message: str) -> None:
    model = target()
    with pytest.raises(error, match=message):
        sparsify(model, **({"pattern": SPARSE} | settings))
    if isinstance(model, WanTransformer3DModel):
        assert not model._forward_pre_hooks


@pytest.mark.parametrize(
    ("settings", "error"), [({"strict": "no"}, TypeError), ({"min_tokens": -5}, ValueError)], ids=str
)
def test_attn_processors_check_their_arguments(settings: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        attn_processors(tiny(), SPARSE, **settings)


@torch.no_grad()
def test_attn_processors_take_strict_and_min_tokens() -> None:
    transformer = tiny()
    expected, originals = call(transformer), dict(transformer.attn_processors)
    transformer.set_attn_processor(attn_processors(transformer, SPARSE, min_tokens=386))
    assert torch.equal(call(transformer), expected)
    transformer.set_attn_processor(originals)
    transformer.set_attn_processor(attn_processors(transformer, SPARSE, strict=True))
    attention = transformer.blocks[0].attn1
    call(transformer)
    with pytest.raises(NotImplementedError, match="cannot be sparse: the call has an attention mask"):
        attention(torch.randn(1, 385, 24), None, torch.ones(1, 1, 385, 385, dtype=torch.bool))


def test_swapped_arguments_name_the_class_of_the_pipeline_alone() -> None:
    for swapped in (wan_pipeline(), tiny()):
        with pytest.raises(TypeError) as caught:
            sparsify(SPARSE, swapped)  # type: ignore[arg-type]
        assert str(caught.value).endswith(f", not a {type(swapped).__name__}") and len(str(caught.value)) < 200
        with pytest.raises(TypeError) as caught:
            sparsify(swapped, SPARSE, correction=swapped)  # type: ignore[arg-type]
        assert str(caught.value) == f"correction must be a correction or None, not a {type(swapped).__name__}"


@pytest.mark.parametrize("copies", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
def test_a_run_is_not_copied(copies: Callable[[object], object]) -> None:
    run = sparsify(tiny(), SPARSE)
    with pytest.raises(TypeError, match="a run of sparsify cannot be pickled or copied; restore it first"):
        copies(run)


@torch.no_grad()
@pytest.mark.parametrize("when", ["before", "after"])
def test_weights_that_accelerate_offloads_compute_where_it_says(when: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    transformer = tiny()
    with sparsify(transformer, SPARSE, impl="cpu"):
        expected = call(transformer)
    if when == "before":
        accelerate.cpu_offload(transformer, execution_device=torch.device("cpu"))
    with sparsify(transformer, SPARSE, impl="cpu") as run:
        if when == "after":
            accelerate.cpu_offload(transformer, execution_device=torch.device("cpu"))
        found = call(transformer)
    assert torch.equal(found, expected) and {c.impl for c in run.report().calls} == {"cpu"}
    with pytest.raises(ValueError, match="impl='cpu' needs tensors on the CPU, these are on meta"):
        sparsify(tiny().to("meta"), SPARSE, impl="cpu")


def test_attn_processors_of_no_pattern_or_an_unknown_transformer() -> None:
    with pytest.raises(TypeError, match="must be a pattern"):
        attn_processors(tiny(), "radial")  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="no adapter for Unsupported"):
        attn_processors(Unsupported(), SPARSE)
