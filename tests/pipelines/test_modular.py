"""Modular pipelines and their guiders: steps, branches, what runs sparse, and what is left afterwards."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from adapter_checks import Spy
from diffusers.hooks import LayerSkipConfig, SmoothedEnergyGuidanceConfig
from modular_pipelines import MODULAR, STEPS, model
from twins import class_or_skip, ignores_warnings

from vidsparse import Dense, Radial, Reuse, StepBudget, StepSchedule, TopBlocks, sparsify
from vidsparse.runtime.guiders import GUIDED, GUIDER

TILE = (1, 4, 4)
ALL, SOME = Radial(density=1.0, tile=TILE), Radial(density=0.3, tile=TILE)
KEPT = Reuse(TopBlocks(density=0.3, tile=TILE), refresh_every=3)
# Blocks have other names in other families.
BLOCKS = {"wan": "blocks", "hunyuan-1.5": "transformer_blocks", "ltx": "transformer_blocks"}


def layer_1(family: str, **changes: Any) -> LayerSkipConfig:
    return LayerSkipConfig([1], BLOCKS[family], **changes)


def guider(name: str, family: str = "wan") -> Any:
    """A guider that works in two middle steps where it may stop, and in all of them where it may not."""
    scale, middle = {"guidance_scale": 3.0}, {"start": 0.25, "stop": 0.75}
    skip = {**scale, "skip_layer_guidance_stop": 0.75}
    made: dict[str, Any] = {
        "none": lambda: diffusers.ClassifierFreeGuidance(1.0),
        "CFG": lambda: diffusers.ClassifierFreeGuidance(**scale, **middle),
        "APG": lambda: diffusers.AdaptiveProjectedGuidance(**scale, adaptive_projected_guidance_momentum=-0.5),
        "APG mix": lambda: diffusers.AdaptiveProjectedMixGuidance(**scale),
        "CFG-Zero*": lambda: diffusers.ClassifierFreeZeroStarGuidance(**scale),
        "TCFG": lambda: diffusers.TangentialClassifierFreeGuidance(**scale),
        "magnitude": lambda: diffusers.guiders.MagnitudeAwareGuidance(**scale),
        "auto": lambda: diffusers.AutoGuidance(**scale, auto_guidance_config=layer_1(family)),
        "PAG": lambda: diffusers.PerturbedAttentionGuidance(
            **scale, perturbed_guidance_layers=[1], perturbed_guidance_stop=0.75
        ),
        "SLG": lambda: diffusers.SkipLayerGuidance(**skip, skip_layer_config=layer_1(family)),
        "SLG attention": lambda: diffusers.SkipLayerGuidance(**skip, skip_layer_config=layer_1(family, skip_ff=False)),
        "SEG": lambda: diffusers.SmoothedEnergyGuidance(
            **scale, seg_guidance_config=SmoothedEnergyGuidanceConfig([1], BLOCKS[family])
        ),
    }
    return made[name]()


def with_guider(family: str, name: str) -> Any:
    pipe = MODULAR[family].build()
    try:
        pipe.update_components(guider=guider(name, family))
    except AttributeError:
        pytest.skip(f"this diffusers has no such guider: {name}")
    return pipe


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


# Pipelines


@ignores_warnings
@torch.no_grad()
@pytest.mark.parametrize("family", MODULAR)
def test_a_modular_pipeline_runs_sparse(family: str) -> None:
    case = MODULAR[family]
    pipe = case.build()
    expected = case.latents(pipe)
    with sparsify(pipe, ALL):
        close(case.latents(pipe), expected)
    with sparsify(pipe, StepSchedule(SOME, dense_steps=1, dense_last_steps=1), strict=True) as run:
        assert not torch.allclose(case.latents(pipe), expected, rtol=1e-3, atol=1e-3)
    report = run.report()
    assert {c.transformer for c in report.calls} == {*case.transformers}
    assert {(c.step, c.steps) for c in report.calls} == {(step, STEPS) for step in range(STEPS)}
    assert {c.step for c in report.sparse} == {1, 2}
    per_step = [sum(c.calls for c in report.calls if (c.step, c.layer) == (step, 0)) for step in range(STEPS)]
    assert per_step == STEPS * [case.calls]
    assert report.skipped == () and report.lost == ()


@torch.no_grad()
def test_an_exchanged_transformer_is_reported() -> None:
    case = MODULAR["wan"]
    pipe = case.build()
    with sparsify(pipe, SOME) as run:
        pipe.update_components(transformer=model("WanTransformer3DModel"))
        case.latents(pipe)
        assert run.report().calls == ()
        assert any("pipe.transformer is another model than at sparsify" in text for text in run.report().lost)


@ignores_warnings
def test_both_models_of_minimax_h3_are_sparsified() -> None:
    pipe = MODULAR["h3"].build()
    pipe.transformer_ref = MODULAR["h3-references"].parts()["transformer_ref"]
    with sparsify(pipe, SOME) as run:
        assert {*run.transformers} == {"transformer", "transformer_ref"}


# Guiders


@ignores_warnings
@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "name", "calls"),
    [
        ("wan", "CFG", [1, 2, 2, 1]),
        ("wan", "APG", [2, 2, 2, 2]),
        ("wan", "APG mix", [2, 2, 2, 2]),
        ("wan", "CFG-Zero*", [2, 2, 2, 2]),
        ("wan", "TCFG", [2, 2, 2, 2]),
        ("ltx", "magnitude", [2, 2, 2, 2]),
        ("wan", "auto", [2, 2, 2, 2]),
        ("wan", "PAG", [2, 3, 3, 2]),
        ("ltx", "PAG", [2, 3, 3, 2]),
        ("hunyuan-1.5", "PAG", [2, 3, 3, 2]),
        ("wan", "SLG", [2, 3, 3, 2]),
        ("wan", "SLG attention", [2, 3, 3, 2]),
        ("wan", "SEG", [2, 3, 3, 3]),
    ],
)
def test_a_guider_does_what_it_does_on_the_dense_pipeline(family: str, name: str, calls: list[int]) -> None:
    case, pipe = MODULAR[family], with_guider(family, name)
    with sparsify(pipe, Dense()):
        expected = case.latents(pipe)
    with sparsify(pipe, ALL) as run:
        close(case.latents(pipe), expected)
    report = run.report()
    first = [sum(c.calls for c in report.calls if (c.step, c.layer) == (step, 0)) for step in range(STEPS)]
    assert first == calls
    third = {1: 1, 2: 1}  # step -> calls under the guider
    assert {s.step: s.calls for s in report.skipped if s.by == GUIDER} == (
        dict.fromkeys(range(STEPS), 1) if name == "auto" else third if "SLG" in name else {}
    )
    assert len(report.skipped) == len([s for s in report.skipped if s.by == GUIDER])
    dense = {c.step: c.calls for c in report.calls if c.reason is not None}
    assert dense == (third if name == "PAG" else {}) and {*report.dense_reasons} <= {GUIDED}
    if name not in ("PAG", "SLG attention", "SLG"):
        close(case.latents(pipe), expected)  # diffusers alone can do it


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "branches"),
    [
        ("CFG", [[0], [0, 1], [0, 1], [0]]),
        ("auto", [[0, 1], [0, 1], [0, 1], [0, 1]]),
        # The perturbed call has the arguments of the first, and is another branch for all that.
        ("PAG", [[0, 1], [0, 1, 2], [0, 1, 2], [0, 1]]),
        ("SLG", [[0, 1], [0, 1, 2], [0, 1, 2], [0, 1]]),
    ],
)
def test_a_perturbed_call_is_a_branch_of_its_own(name: str, branches: list[list[int]]) -> None:
    case, pipe, spy = MODULAR["wan"], with_guider("wan", name), Spy()
    object.__setattr__(spy, "seen", [])
    with sparsify(pipe, spy):
        case.latents(pipe)
    found = [context for context in spy.seen if context.layer == 0]
    assert [[c.branch for c in found if c.step == step] for step in range(STEPS)] == branches


@torch.no_grad()
def test_nothing_is_kept_of_a_branch_that_a_guider_stopped() -> None:
    """PAG runs in step 1 alone; what its branch kept is freed with the last step."""
    case, pipe = MODULAR["wan"], with_guider("wan", "none")
    pipe.update_components(
        guider=diffusers.PerturbedAttentionGuidance(3.0, perturbed_guidance_layers=[1], perturbed_guidance_stop=0.5)
    )
    with sparsify(pipe, KEPT) as run:
        case.latents(pipe)
        layers: list[Any] = [layer for layer in run.clocks["transformer"].layers if layer.index == 0]
        assert run.report().kept_bytes > 0
        assert all(not layer.memories for layer in layers)


@torch.no_grad()
def test_a_skipped_step_of_a_perturbed_branch_is_its_own() -> None:
    """If the third call were taken for the first, PAG would have no effect in a skipped step."""
    case, pipe = MODULAR["wan"], with_guider("wan", "none")
    pipe.update_components(
        guider=diffusers.PerturbedAttentionGuidance(3.0, perturbed_guidance_layers=[1], perturbed_guidance_stop=1.0)
    )
    predictions: list[torch.Tensor] = []
    pipe.transformer.register_forward_hook(lambda *x: predictions.append(x[-1][0]))
    budget = StepBudget(Dense(), budget=0.7)
    skipped = budget.ways(6).index("skipped")
    assert skipped > 1  # PAG begins with the second step
    with sparsify(pipe, budget):
        case.latents(pipe, num_inference_steps=6)
    before, after = (predictions[2 + 3 * (step - 1) :][:3] for step in (skipped - 1, skipped))
    assert all(map(torch.equal, before, after))
    assert not torch.allclose(after[0], after[2], rtol=1e-3, atol=1e-3)


@ignores_warnings
@torch.no_grad()
def test_guidance_of_ltx2_in_four_calls() -> None:
    case = MODULAR["ltx2"]
    pipe = case.build()
    guidance = class_or_skip("LTX2Guidance")
    pipe.update_components(
        transformer=model("LTX2VideoTransformer3DModel", perturbed_attn=True),
        guider=guidance(3.0, 1.0, 3.0, spatio_temporal_guidance_blocks=[1]),
        audio_guider=guidance(3.0, 1.0, 3.0),
    )
    expected = case.latents(pipe)
    with sparsify(pipe, ALL) as run:
        close(case.latents(pipe), expected)
    assert [(s.step, s.calls, s.by) for s in run.report().skipped] == [(step, 1, GUIDER) for step in range(STEPS)]
    assert run.report().sparse_calls == STEPS * (2 * 4 - 1)


# What docs/composing.md says of diffusers


@torch.no_grad()
def test_what_does_nothing_in_diffusers() -> None:
    pipe = with_guider("wan", "none")
    latents = MODULAR["wan"].latents

    def found(made: Any) -> torch.Tensor:
        pipe.update_components(guider=made)
        with sparsify(pipe, Dense()):
            return latents(pipe)

    config = SmoothedEnergyGuidanceConfig([1], "blocks")
    seg = [diffusers.SmoothedEnergyGuidance(3.0, scale, seg_guidance_config=config) for scale in (0.0, 3.0)]
    assert torch.equal(*map(found, seg)), "SEG does something now: say so in docs/composing.md"
    pag = diffusers.PerturbedAttentionGuidance(1.0, 3.0, perturbed_guidance_layers=[1], perturbed_guidance_stop=1.0)
    cfg = diffusers.ClassifierFreeGuidance(3.0, start=0.25)
    assert torch.allclose(found(pag), found(cfg)), "PAG without CFG perturbs something: say so in docs/composing.md"


@pytest.mark.parametrize("layers", [1, [1]])
def test_what_fails_in_diffusers(layers: Any) -> None:
    pipe = with_guider("wan", "none")
    pipe.update_components(
        guider=diffusers.SkipLayerGuidance(3.0, skip_layer_guidance_layers=layers, skip_layer_guidance_stop=1.0)
    )
    with sparsify(pipe, Dense()), pytest.raises(TypeError, match="has no len"):
        MODULAR["wan"].latents(pipe)
