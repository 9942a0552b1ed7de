"""LoRAs for other programs: there and back again, through diffusers' converters and through ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders import lora_conversion_utils as diffusers_loras
from lora_files import Updates, as_diffusers, random_updates
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_lora import RECIPE, saved_lora, trained_pipeline
from twins import ignores_warnings, twin

from vidsparse.lora.convert import convert_lora
from vidsparse.lora.families import names_of
from vidsparse.lora.files import read_recipe
from vidsparse.lora.load import chosen_transformer
from vidsparse.lora.originals import ORIGINALS
from vidsparse.lora.renamed import renamed
from vidsparse.lora.stored import read_stored
from vidsparse.lora.summary import summarize_lora

pytestmark = ignores_warnings
trained = pytest.fixture(scope="module")(trained_pipeline)
folder = pytest.fixture(saved_lora)
FAMILIES = [family for family in ORIGINALS if family.endswith("Model")]


def products(updates: Updates) -> dict[str, torch.Tensor]:
    """What is added to each weight."""
    return {layer: u.scale * u.up.double() @ u.down.double() for layer, u in updates.items()}


def of_file(file: Path, family: str) -> dict[str, torch.Tensor]:
    return products(renamed(read_stored(file), names_of(family)).updates)


def of_diffusers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What diffusers adds for the names that its converter returns."""
    ends = "transformer.", ".lora_A.weight"
    layers = [name.removeprefix(ends[0]).removesuffix(ends[1]) for name in weights if name.endswith(ends[1])]
    sides = ({side: weights[f"transformer.{layer}.lora_{side}.weight"].double() for side in "AB"} for layer in layers)
    return {layer: side["B"] @ side["A"] for layer, side in zip(layers, sides, strict=True)}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    # Layers that the original code stacks with others have zeros where the LoRA has nothing.
    assert all(layer in expected or not value.any() for layer, value in found.items())
    for layer, value in expected.items():
        torch.testing.assert_close(found[layer], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["comfy", "musubi"])
@pytest.mark.parametrize("part", ["", "to_q"], ids=["all layers", "queries alone"])
@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(family: str, part: str, form: Any, tmp_path: Path) -> None:
    model = twin(family).build()
    updates = random_updates(model, lambda layer: part in layer)
    file = as_diffusers(tmp_path / "lora.safetensors", model, updates)
    there = convert_lora(file, tmp_path / "there.safetensors", form, family)
    assert not {name for name in load_file(there) if name.startswith("transformer.")}
    back = convert_lora(there, tmp_path / "back.safetensors", "diffusers", family)
    for found in (there, back):
        assert_same(of_file(found, family), products(updates))


CONVERTERS: dict[tuple[str, str], Any] = {
    ("WanTransformer3DModel", "comfy"): diffusers_loras._convert_non_diffusers_wan_lora_to_diffusers,
    ("WanTransformer3DModel", "musubi"): diffusers_loras._convert_musubi_wan_lora_to_diffusers,
    ("LTX2VideoTransformer3DModel", "comfy"): diffusers_loras._convert_non_diffusers_ltx2_lora_to_diffusers,
    ("MiniMaxH3Transformer3DModel", "comfy"): diffusers_loras._convert_non_diffusers_minimax_h3_lora_to_diffusers,
    ("MiniMaxH3Transformer3DModel", "musubi"): diffusers_loras._convert_non_diffusers_minimax_h3_lora_to_diffusers,
    ("HunyuanVideoTransformer3DModel", "comfy"): diffusers_loras._convert_hunyuan_video_lora_to_diffusers,
}


@pytest.mark.parametrize(("family", "form"), CONVERTERS)
def test_diffusers_reads_it(family: str, form: Any, tmp_path: Path) -> None:
    model = twin(family).build()
    # For HunyuanVideo, diffusers holds the width of single blocks as a number, and cuts lora_A of the refiner in three.
    updates = random_updates(model, lambda layer: not layer.startswith(("single_", "context_embedder.")))
    file = as_diffusers(tmp_path / "lora.safetensors", model, updates)
    there = convert_lora(file, tmp_path / "there.safetensors", form, family)
    assert_same(of_diffusers(CONVERTERS[family, form](load_file(there))), products(updates))


def test_the_recipe_stays_behind(folder: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    there = convert_lora(folder, tmp_path / "new/there.safetensors", "comfy", note=notes.append)
    assert len(notes) == 1 and "without pattern, positions and sampler: ComfyUI" in notes[0]
    assert not read_recipe(there).is_known
    own = convert_lora(folder, tmp_path / "own.safetensors", "diffusers", note=notes.append)
    assert read_recipe(own).pattern == RECIPE.pattern and len(notes) == 1
    with safe_open(own, "pt") as file:
        assert set(file.metadata()) == {"format", "lora_adapter_metadata", "vidsparse"}
    family = "WanTransformer3DModel"
    assert_same(of_file(own, family), of_file(folder / "pytorch_lora_weights.safetensors", family))


def test_the_expert_travels_to_diffusers(tmp_path: Path) -> None:
    """A file of diffusers says it in its header: its names begin with `transformer.` for either expert."""
    model, notes = trained_pipeline().transformer, list[str]()
    plain = load_file(as_diffusers(tmp_path / "plain.safetensors", model, random_updates(model)))
    second = tmp_path / "second.safetensors"
    of_second = {name.replace("transformer.", "transformer_2.", 1): weight for name, weight in plain.items()}
    save_file(of_second, second)
    out = convert_lora(second, tmp_path / "out.safetensors", "diffusers", "wan", note=notes.append)
    assert summarize_lora(out).transformer == "transformer_2" and not notes
    assert {name.split(".")[0] for name in load_file(out)} == {"transformer"}
    assert not read_recipe(out).is_known
    assert chosen_transformer(out, ["transformer", "transformer_2"], None) == "transformer_2"
    again = convert_lora(out, tmp_path / "again.safetensors", "diffusers", "wan")
    assert read_recipe(again).transformer == "transformer_2"
    open_ = convert_lora(tmp_path / "plain.safetensors", tmp_path / "open.safetensors", "diffusers", "wan")
    assert summarize_lora(open_).transformer is None, "a file that leaves it open still does"
    convert_lora(out, tmp_path / "comfy.safetensors", "comfy", "wan", note=notes.append)
    assert any("comfy.safetensors does not say that it is for transformer_2: ComfyUI has no" in note for note in notes)
    save_file(of_second | {name: weight.clone() for name, weight in plain.items()}, second)
    with pytest.raises(ValueError, match="is for transformer and transformer_2; write a file for each of them"):
        convert_lora(second, tmp_path / "both.safetensors", "diffusers", "wan")


def test_norms_travel_to_comfy_alone(tmp_path: Path) -> None:
    model = twin("WanTransformer3DModel").build()
    file = as_diffusers(tmp_path / "lora.safetensors", model, random_updates(model))
    norms = {"diffusion_model.blocks.0.self_attn.norm_q.diff": torch.ones(8), "text_encoder.x.lora_A.weight": None}
    extra = {name: value for name, value in norms.items() if value is not None}
    save_file({**load_file(file), **extra, "diffusion_model.head.modulation.set_weight": torch.ones(1, 2, 8)}, file)
    comfy = convert_lora(file, tmp_path / "comfy.safetensors", "comfy")
    found = load_file(comfy)
    assert all(torch.equal(found[name], value) for name, value in extra.items())
    assert torch.equal(found["diffusion_model.head.modulation.set_weight"], torch.ones(1, 2, 8))
    for form in ("musubi", "diffusers"):
        notes: list[str] = []
        convert_lora(comfy, tmp_path / f"{form}.safetensors", form, note=notes.append)  # type: ignore[arg-type]
        assert len(notes) == 1 and "changes 2 norms or biases, such as blocks.0.attn1.norm_q.weight" in notes[0]


def test_layers_for_images_travel(tmp_path: Path) -> None:
    name = "diffusion_model.blocks.3.cross_attn.{}.lora_{}.weight"
    sides = {"A": torch.ones(2, 8), "B": torch.ones(8, 2)}
    weights = {name.format(layer, side): sides[side].clone() for layer in ("k", "k_img", "v_img") for side in "AB"}
    save_file(weights, tmp_path / "image.safetensors")
    back = convert_lora(tmp_path / "image.safetensors", tmp_path / "back.safetensors", "diffusers", "wan")
    assert "transformer.blocks.3.attn2.add_k_proj.lora_A.weight" in load_file(back) and len(load_file(back)) == 6


def test_what_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    with pytest.raises(ValueError, match=r"out must end in \.safetensors"):
        convert_lora(folder, tmp_path / "out", "comfy")
    with pytest.raises(
        ValueError, match="the form 'kohya' of a LoRA is unknown; choose one of comfy, musubi, diffusers"
    ):
        convert_lora(folder, out, "kohya")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'dalle' is not a known family; choose one of allegro"):
        convert_lora(folder, out, "comfy", "dalle")
    with pytest.raises(ValueError, match="was made for another model than HunyuanVideoTransformer3DModel"):
        convert_lora(folder, out, "comfy", "hunyuanvideo")
    assert not out.exists()
    model = twin("CogVideoXTransformer3DModel").build()
    file = as_diffusers(tmp_path / "cog.safetensors", model, random_updates(model))
    with pytest.raises(NotImplementedError, match="names of CogVideoXTransformer3DModel in its original code are not"):
        convert_lora(file, out, "comfy", "cogvideox")
    few = as_diffusers(tmp_path / "few.safetensors", model, random_updates(model, lambda layer: "to_q" in layer))
    with pytest.raises(ValueError, match=r"may be for .*, whose original names differ; say which .* --family"):
        convert_lora(few, out, "comfy")
    save_file({"x.lora_A.weight": torch.ones(2, 2), "x.lora_B.weight": torch.ones(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="is of no family that is known: its layers are called x, "):
        convert_lora(tmp_path / "x.safetensors", out, "comfy")
    assert not out.exists()
