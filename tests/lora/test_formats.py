"""Files of each trainer in each family: the output is that of merged weights, before and after `sparsify`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_files import (
    Pipe,
    Updates,
    Writer,
    as_comfy,
    as_diffsynth,
    as_diffusers,
    as_diffusers_names_of_comfy,
    as_flat,
    as_musubi,
    as_peft,
    merged,
    random_updates,
)
from safetensors.torch import load_file
from twins import ignores_warnings, twin

from vidsparse import Radial, load_lora, sparsify, unload_lora
from vidsparse.lora.fitted import names_in
from vidsparse.lora.originals import ORIGINALS
from vidsparse_pipelines import ADAPTERS

pytestmark = ignores_warnings
FAMILIES = [name for name in ADAPTERS if name != "AllegroTransformer3DModel"]  # diffusers has no LoRA for Allegro
IN_DIFFUSERS: dict[str, Writer] = {
    "diffusers": as_diffusers,
    "peft": as_peft,
    "lightx2v": as_diffusers_names_of_comfy,
    "kohya": as_flat,
}
IN_ORIGINAL: dict[str, Writer] = {"comfy": as_comfy, "musubi": as_musubi}
CASES = [(name, form) for name in FAMILIES for form in IN_DIFFUSERS]
CASES += [(name, form) for name in FAMILIES if name in ORIGINALS for form in IN_ORIGINAL]


def furthest(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest difference, as a part of the largest value."""
    return max(
        float((found[k].double() - expected[k].double()).abs().max() / expected[k].abs().max()) for k in expected
    )


def expected_outputs(family: str, updates: Updates) -> tuple[dict[str, torch.Tensor], float]:
    """The outputs of merged weights in float64, and how far those in float32 may be from them."""
    known = twin(family)
    exact = known.outputs(merged(known.build(torch.float64), updates), dtype=torch.float64)
    plain = known.outputs(merged(known.build(), updates))
    # The matrices of a LoRA are multiplied one after the other: a rounding more for each layer.
    return exact, 4 * furthest(plain, exact) + 1e-6


@pytest.mark.parametrize(("family", "form"), CASES)
def test_a_file_does_what_merged_weights_do(family: str, form: str, tmp_path: Path) -> None:
    model = twin(family).build()
    updates = random_updates(model)
    exact, tolerance = expected_outputs(family, updates)
    before = twin(family).outputs(model)
    assert furthest(before, exact) > 100 * tolerance, "the LoRA changes nothing, so this test shows nothing"
    write = {**IN_DIFFUSERS, **IN_ORIGINAL}[form]
    file, notes = write(tmp_path / "adapter_model.safetensors", model, updates), list[str]()
    load_lora(pipe := Pipe(model), file, note=notes.append)
    found = twin(family).outputs(model)
    assert furthest(found, exact) <= tolerance and notes == []
    parameters = [parameter for parameter in model.parameters() if parameter.numel()]
    assert not any(parameter.is_meta for parameter in parameters)
    assert len({parameter.untyped_storage().data_ptr() for parameter in parameters}) == len(parameters)
    unload_lora(pipe)
    after = twin(family).outputs(model)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("family", FAMILIES)
def test_before_and_after_sparsify(family: str, tmp_path: Path) -> None:
    outputs = []
    for first in (True, False):
        model: Any = twin(family).build()
        file = as_diffusers(tmp_path / "lora.safetensors", model, random_updates(model))
        pipe = Pipe(model)
        if first:
            load_lora(pipe, file)
        with sparsify(model, Radial(density=1.0)) as run:
            if not first:
                load_lora(pipe, file)
            outputs.append(twin(family).outputs(model))
            assert run.report().sparse_calls
        unload_lora(pipe)
    assert all(torch.equal(outputs[0][name], outputs[1][name]) for name in outputs[0])


# In single blocks of HunyuanVideo a file has the feed-forward with the queries, whose size the twin makes unusual.
SUBSETS = {"one block": r"blocks\.1\.", "queries alone": r"^(?!single_).*to_q", "feed-forward alone": r"\.ff"}


@pytest.mark.parametrize("form", ["comfy", "musubi", "diffusers"])
@pytest.mark.parametrize("part", SUBSETS)
@pytest.mark.parametrize(
    "family", ["WanTransformer3DModel", "HunyuanVideoTransformer3DModel", "MochiTransformer3DModel"]
)
def test_any_subset_of_layers(family: str, part: str, form: str, tmp_path: Path) -> None:
    model = twin(family).build()
    updates = random_updates(model, lambda layer: re.search(SUBSETS[part], layer) is not None)
    exact, tolerance = expected_outputs(family, updates)
    file = {**IN_DIFFUSERS, **IN_ORIGINAL}[form](tmp_path / "part.safetensors", model, updates)
    load_lora(Pipe(model), file)
    assert furthest(twin(family).outputs(model), exact) <= tolerance


def test_names_of_diffsynth(tmp_path: Path) -> None:
    model = twin("WanTransformer3DModel").build()
    updates = random_updates(model)
    exact, tolerance = expected_outputs("WanTransformer3DModel", updates)
    file = as_diffsynth(tmp_path / "lora.safetensors", model, updates)
    assert "blocks.0.self_attn.q.lora_A.default.weight" in load_file(file)
    load_lora(Pipe(model), file)
    assert furthest(twin("WanTransformer3DModel").outputs(model), exact) <= tolerance


@pytest.mark.parametrize("family", ADAPTERS)
def test_no_name_means_two_layers(family: str) -> None:
    model = twin(family).build()
    names = names_in(model)
    forms: dict[str, set[str]] = {}
    for layer in names.layers:
        for name in (layer, names.original.name(layer)):
            for form in (name, name.replace(".", "_")):
                forms.setdefault(form, set()).add(names.original.name(layer))
    assert {form: layers for form, layers in forms.items() if len(layers) > 1} == {}


def test_the_documentation_says_what_loads() -> None:
    rows = []
    for name in ADAPTERS:
        no_lora, family = name not in FAMILIES, twin(name).adapter.family
        original = "no" if no_lora else "yes" if name in ORIGINALS else "not known"
        rows.append(f"| {family} | `{name}` | {'no' if no_lora else 'yes'} | {original} |")
    page = (Path(__file__).parents[2] / "docs/loras.md").read_text(encoding="utf-8")
    assert [line for line in page.splitlines() if "Transformer" in line and line.startswith("| ")] == rows
