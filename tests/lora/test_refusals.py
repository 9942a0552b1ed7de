"""LoRAs and recipes that are refused: what the error says, and that nothing is changed."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AllegroTransformer3DModel
from safetensors.torch import load_file, save_file
from tiny_lora import RECIPE, pipeline, saved_lora, trained_pipeline

from vidsparse import LoraRecipe, Radial, load_lora, save_lora
from vidsparse.lora.files import read_recipe
from vidsparse.lora.source import FILE, KNOWN

trained = pytest.fixture(scope="module")(trained_pipeline)
folder = pytest.fixture(saved_lora)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"num_layers": 1},
            r"another model: it changes blocks\.1\.attn\S+, which does not exist in this WanTransformer3DModel",
        ),
        ({"num_attention_heads": 2}, r"another model: its \S+\.lora_[AB]\.weight has a side of 192, expected 128"),
    ],
    ids=["fewer blocks", "narrower"],
)
def test_a_lora_of_another_model(folder: Path, changes: dict[str, int], says: str) -> None:
    pipe = pipeline(**changes)
    before = pipe.transformer.rope.freqs_cos
    with pytest.raises(ValueError, match=says):
        load_lora(pipe, folder)
    assert not getattr(pipe.transformer, "peft_config", {}) and pipe.transformer.rope.freqs_cos is before


def test_a_lora_of_a_unet(folder: Path, tmp_path: Path) -> None:
    weights = {name.replace("transformer.", "unet."): weight for name, weight in load_file(folder / FILE).items()}
    save_file(weights, tmp_path / FILE)
    with pytest.raises(ValueError, match=r"another model than WanTransformer3DModel: it changes unet\.blocks\.0"):
        load_lora(pipeline(), tmp_path)


@dataclass(frozen=True)
class Mine(Radial):
    """A pattern of one's own, in a script."""


Mine.__module__ = "__main__"


@pytest.mark.parametrize(
    ("recipe", "adapter", "error", "says"),
    [
        (LoraRecipe(pattern=Mine(0.2)), "default", TypeError, "Mine is not a pattern or correction of vidsparse"),
        (RECIPE, "long", ValueError, "has no LoRA named 'long'; it has default; transformer.add_adapter"),
        (
            replace(RECIPE, transformer="transformer_2"),
            "default",
            TypeError,
            "'transformer_2', but WanPipeline has no such part",
        ),
    ],
    ids=["own pattern", "adapter", "transformer"],
)
def test_what_cannot_be_saved(
    trained: Any, tmp_path: Path, recipe: LoraRecipe, adapter: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        save_lora(tmp_path / "new", trained, recipe, adapter)
    assert not (tmp_path / "new").exists()


def test_no_lora_to_save(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="WanTransformer3DModel has no LoRA named 'default'; it has none"):
        save_lora(tmp_path, pipeline(), RECIPE)
    with pytest.raises(TypeError, match="but str has no such part"):
        save_lora(tmp_path, "shapes", RECIPE)


def test_places_without_a_lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline()
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("no weights")
    save_file({"blocks.0.to_q.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    monkeypatch.setitem(KNOWN, "shapes-long", tmp_path / "missing")
    cases: list[tuple[str | Path, type[Exception], str]] = [
        (
            tmp_path / "none",
            FileNotFoundError,
            "it is neither a file or folder here, nor a Hub id .* names are shapes-long",
        ),
        ("nobody/nothing", OSError, "no LoRA 'nobody/nothing': there is no such folder here, and the Hub says"),
        ("nobody/nothing/lora.safetensors", OSError, "the Hub says"),
        (tmp_path / "empty", ValueError, "holds no LoRA: it has no safetensors file"),
        (tmp_path, ValueError, "2 files of safetensors, model.safetensors, text.safetensors: name the file"),
        (tmp_path / "text.safetensors", ValueError, "is not a safetensors file"),
        (__file__, ValueError, "expected a safetensors file"),
        (tmp_path / "model.safetensors", ValueError, r"is not a LoRA: its weights are called blocks\.0\.to_q\.weight"),
        ("shapes-long", FileNotFoundError, "'shapes-long' ships with vidsparse, but .*missing is missing: reinstall"),
    ]
    for source, error, says in cases:
        with pytest.raises(error, match=says):
            load_lora(pipe, source)
    assert not getattr(pipe.transformer, "peft_config", {})


def test_a_pipeline_that_loads_no_lora(folder: Path) -> None:
    with pytest.raises(TypeError, match="AllegroTransformer3DModel loads no LoRA"):
        load_lora(object.__new__(AllegroTransformer3DModel), folder)


def test_peft_is_missing(trained: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"need peft, .* pip install peft"):
        load_lora(pipe, folder)
    with pytest.raises(ImportError, match="need peft"):
        save_lora(folder, trained, RECIPE)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (
            '{"pattern": {"class": "Spiral"}, "version": "9.0"}',
            r"vidsparse 9\.0, and .* class 'Spiral' .*; update vidsp",
        ),
        ('{"frames": 65, "turns": 3, "version": "9.0"}', r"vidsparse 9\.0, .* a recipe has no turns; its fields are"),
        ('{"frames": "many"}', "of an unknown version, .* frames='many' must be a whole number"),
        ('{"pattern": {"class": "Rectified"}}', "must be a pattern or None"),
        ("[1]", r"got \[1\], expected an object with the fields of LoraRecipe"),
        ("{", "cannot read its recipe: Expecting property name"),
    ],
    ids=["pattern", "field", "value", "kind", "list", "no JSON"],
)
def test_a_recipe_that_cannot_be_read(folder: Path, tmp_path: Path, header: str, says: str) -> None:
    save_file(load_file(folder / FILE), tmp_path / FILE, {"vidsparse": header})
    with pytest.raises(ValueError, match=says):
        load_lora(pipe := pipeline(), tmp_path)
    with pytest.raises(ValueError, match=r"or load the weights alone with pipe\.load_lora_weights"):
        read_recipe(tmp_path)
    assert not getattr(pipe.transformer, "peft_config", {})


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"pattern": "radial"}, TypeError, "pattern='radial' must be a pattern or None"),
        ({"correction": Radial(0.2)}, TypeError, "must be a correction or None"),
        ({"frames": 0}, ValueError, "frames=0 must be a whole number of at least 1"),
        ({"transformer": "vae"}, ValueError, "transformer='vae' must be one of transformer, transformer_2"),
        ({"positions": "ntk"}, ValueError, "must be one of plain, riflex, yarn, or None"),
        ({"positions": "plain", "frames": 65}, ValueError, "depend on frames and trained_frames; give both"),
    ],
    ids=["pattern", "correction", "frames", "transformer", "positions", "half"],
)
def test_a_recipe_is_checked(fields: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        LoraRecipe(**fields)
