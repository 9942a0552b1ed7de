"""A LoRA of another model is not loaded into the one that ships, whose layers may have the same shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from command_line import PROMPT, refused, vidsparse_in_a_folder
from diffusers import WanPipeline
from needs import needs_weights
from tiny_lora import add_lora

from vidsparse import LoraRecipe, Radial, load_lora, save_lora
from vidsparse.finetune import Settings
from vidsparse.finetune.start import start_weights
from vidsparse.lora.base import base_in
from vidsparse.lora.files import HEADER
from vidsparse.shapes.model import build_transformer, load_pipeline
from vidsparse.shapes.shipped import FOLDER

vidsparse = pytest.fixture(vidsparse_in_a_folder)
SAYS = "was trained on shapes-64, and shapes is another model; load it into shapes-64, or leave the LoRA out"


def of_base(folder: Path, base: str | None) -> str:
    """A LoRA with layers of the shapes that those of `shapes` have."""
    transformer = build_transformer(num_layers=1)
    add_lora(transformer)
    save_lora(folder, transformer, LoraRecipe(base=base))
    return str(folder)


@needs_weights
def test_the_model_that_ships_takes_its_own_loras_alone(tmp_path: Path) -> None:
    pipe, other = load_pipeline(), of_base(tmp_path / "other", "shapes-64")
    before = pipe.transformer_2.blocks[0].attn1.to_q
    with pytest.raises(ValueError, match=SAYS):
        load_lora(pipe, other, transformer="transformer_2")
    with pytest.raises(ValueError, match=SAYS):
        start_weights(pipe.transformer_2, Settings(Radial(0.2)), other)
    assert pipe.transformer_2.blocks[0].attn1.to_q is before, "nothing was changed"
    for i, base in enumerate(("shapes", str(FOLDER), None)):
        load_lora(pipe, of_base(tmp_path / str(i), base), transformer="transformer_2")
    assert len(pipe.transformer_2.peft_config) == 3


@needs_weights
def test_other_models_take_any(tmp_path: Path) -> None:
    pipe = load_pipeline()
    pipe.save_pretrained(tmp_path / "mine")
    load_lora(
        load_pipeline(model=tmp_path / "mine"), of_base(tmp_path / "lora", "shapes-64"), transformer="transformer"
    )


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["run", "dry-run"])
def test_the_command_refuses_it_before_it_loads(
    vidsparse: Any, more: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    lora = of_base(tmp_path_factory.mktemp("other"), "shapes-64")
    with mock.patch.object(WanPipeline, "from_pretrained", side_effect=AssertionError("it loads")):
        refused(vidsparse("generate", PROMPT, "--lora", lora, *more), SAYS)


@pytest.mark.parametrize(
    ("header", "base"),
    [
        ({}, None),
        ({HEADER: "{"}, None),
        ({HEADER: "[]"}, None),
        ({HEADER: json.dumps({"base": 3})}, None),
        ({HEADER: json.dumps({"base": "shapes", "pattern": {"class": "my_patterns:Mine"}})}, "shapes"),
    ],
)
def test_the_base_is_read_where_the_rest_cannot_be(header: dict[str, str], base: str | None) -> None:
    assert base_in(header) == base
