"""Presets: which model gets which, and what they make of a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_wan import tiny
from twins import class_or_skip, ignores_warnings, twin

import vidsparse
from vidsparse import Context, Radial, StepSchedule, VideoGrid
from vidsparse.presets import PRESETS, choose, preset
from vidsparse.serialize import from_data, to_data
from vidsparse_pipelines import ADAPTERS

WAN = "WanTransformer3DModel"
# What the configurations of published models say, as far as it tells them apart.
MODELS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "wan2.1-14b": (WAN, {"num_layers": 40, "num_attention_heads": 40, "in_channels": 16}, False),
    "wan2.2-a14b": (WAN, {"num_layers": 40, "num_attention_heads": 40, "in_channels": 16}, True),
    "wan2.1-1.3b": (WAN, {"num_layers": 30, "num_attention_heads": 12, "in_channels": 16}, False),
    "wan2.2-5b": (WAN, {"num_layers": 30, "num_attention_heads": 24, "in_channels": 48}, False),
    "shapes": (WAN, {"num_layers": 6, "num_attention_heads": 3}, True),
    "hunyuanvideo": ("HunyuanVideoTransformer3DModel", {"num_layers": 20}, False),
    "cogvideox1.5": ("CogVideoXTransformer3DModel", {"num_layers": 42, "patch_size_t": 2}, False),
    "mochi": ("MochiTransformer3DModel", {"num_layers": 48}, False),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_published_model_has_its_preset(name: str) -> None:
    transformer, config, experts = MODELS[name]
    assert choose(class_or_skip(transformer), config, experts) is preset(name)


def test_other_models_have_the_default() -> None:
    assert choose(class_or_skip("CogVideoXTransformer3DModel"), {"patch_size_t": None}).name == "default"
    assert choose(class_or_skip("LTXVideoTransformer3DModel"), {}).name == "default"
    assert {*MODELS, "default"} == {known.name for known in PRESETS}


def test_classes_derived_from_a_family_have_its_preset() -> None:
    class Own(class_or_skip("MochiTransformer3DModel")):  # type: ignore[misc]
        pass

    assert choose(Own, {}).name == "mochi"


@pytest.mark.parametrize("known", PRESETS, ids=lambda known: known.name)
def test_a_preset_is_usable(known: vidsparse.Preset) -> None:
    assert from_data(to_data(known.pattern)) == known.pattern
    grid, context = VideoGrid(21, 24, 40), Context(layer=5, layers=30, step=20, steps=40, sigma=0.5, heads=2)
    assert not known.pattern.is_dense(context) and known.pattern.is_dense(Context(layer=5, layers=30, steps=40))
    known.pattern.check_grid(grid)
    known.pattern.check_model(known.config.get("num_layers", 30), known.config.get("num_attention_heads", 12))
    # A published setting names who published it; the others say that they are a guess or measured here.
    assert known.source.startswith(("Radial", "Rectified")) or "guess" in known.note or "Measured" in known.note


@pytest.mark.parametrize(
    ("name", "steps", "dense"),
    [("wan2.1-14b", 50, 12), ("wan2.1-14b", 8, 2), ("wan2.1-14b", 4, 1), ("wan2.2-a14b", 40, 11), ("wan2.2-5b", 50, 5)],
)
def test_dense_steps_are_those_published(name: str, steps: int, dense: int) -> None:
    """The last two of Wan 2.1 are the code's for models distilled to 8 and to 4 steps."""
    chosen = preset(name).pattern
    contexts = [Context(layer=9, layers=40, step=step, steps=steps) for step in range(steps)]
    assert [chosen.is_dense(c) for c in contexts] == [True] * dense + [False] * (steps - dense)


def test_an_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"preset 'wan' is unknown; choose one of shapes, wan2\.2-a14b, "):
        preset("wan")


@ignores_warnings
@pytest.mark.parametrize("name", ADAPTERS)
def test_sparsify_alone_uses_the_preset(name: str) -> None:
    class_or_skip(name)
    model = twin(name).build()
    known = vidsparse.preset_for(model)
    with vidsparse.sparsify(model) as run:
        assert (run.options.pattern, run.options.correction) == (known.pattern, known.correction)


def test_a_correction_of_ones_own_stays() -> None:
    model, own = tiny(), vidsparse.PooledComplement()
    with vidsparse.sparsify(model, correction=own) as run:
        assert run.options.correction is own
    with vidsparse.sparsify(model, Radial(0.5)) as run:
        assert run.options.pattern == Radial(0.5) and run.options.correction is None


def test_a_pipeline_with_two_experts() -> None:
    class Pipeline:
        transformer = transformer_2 = torch.nn.Linear(1, 1)

    with pytest.raises(TypeError, match="no transformer"):
        vidsparse.preset_for(object())
    Pipeline.transformer.config = {}  # type: ignore[assignment]
    assert isinstance(vidsparse.preset_for(Pipeline()).pattern, StepSchedule)
