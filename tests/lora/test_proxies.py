"""Learned proxies travel in the header of a LoRA's file, and come and go with the LoRA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from random_proxies import draw_proxies
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_lora import RECIPE, add_lora, call, pipeline

from vidsparse import ProxyTokens, Radial, load_lora, save_lora, sparsify, unload_lora
from vidsparse.lora.convert import convert_lora
from vidsparse.lora.files import read_recipe
from vidsparse.lora.proxies import PROXIES
from vidsparse.runtime.proxies import add_proxies, proxies_in

BARE = Radial(density=0.2, tile=(1, 2, 2))  # sparse in each call
LEARNED = replace(RECIPE, correction=ProxyTokens((1, 2, 2), learned=True))


@pytest.fixture
def lora(tmp_path: Path) -> tuple[Any, Path]:
    """A pipeline with a LoRA and proxies, and their file."""
    torch.manual_seed(0)
    pipe = pipeline()
    add_lora(pipe.transformer)
    for proxies in add_proxies(pipe.transformer, (1, 2, 2)).values():
        for weight in proxies.parameters():
            torch.nn.init.normal_(weight)
    return pipe, save_lora(tmp_path / "lora", pipe, LEARNED, dtype=torch.bfloat16)


def changed(file: Path, to: Path, value: str | None) -> Path:
    """The file with other proxies in its header, or without them."""
    with safe_open(file, "pt") as stored:
        header = dict(stored.metadata())
    header.pop(PROXIES)
    save_file(load_file(file), to, header if value is None else header | {PROXIES: value})
    return to


def weights(transformer: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{layer}.{name}": weight.detach().clone()
        for layer, proxies in proxies_in(transformer).items()
        for name, weight in proxies.named_parameters()
    }


def test_they_come_and_go_with_the_lora(lora: tuple[Any, Path], tmp_path: Path) -> None:
    trained, file = lora
    assert read_recipe(file) == replace(LEARNED, version=read_recipe(file).version)
    pipe = pipeline()
    pipe.transformer.load_state_dict(
        {
            name.replace(".base_layer", ""): weight
            for name, weight in trained.transformer.state_dict().items()
            if ".lora_" not in name and ".proxies." not in name
        }
    )
    before = call(pipe.transformer)
    with pytest.raises(ValueError, match="needs proxies that were learned"):
        sparsify(pipe, LEARNED.pattern, correction=LEARNED.correction)
    # From any copy of the file alone, and from one in the form of diffusers.
    moved = file.rename(tmp_path / "moved.safetensors")
    for source in (moved, convert_lora(moved, tmp_path / "as.safetensors", "diffusers", "wan", note=print)):
        recipe = load_lora(pipe, source)
        found, expected = weights(pipe.transformer), weights(trained.transformer)
        assert found.keys() == expected.keys() and len(found) == 6
        assert all(torch.equal(found[name], expected[name]) for name in found), "float32, whatever the LoRA is in"
        assert not any(weight.requires_grad for x in proxies_in(pipe.transformer).values() for weight in x.parameters())
        with sparsify(pipe, recipe.pattern, correction=recipe.correction):
            call(pipe.transformer)
        with pytest.raises(ValueError, match="has learned proxies already"):
            load_lora(pipe, source)
        assert [*pipe.transformer.peft_config] == ["default_0"] and len(weights(pipe.transformer)) == 6
        unload_lora(pipe)
        assert not proxies_in(pipe.transformer) and torch.equal(call(pipe.transformer), before)


def test_another_lora_brings_its_own_into_an_open_run(lora: tuple[Any, Path], tmp_path: Path) -> None:
    trained, first = lora
    draw_proxies(trained.transformer)
    second, pipe, expected = save_lora(tmp_path / "other", trained, LEARNED), pipeline(), []
    for file in (first, second):
        load_lora(pipe, file)
        with sparsify(pipe, BARE, correction=LEARNED.correction):
            expected.append(call(pipe.transformer))
        if file == first:
            unload_lora(pipe)
    unload_lora(pipe)
    load_lora(pipe, first)
    with sparsify(pipe, BARE, correction=LEARNED.correction):
        assert torch.equal(call(pipe.transformer), expected[0])
        unload_lora(pipe)
        load_lora(pipe, second)
        assert torch.equal(call(pipe.transformer), expected[1]) and not torch.equal(*expected)


def test_diffusers_reads_the_file_without_a_word(lora: tuple[Any, Path], caplog: pytest.LogCaptureFixture) -> None:
    pipe = pipeline()
    pipe.load_lora_weights(lora[1].parent)
    assert pipe.transformer.peft_config and not caplog.records and not proxies_in(pipe.transformer)


def test_a_recipe_of_proxies_that_are_not_there_is_not_saved(lora: tuple[Any, Path], tmp_path: Path) -> None:
    pipe, bare = lora[0], pipeline()
    add_lora(bare.transformer)
    with pytest.raises(ValueError, match="needs proxies that were learned, and WanTransformer3DModel has none"):
        save_lora(tmp_path / "none", bare, LEARNED)
    with pytest.raises(ValueError, match=r"that WanTransformer3DModel has learned, box=\(1, 2, 2\); take ProxyTokens"):
        save_lora(tmp_path / "none", pipe, replace(RECIPE, correction=ProxyTokens((1, 4, 4), learned=True)))
    assert not (tmp_path / "none").exists()


def test_other_programs_have_no_place_for_them(lora: tuple[Any, Path], tmp_path: Path) -> None:
    said: list[str] = []
    convert_lora(lora[1], tmp_path / "out.safetensors", "comfy", "wan", note=said.append)
    assert any("is without pattern, learned proxies, positions and sampler" in text for text in said)


@pytest.mark.parametrize(
    ("value", "message"),
    [(None, f"its header has no {PROXIES}"), ("x!", "cannot be read"), ("AAAA", "cannot be read")],
    ids=["missing", "not-base64", "not-safetensors"],
)
def test_damaged_files(lora: tuple[Any, Path], tmp_path: Path, value: str | None, message: str) -> None:
    pipe = pipeline()
    with pytest.raises(ValueError, match=message):
        load_lora(pipe, changed(lora[1], tmp_path / "other.safetensors", value))
    assert not hasattr(pipe.transformer, "peft_config") and not proxies_in(pipe.transformer)


def test_another_model(lora: tuple[Any, Path], tmp_path: Path) -> None:
    # A LoRA of nothing but layers that both have, so that the proxies alone tell.
    with safe_open(lora[1], "pt") as stored:
        header = dict(stored.metadata())
    first = {name: weight for name, weight in load_file(lora[1]).items() if ".blocks.0." in name}
    save_file(first, tmp_path / "part.safetensors", header)
    larger = pipeline(num_layers=3)
    with pytest.raises(ValueError, match=r"are for another model or other boxes: blocks\.2\.attn1\.key is missing"):
        load_lora(larger, tmp_path / "part.safetensors")
    assert not proxies_in(larger.transformer) and not getattr(larger.transformer, "peft_config", None)
