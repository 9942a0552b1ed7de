"""A LoRA of one model that ships is not loaded into the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import peft
import pytest
from command_line import PROMPT, refused, vidsparse_in_a_folder
from needs import needs_weights

from vidsparse import LoraRecipe, Radial, load_lora, save_lora
from vidsparse.cli.request import Request
from vidsparse.finetune import Settings
from vidsparse.finetune.start import start_weights
from vidsparse.lora.base import base_in, check_base
from vidsparse.lora.files import HEADER, read_recipe
from vidsparse.shapes.model import build_transformer, load_pipeline
from vidsparse.shapes.shipped import SHIPPED

vidsparse = pytest.fixture(vidsparse_in_a_folder)
SAYS = r"was trained on shapes-64, and shapes is another model; take --model shapes-64, in Python load_pipeline\("


def of_base(folder: Path, base: str | None) -> str:
    """A LoRA with the layers of both models."""
    transformer = build_transformer()
    transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    save_lora(folder, transformer, LoraRecipe(base=base))
    return str(folder)


def test_only_models_that_ship_contradict_each_other() -> None:
    with pytest.raises(ValueError, match=f"^the LoRA style {SAYS}"):
        check_base("style", "shapes-64", "shapes")
    for base, model in (
        (None, "shapes"),
        ("mine", "shapes"),
        ("shapes", None),
        ("shapes", "a/b"),
        ("shapes", "shapes"),
    ):
        check_base("style", base, model)


def test_the_lora_that_ships_names_its_base() -> None:
    assert read_recipe("shapes-long").base in SHIPPED and read_recipe("shapes-long").base != "shapes"


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


@needs_weights
def test_a_pipeline_takes_the_loras_of_its_model_alone(tmp_path: Path) -> None:
    pipe = load_pipeline()
    before = pipe.transformer.blocks[0].attn1.to_q
    with pytest.raises(ValueError, match=SAYS):
        load_lora(pipe, "shapes-long")
    with pytest.raises(ValueError, match=SAYS):
        start_weights(pipe.transformer, Settings(Radial(0.2)), "shapes-long")
    assert pipe.transformer.blocks[0].attn1.to_q is before, "nothing was changed"
    load_lora(pipe, of_base(tmp_path / "own", "shapes"))
    load_lora(pipe, of_base(tmp_path / "other", "somebody/else"))
    load_lora(pipe, of_base(tmp_path / "unknown", None))
    assert len(pipe.get_active_adapters()) == 3
    assert load_lora(load_pipeline(model="shapes-64"), "shapes-long").base == "shapes-64"


@pytest.mark.parametrize(
    ("loras", "model", "expected"),
    [
        ([], "", "shapes"),
        (["shapes-64"], "", "shapes-64"),
        (["owner/name"], "", "shapes"),
        (["owner/name", "shapes-64"], "", "shapes-64"),
        ([None], "", "shapes"),
        (["owner/name"], "shapes-64", "shapes-64"),
        (["shapes-64"], "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
    ],
)
def test_a_request_without_a_model_takes_that_of_its_lora(
    loras: list[str | None], model: str, expected: str, tmp_path: Path
) -> None:
    sources = [of_base(tmp_path / str(i), base) for i, base in enumerate(loras)]
    assert Request(PROMPT, model=model, lora=sources).model == expected


def test_a_lora_that_cannot_be_read_is_refused_by_the_checks(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_text("no LoRA")
    request = Request(PROMPT, lora=[str(tmp_path / "broken.safetensors")])
    assert request.model == "shapes"
    with pytest.raises(ValueError, match="broken"):
        request.checked()


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["run", "dry-run"])
def test_a_model_that_contradicts_the_lora_is_refused(vidsparse: Any, more: list[str]) -> None:
    done = vidsparse("generate", PROMPT, "--model", "shapes", "--lora", "shapes-long", *more)
    refused(done, "the LoRA shapes-long was trained on shapes-64, and shapes is another model; take --model shapes-64")


@needs_weights
def test_the_lora_that_ships_brings_its_model(vidsparse: Any) -> None:
    small = ["--frames", 5, "--steps", 2, "--dense-steps", 1, "--scale", 1]
    done = vidsparse("generate", PROMPT, "--lora", "shapes-long", *small, "-o", "a.mp4", "--report", "a.json")
    assert done.code == 0, done.err
    assert "shapes-64 on cpu" in done.err
    report = json.loads(Path("a.json").read_text())
    assert report["request"]["model"] == "shapes-64"
    assert imageio.imread("a.mp4", plugin="FFMPEG").shape == (5, 64, 64, 3)


def test_what_is_saved_is_what_was_given(vidsparse: Any) -> None:
    done = vidsparse("generate", PROMPT, "--lora", "shapes-long", "--dry-run", "--save-config", "c.yaml")
    assert done.code == 0 and "model" not in Path("c.yaml").read_text(), done.err
