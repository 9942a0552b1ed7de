"""The command line with a LoRA: it does what the LoRA was trained with, unless it is told otherwise."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import peft
import pytest
import tiny_lora
import torch
from command_line import PROMPT, refused, small_sample, tiny_pipeline, vidsparse_in_a_folder
from needs import needs_weights
from safetensors.torch import load_file, save_file

import vidsparse as library
from vidsparse import (
    Dense,
    LoraRecipe,
    Pattern,
    PooledComplement,
    Radial,
    Reshaped,
    Reuse,
    SlidingClip,
    SlidingTile,
    StepBudget,
    StepSchedule,
    TopBlocks,
    preset,
)
from vidsparse.cli.request import Request
from vidsparse.generation.pipeline import check_loras, load_loras
from vidsparse.lora.source import FILE, find_lora
from vidsparse.shapes import model as shapes

vidsparse = pytest.fixture(vidsparse_in_a_folder)
tiny = pytest.fixture(scope="session")(tiny_pipeline)
small = pytest.fixture(small_sample)
RECIPE = LoraRecipe(
    pattern=StepSchedule(Radial(density=0.4, sink=False), dense_steps=1, dense_layers=(0,)),
    correction=PooledComplement(),
    frames=5,
    trained_frames=33,
    inference_steps=2,
    positions="riflex",
)


@pytest.fixture(scope="session")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a LoRA for shapes that changes its videos."""
    folder, transformer = tmp_path_factory.mktemp("lora"), shapes.build_transformer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["to_v"], init_lora_weights=False))
    library.save_lora(folder, transformer, RECIPE)
    return folder


@needs_weights
def test_generate_does_what_a_lora_was_trained_with(vidsparse: Any, lora: Path) -> None:
    done = vidsparse("generate", PROMPT, "--lora", lora, "-o", "a.mp4", "--report", "a.json")
    assert done.code == 0, done.err
    assert f"{lora}: trained on 5 frames (the model on 33)" in re.sub(r"\s+", " ", done.out)
    report = json.loads(Path("a.json").read_text())
    assert report["attention"]["pattern"] == f"{RECIPE.pattern!r} with {RECIPE.correction!r}"
    assert report["request"]["lora"] == [str(lora)] and report["loras"][str(lora)]["frames"] == 5
    # Two branches of two steps of six layers; the first step and the first layer are dense.
    assert (report["attention"]["sparse_calls"], report["attention"]["dense_calls"]) == (10, 14)
    assert imageio.imread("a.mp4", plugin="FFMPEG").shape[0] == 5


@needs_weights
def test_compare_runs_both_with_the_lora(vidsparse: Any, lora: Path) -> None:
    size = ["--frames", 9, "--height", 32, "--width", 32, "--steps", 2]
    files = ["--dense-output", "dense.mp4", "--json", "c.json"]
    done = vidsparse(
        "compare", PROMPT, "--lora", lora, *size, *files, "-o", "both.mp4", "--dense-steps", 0, "--repeat", 1
    )
    assert done.code == 0, done.err
    result, text = json.loads(Path("c.json").read_text()), re.sub(r"\s+", " ", done.out)
    assert result["frames"] == 9, "what is given goes before what the LoRA was trained with"
    assert result["sparse"]["sparse_calls"] == 20 and result["psnr"] is not None
    assert [*result["loras"]] == [str(lora)] and "dense and radial, density" in text and "both with LoRA" in text
    for name, more in (("with.mp4", ["--lora", lora, "--correction", "none"]), ("without.mp4", [])):
        assert vidsparse("generate", PROMPT, *size, "--pattern", "dense", *more, "-o", name).code == 0
    dense, same, other = (imageio.imread(f"{name}.mp4", plugin="FFMPEG") for name in ("dense", "with", "without"))
    assert np.array_equal(dense, same) and not np.array_equal(dense, other)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, RECIPE.pattern),
        ({"density": 0.5}, StepSchedule(Radial(density=0.5, sink=False), 1, dense_layers=(0,))),
        ({"settings": ["sink=True"]}, StepSchedule(Radial(density=0.4), 1, dense_layers=(0,))),
        ({"dense_steps": 8}, StepSchedule(Radial(density=0.4, sink=False), 8, dense_layers=(0,))),
        ({"dense_steps": 0, "dense_layers": ""}, Radial(density=0.4, sink=False)),
        ({"dense_last_steps": 2}, StepSchedule(Radial(density=0.4, sink=False), 1, 2, (0,))),
        ({"pattern": "radial"}, StepSchedule(Radial(density=0.3), 1, dense_layers=(0,))),
        ({"pattern": "sliding-tile"}, StepSchedule(SlidingTile(), 1, dense_layers=(0,))),
        ({"pattern": "dense"}, Dense()),
    ],
    ids=str,
)
def test_what_is_given_changes_what_the_lora_was_trained_with(
    lora: Path, given: dict[str, Any], expected: Pattern
) -> None:
    request = Request(PROMPT, lora=[str(lora)], **given)
    assert request.build_pattern() == expected
    assert request.build_correction() == RECIPE.correction
    assert Request(PROMPT, lora=[str(lora)], correction="none").build_correction() is None


@pytest.mark.parametrize(("steps", "dense"), [(None, 3), (30, 4), (50, 7), (8, 1), (4, 1), (2, 1), (1, 0)])
@pytest.mark.parametrize("given", [{"pattern": "radial"}, {"density": 0.3}], ids=str)
def test_without_a_lora_a_pattern_has_the_schedule_of_the_help(
    given: dict[str, Any], steps: int | None, dense: int
) -> None:
    request, radial = Request(PROMPT, steps=steps, **given), Radial(density=0.3)
    assert request.build_pattern() == (StepSchedule(radial, dense_steps=dense) if dense else radial)
    assert request.build_correction() is None and request.recipe == LoraRecipe()


SHAPES: Any = preset("shapes").pattern
WAN: Any = preset("wan2.1-1.3b").pattern


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, SHAPES),
        ({"dense_steps": 2}, replace(SHAPES, pattern=replace(SHAPES.pattern, dense_steps=2))),
        ({"correction": "reshaped"}, SHAPES),
        ({"pattern": "sliding-clip", "settings": ["frames=9"]}, SlidingClip(Dense(), 9)),
        (
            {"pattern": "sliding-clip", "settings": ["pattern=radial", "frames=9"], "dense_steps": 2},
            SlidingClip(StepSchedule(Radial(density=0.3), 2), 9),
        ),
        (
            {"preset": "shapes", "budget": 0.5, "dense_steps": 2},
            StepBudget(SHAPES, 0.5, dense_steps=2, dense_last_steps=0),
        ),
        ({"preset": "wan2.1-1.3b", "density": 0.2}, replace(WAN, pattern=Radial(density=0.2))),
        ({"preset": "wan2.2-5b"}, preset("wan2.2-5b").pattern),
        ({"preset": "wan2.2-5b", "correction": "none"}, preset("wan2.2-5b").pattern),
    ],
    ids=str,
)
def test_a_preset_is_changed_by_what_is_given(given: dict[str, Any], expected: Pattern) -> None:
    request = Request(PROMPT, **given)
    assert request.build_pattern() == expected
    corrections = {None: preset(given.get("preset", "shapes")).correction, "reshaped": Reshaped(), "none": None}
    assert request.build_correction() == corrections[given.get("correction")]


def test_a_preset_goes_before_a_lora(lora: Path) -> None:
    assert Request(PROMPT, lora=[str(lora)], preset="shapes").build_pattern() == SHAPES
    with pytest.raises(ValueError, match=r"--preset shapes has a pattern of its own; leave out --pattern radial"):
        Request(PROMPT, preset="shapes", pattern="radial").build_pattern()


def test_a_training_that_has_not_finished_gives_the_lora_of_its_newest_checkpoint(
    lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (9, 100):
        shutil.copytree(lora, tmp_path / f"checkpoints/step-{step:07d}")
    (tmp_path / "checkpoints/step-0000200").mkdir()  # without a LoRA, as earlier versions wrote them
    newest = tmp_path / "checkpoints/step-0000100" / FILE
    assert find_lora(tmp_path) == newest
    assert Request(PROMPT, lora=[str(tmp_path)]).recipe.frames == RECIPE.frames
    assert "has no finished LoRA; the one of its checkpoint step-0000100 is used" in capsys.readouterr().err
    shutil.copy(newest, tmp_path / FILE)
    assert find_lora(tmp_path) == tmp_path / FILE
    assert Request(PROMPT, lora=[str(tmp_path)]).recipe.frames == RECIPE.frames
    assert "checkpoint" not in capsys.readouterr().err


def test_a_lora_of_a_pattern_without_a_schedule_runs_without_one(tmp_path: Path) -> None:
    (transformer := shapes.build_transformer(num_layers=1)).add_adapter(peft.LoraConfig(target_modules=["to_q"]))
    library.save_lora(tmp_path, transformer, LoraRecipe(pattern=Reuse(TopBlocks(density=0.2))))
    assert Request(PROMPT, lora=[str(tmp_path)]).build_pattern() == Reuse(TopBlocks(density=0.2))
    assert Request(PROMPT, lora=[str(tmp_path)], density=0.1).build_pattern() == Reuse(TopBlocks(density=0.1))


@needs_weights
def test_the_first_of_several_loras_that_says_it_decides(lora: Path, tmp_path: Path) -> None:
    transformer = shapes.build_transformer()
    transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    library.save_lora(tmp_path / "style", transformer, LoraRecipe(base="shapes"))
    other = replace(RECIPE, frames=9, trained_frames=9, positions="yarn", sampler="sde", flow_shift=7.0)
    library.save_lora(tmp_path / "other", transformer, other)
    sources = [str(tmp_path / "style"), str(lora), str(tmp_path / "other")]
    request = Request(PROMPT, lora=sources, device="cpu")
    assert (request.recipe.frames, request.recipe.positions) == (5, "riflex")
    pipe, alone = (r.load(r.build_pattern(), None)[0] for r in (request, replace(request, lora=[str(lora)])))
    assert len(pipe.get_active_adapters()) == 3
    assert torch.equal(pipe.transformer.rope.freqs_cos, alone.transformer.rope.freqs_cos)
    assert type(pipe.scheduler) is type(alone.scheduler) and pipe.scheduler.config == alone.scheduler.config


def test_both_experts_have_their_lora(tmp_path: Path) -> None:
    pipe, names = tiny_lora.pipeline(), ("transformer", "transformer_2")
    pipe.register_modules(transformer_2=shapes.build_transformer(num_layers=2))
    expected = []
    for seed, name in enumerate(names):
        tiny_lora.add_lora(expert := getattr(pipe, name), seed=seed)
        library.save_lora(tmp_path / name, pipe, LoraRecipe(transformer=name))
        expected.append(tiny_lora.call(expert))
        expert.delete_adapters("default")
    load_loras(pipe, [str(tmp_path / name) for name in names])
    for name, wanted in zip(names, expected, strict=True):
        torch.testing.assert_close(tiny_lora.call(getattr(pipe, name)), wanted)


@needs_weights
@pytest.mark.parametrize(("given", "lengths"), [({}, (33, 9)), ({"frames": 65, "trained_frames": 17}, (17, 5))])
def test_positions_without_a_lora(given: dict[str, Any], lengths: tuple[int, int]) -> None:
    request = Request(PROMPT, device="cpu", positions="yarn", **({"frames": 129} | given))
    (pipe, _), expected = request.load(request.build_pattern(), request.build_correction()), shapes.build_transformer()
    library.extend_positions(expected, *lengths, "yarn")
    assert torch.equal(pipe.transformer.rope.freqs_cos, expected.rope.freqs_cos)


def test_a_lora_of_another_model_is_refused(vidsparse: Any, small: list[str], lora: Path) -> None:
    refused(vidsparse("generate", PROMPT, *small, "--lora", lora), "was made for another model: it changes blocks.")


def test_an_expert_is_chosen_in_a_word(tmp_path: Path) -> None:
    pipe = tiny_lora.pipeline()
    pipe.register_modules(transformer_2=shapes.build_transformer(num_layers=2))
    tiny_lora.add_lora(pipe.transformer)
    file, before = library.save_lora(tmp_path / "lora", pipe, LoraRecipe()), tiny_lora.call(pipe.transformer)
    save_file(load_file(file), file)
    pipe.transformer.delete_adapters("default")
    with pytest.raises(ValueError, match=r"does not say which .*--lora \S+@transformer or --lora \S+@transformer_2"):
        check_loras([str(file)], ["transformer", "transformer_2"])
    with pytest.raises(ValueError, match=r"is given twice; give it once, with a strength: \S+:2"):
        check_loras([f"{file}@transformer", f"{file}:0.5@transformer"], ["transformer", "transformer_2"])
    check_loras([f"{file}@transformer", f"{file}@transformer_2"], ["transformer", "transformer_2"])
    load_loras(pipe, [f"{file}:3@transformer"])  # alpha is three times the rank, which that file does not say
    torch.testing.assert_close(tiny_lora.call(pipe.transformer), before)


def test_show_and_convert(vidsparse: Any, lora: Path, tmp_path: Path) -> None:
    done = vidsparse("lora", "show", lora)
    assert done.code == 0, done.err
    text = re.sub(r"\s+", " ", done.out)
    for part in ("form diffusers", "family Wan or", "for transformer", "changes 12 layers, in float32", "rank 2"):
        assert part in text, part
    assert "trained on 5 frames (the model on 33)" in text and re.search(r"blocks\.\*\.attn2\.to_v\W+6\W+2\W+8", text)
    done = vidsparse("lora", "convert", lora, "comfy.safetensors", "--format", "comfy")
    assert done.code == 0 and done.out == "wrote comfy.safetensors\n"
    assert "note: comfy.safetensors is without pattern, positions and sampler" in done.err
    assert "diffusion_model.blocks.0.self_attn.v.lora_A.weight" in load_file("comfy.safetensors")
    again = vidsparse("lora", "convert", lora, "comfy.safetensors", "--format", "musubi")
    assert again.code == 1 and "comfy.safetensors is there already" in again.err
    assert vidsparse("lora", "convert", lora, "comfy.safetensors", "--format", "musubi", "--overwrite").code == 0
    assert "musubi-tuner" in vidsparse("lora", "show", "comfy.safetensors").out
    other = vidsparse("lora", "convert", lora, "other.safetensors", "--format", "confy")
    assert other.code == 1 and "the form 'confy' of a LoRA is unknown; choose one of comfy" in other.err
    assert "did you mean shapes-long?" in vidsparse("lora", "show", "shapes-lng").err


def test_show_a_lora_of_no_known_family(vidsparse: Any) -> None:
    sides = {f"a.b.lora_{side}.weight": torch.ones(3, 3) for side in "AB"}
    save_file(sides, "other.safetensors")
    done = vidsparse("lora", "show", "other.safetensors")
    assert done.code == 0 and "unknown: no family has these layers" in done.out and "not said" in done.out


@needs_weights
def test_the_lora_that_ships(vidsparse: Any) -> None:
    options = ["--lora", "shapes-long", "--frames", 5, "--steps", 4, "--scale", 1, "-o", "a.mp4", "--report", "a.json"]
    done = vidsparse("generate", PROMPT, *options)
    assert done.code == 0, done.err
    report = json.loads(Path("a.json").read_text())
    sparse = {call["transformer"] for call in report["attention"]["calls"] if call["impl"] != "dense"}
    assert sparse == {"transformer_2"}, "in so short a video the first expert is dense, as its preset says"
    assert imageio.imread("a.mp4", plugin="FFMPEG").shape == (5, 128, 128, 3)


def test_a_lora_that_cannot_be_read_is_refused_by_the_checks(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_text("no LoRA")
    with pytest.raises(ValueError, match="broken"):
        Request(PROMPT, lora=[str(tmp_path / "broken.safetensors")]).checked()
