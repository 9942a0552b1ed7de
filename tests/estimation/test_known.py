"""The table of published models: against diffusers, against presets and families, and what is not in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import tiny_pipeline
from pages import ROOT

from vidsparse import PRESETS
from vidsparse.estimation.estimate import model_preset
from vidsparse.estimation.known import known_model
from vidsparse.estimation.published import MODELS, KnownModel
from vidsparse.generation.frames import families, geometry_of
from vidsparse.generation.transformers import class_named, defaults, without_weights

tiny = pytest.fixture(scope="module")(tiny_pipeline)
ROUNDED = 0.12  # how far a name may round: "5B" has 5.57 billion


@pytest.mark.parametrize("known", MODELS, ids=lambda known: known.name)
def test_the_class_of_diffusers_has_as_many_parameters_as_are_published(known: KnownModel) -> None:
    cls, config = class_named(known.transformer), dict(known.config)
    assert config.keys() <= defaults(cls).keys(), "a setting that the class does not have"
    found = sum(weight.numel() for weight in without_weights(cls, config).parameters()) / 1e9
    assert known.billions is None or found == pytest.approx(known.billions, rel=ROUNDED)


@pytest.mark.parametrize("known", MODELS, ids=lambda known: known.name)
def test_the_video_fits_the_model(known: KnownModel) -> None:
    found = geometry_of(class_named(known.transformer), dict(known.config), known.vae_stride)
    frames, height, width = known.video
    assert found.frames(frames)[0] == frames
    found.check(frames, height, width)
    assert found.grid(frames, height, width).tokens > 4096
    assert known.source and known.calls in (1, 2)


def test_names_are_unique() -> None:
    names = [name.lower() for known in MODELS for name in (known.name, *known.models)]
    assert len(set(names)) == len(names)


def test_every_model_of_a_preset_is_known_and_has_that_preset() -> None:
    for preset in PRESETS:
        for model in preset.models:
            assert model_preset(known_model(model)).name == preset.name


def test_every_family_is_known_by_the_checkpoint_of_its_page() -> None:
    assert {known.transformer for known in MODELS} == set(families().values())
    ids = [name for known in MODELS for name in known.models]
    for page in sorted((ROOT / "docs/families").glob("*.md")):
        example = ROOT / f"examples/families/{page.stem}.py"
        named = [name for name in ids if f'"{name}"' in example.read_text()]
        assert any(known_model(name).transformer == families()[page.stem] for name in named), page.stem


def test_names_are_read_in_any_case() -> None:
    assert known_model("WAN2.1-14b") == known_model("wan-ai/wan2.1-t2v-14b-diffusers")


def test_an_unknown_model_names_its_neighbours() -> None:
    with pytest.raises(ValueError, match=r"did you mean .*wan2\.1-14b.*; ?.*folder of a diffusers pipeline works too"):
        known_model("wan2.1-14")
    with pytest.raises(ValueError, match=r"model 'zzzz' is unknown; Known are wan2\.1-1\.3b, "):
        known_model("zzzz")


def test_a_folder_says_what_it_is(tiny: Path, tmp_path: Path) -> None:
    found = known_model(str(tiny))
    assert (found.transformer, found.video[0], found.steps, found.calls) == ("WanTransformer3DModel", 81, 50, 2)
    assert found.source == "its files, and the defaults of WanPipeline"
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "HunyuanVideoTransformer3DModel"}))
    alone = known_model(str(tmp_path))
    assert (alone.video, alone.steps, alone.calls) == ((0, 0, 0), 0, 1)
    assert known_model("shapes").text == 32
