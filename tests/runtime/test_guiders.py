"""Guiders of diffusers that change layers for one call, in the twins of all families."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from diffusers.hooks import HookRegistry, LayerSkipConfig
from diffusers.hooks._helpers import AttentionProcessorMetadata, AttentionProcessorRegistry
from diffusers.hooks.layer_skip import _apply_layer_skip_hook
from diffusers.hooks.smoothed_energy_guidance_utils import (
    SmoothedEnergyGuidanceConfig,
    _apply_smoothed_energy_guidance_hook,
)
from matrix import NO_GUIDERS
from tiny_wan import SPARSE, call, state, tiny
from twins import class_or_skip, ignores_warnings, twin

from vidsparse import Dense, Radial, Run, attn_processors, sparsify
from vidsparse.runtime.blocks import register_blocks
from vidsparse.runtime.guiders import GUIDED, GUIDER
from vidsparse_pipelines import ADAPTERS

HOOK = "a name of the test"
LAYER = 1
# What is hung into a block, and what becomes of its attention.
KINDS: dict[str, dict[str, Any]] = {
    "scores": dict(skip_attention=False, skip_attention_scores=True, skip_ff=False),
    "attention": dict(skip_ff=False),
    "feed-forward": dict(skip_attention=False),
    "block": {},
    "half the attention": dict(skip_ff=False, dropout=0.5),
    "queries": {},
}
LEFT_OUT = ("attention", "block")
# Those that change no attention are not tried on every family.
FEW = ("feed-forward", "half the attention")
CASES = [(name, kind) for name in ADAPTERS for kind in KINDS if kind not in FEW or name == "WanTransformer3DModel"]
# What fails in diffusers, with and without vidsparse.
FAILS = {
    ("Cosmos3OmniTransformer", "scores"): RuntimeError,  # it puts values of fewer heads in the place of attention
    ("Cosmos3OmniTransformer", "queries"): AssertionError,  # it wants a batch
    ("CogVideoXTransformer3DModel", "half the attention"): TypeError,  # it wants one output
}
# What changes nothing in diffusers: the hook takes the place of an attention that FlexAttention does not call.
WITHOUT_EFFECT = {("AnyFlowFARTransformer3DModel", "scores")}
CASES.append(("CogVideoXTransformer3DModel", "half the attention"))
QUERIES = {"Kandinsky5Transformer3DModel": ["to_query"]}


def test_the_table_of_what_composes_names_where_guiders_fail() -> None:
    assert {name for name, kind in FAILS if kind in ("scores", "queries")} == set(NO_GUIDERS)


def hang(model: Any, kind: str, layer: int = LAYER) -> None:
    """Hang a hook into a block, as the guiders do before a call."""
    name = next(
        iter(n for n in ("blocks", "transformer_blocks", "visual_transformer_blocks", "layers") if hasattr(model, n))
    )
    if kind == "queries":
        queries = QUERIES.get(type(model).__name__)
        _apply_smoothed_energy_guidance_hook(model, SmoothedEnergyGuidanceConfig([layer], name, queries), 2.0, HOOK)
    else:
        _apply_layer_skip_hook(model, LayerSkipConfig([layer], name, **KINDS[kind]), HOOK)


def unhang(model: Any) -> None:
    """Remove the hook, as the guiders do after a call."""
    HookRegistry.check_if_exists_or_initialize(model).remove_hook(HOOK, recurse=True)


def let_diffusers_know(model: Any, adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell diffusers what it lacks of its own models, so that guiders run on dense ones too."""
    known = AttentionProcessorMetadata(lambda module, *args, **kwargs: unattended(adapter, *args, **kwargs))
    AttentionProcessorRegistry._register()  # type: ignore[no-untyped-call]
    register_blocks(model, adapter.block_states)
    own = adapter.self_attentions(model).values()
    for module in model.modules():
        if hasattr(module, "processor") and not hasattr(module, "is_cross_attention"):
            module.is_cross_attention = module not in own
    for module in own:
        monkeypatch.setitem(AttentionProcessorRegistry._registry, type(module.processor), known)  # type: ignore[arg-type]


def unattended(adapter: Any, *args: Any, **kwargs: Any) -> Any:
    given = [*args, *(kwargs[name] for name in adapter.attention_states[len(args) :])]
    return tuple(given[:2]) if len(adapter.attention_states) == 2 else given[0]


def outputs(of_class: Any, model: Any) -> Any:
    torch.manual_seed(7)  # of a dropout
    return of_class.outputs(model)


def assert_same(found: Any, expected: Any) -> None:
    for key, wanted in expected.items():
        torch.testing.assert_close(found[key], wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def differ(one: Any, other: Any) -> bool:
    return any(not torch.allclose(one[key], other[key], rtol=1e-3, atol=1e-3) for key in one)


def as_they_ask(run: Run, kind: str, attentions: int) -> None:
    """The layer under a hook ran as its guider asks, all others sparse."""
    report = run.report()
    assert report.dense_reasons == ({GUIDED: 1} if kind == "scores" else {})
    assert [(s.calls, s.by) for s in report.skipped] == ([(1, GUIDER)] if kind in LEFT_OUT else [])
    assert report.sparse_calls == attentions - (kind == "scores" or kind in LEFT_OUT)


@ignores_warnings
@pytest.mark.usefixtures("uncompiled")
@torch.no_grad()
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_guider_does_what_it_does_on_the_dense_model(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class_or_skip(name)
    of_class = twin(name)
    model, dense = of_class.build(), of_class.build()
    let_diffusers_know(dense, of_class.adapter, monkeypatch)
    hang(dense, kind)
    if (name, kind) in FAILS:
        with pytest.raises(FAILS[name, kind]):
            outputs(of_class, dense)
        with sparsify(model, Dense()), pytest.raises(FAILS[name, kind]):
            hang(model, kind)
            outputs(of_class, model)
        return
    expected = outputs(of_class, dense)
    attributes = [set(vars(module)) for module in model.modules()]
    plain = outputs(of_class, model)
    attentions = len(of_class.adapter.self_attentions(model))
    with sparsify(model, Radial(density=1.0, tile=(1, 4, 4))) as run:
        hang(model, kind)
        assert_same(outputs(of_class, model), expected)
        as_they_ask(run, kind, attentions)
        unhang(model)
    with sparsify(model, SPARSE) as run:
        sparse = outputs(of_class, model)
        run.reset()
        hang(model, kind)
        perturbed = outputs(of_class, model)
        as_they_ask(run, kind, attentions)
        unhang(model)
    assert differ(expected, plain) == ((name, kind) not in WITHOUT_EFFECT)
    assert differ(perturbed, sparse)
    assert_same(outputs(of_class, model), plain)
    assert [set(vars(module)) - {"_diffusers_hook", "forward"} for module in model.modules()] == attributes


@ignores_warnings
@pytest.mark.usefixtures("uncompiled")
@torch.no_grad()
@pytest.mark.parametrize(
    "name", [n for n in ADAPTERS if n not in ("Cosmos3OmniTransformer", "WanVACETransformer3DModel")]
)
def test_a_block_that_is_left_out_is_as_if_it_were_not_there(name: str) -> None:
    """Of Cosmos 3 diffusers mixes up the two streams; the control of VACE is added beside the block."""
    class_or_skip(name)
    of_class = twin(name)
    model, without = of_class.build(), of_class.build()
    stack = next(iter(of_class.adapter.self_attentions(without))).split(".")[0]
    del getattr(without, stack)[LAYER]
    with sparsify(model, Dense()):
        hang(model, "block")
        found = outputs(of_class, model)
    assert_same(found, outputs(of_class, without))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_hook_and_sparsify_does_not_matter(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for first in (True, False):
        model = tiny()
        let_diffusers_know(model, twin("WanTransformer3DModel").adapter, monkeypatch)
        before = state(model)
        if first:
            hang(model, kind)
        with sparsify(model, SPARSE) as run:
            if not first:
                hang(model, kind)
            torch.manual_seed(7)
            found.append(call(model))
            as_they_ask(run, kind, 2)
        unhang(model)
        assert state(model) == before
    assert torch.equal(*found)


@torch.no_grad()
def test_a_copy_of_a_model_has_marks_of_its_own() -> None:
    """The attention of LTX-Video does not say whether it is cross-attention."""
    of_class = twin("LTXVideoTransformer3DModel")
    model = of_class.build()
    run = sparsify(model, SPARSE)
    copied = copy.deepcopy(model)
    hang(model, "scores")
    expected = of_class.outputs(model)
    unhang(model)
    run.restore()
    assert not any(hasattr(module, "is_cross_attention") for module in model.modules())
    hang(copied, "scores")
    assert_same(of_class.outputs(copied), expected)
    unhang(copied)
    copied.set_attn_processor(model.attn_processors)  # the copy's clock ends with its processors
    gc.collect()
    assert not any(hasattr(module, "is_cross_attention") for module in copied.modules())


@torch.no_grad()
def test_processors_that_were_set_in_the_way_of_diffusers() -> None:
    model, expected = tiny(), tiny()
    model.set_attn_processor(attn_processors(model, SPARSE))
    plain = call(model)
    with sparsify(expected, SPARSE):
        for one in (model, expected):
            hang(one, "scores")
        assert torch.equal(call(model), call(expected)) and not torch.allclose(call(model), plain, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_processor_that_no_adapter_knows_can_be_left_out_too() -> None:
    model = tiny()
    kind = type("Mine", (type(model.blocks[LAYER].attn1.processor),), {})
    model.blocks[LAYER].attn1.set_processor(kind())
    with sparsify(model, SPARSE) as run:
        plain = call(model)
        for what in ("scores", "attention"):
            hang(model, what)
            assert not torch.allclose(call(model), plain, rtol=1e-3, atol=1e-3)
            unhang(model)
    assert [s.by for s in run.report().skipped] == [GUIDER]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["scores", "attention"])
def test_compiled_blocks_under_a_guider_give_the_same(kind: str) -> None:
    torch.compiler.reset()
    compiled, plain = tiny(), tiny()
    compiled.blocks[LAYER].compile(backend="eager")
    with sparsify(compiled, SPARSE) as run, sparsify(plain, SPARSE) as wanted:
        assert torch.equal(call(compiled), call(plain))
        for model in (compiled, plain):
            hang(model, kind)
        assert torch.equal(call(compiled), call(plain))
        for model in (compiled, plain):
            unhang(model)
        assert torch.equal(call(compiled), call(plain))
        assert run.report().dense_reasons == wanted.report().dense_reasons
        assert run.report().skipped == wanted.report().skipped
    torch.compiler.reset()


@torch.no_grad()
def test_spatio_temporal_guidance_of_ltx2_is_named() -> None:
    class_or_skip("LTX2VideoTransformer3DModel")
    from vidsparse.doctor import Twin

    of_class = Twin(class_or_skip("LTX2VideoTransformer3DModel"), {"perturbed_attn": True})
    model = of_class.build()
    arguments = of_class.arguments(model)
    with sparsify(model, SPARSE) as run:
        model(**arguments, spatio_temporal_guidance_blocks=[LAYER])
    assert [(s.calls, s.by) for s in run.report().skipped] == [(1, GUIDER)]
    with sparsify(model, SPARSE) as run:
        model(**arguments, spatio_temporal_guidance_blocks=[LAYER], perturbation_mask=torch.ones(1))
        model(**arguments)
    assert run.report().skipped == () and run.report().sparse_calls == 4
