"""The command line: what it writes, and one line and nothing else for what it cannot do."""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import peft
import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanPipeline
from PIL import Image

import vidsparse as library
from vidsparse import (
    Dense,
    ExactBlocks,
    Gridded,
    GriddedHeads,
    HeadModes,
    LoraRecipe,
    MixtureOfBlocks,
    Pattern,
    PooledComplement,
    Radial,
    RadialRaster,
    Reuse,
    SlidingTile,
    SpatialTemporal,
    StepSchedule,
    TopBlocks,
)
from vidsparse.cli import app, sampling
from vidsparse.cli.compare import similarity
from vidsparse.cli.patterns import PATTERNS, build_pattern, change_pattern, name_of
from vidsparse.cli.request import Request
from vidsparse.cli.video import side_by_side, to_pixels, write_video
from vidsparse.replacing import replacing
from vidsparse.shapes import model as shapes

ROOT = Path(__file__).parents[1]
PROMPT = "a red circle moving left on a blue background"
needs_weights = pytest.mark.skipif(
    not (shapes.FOLDER / "model_index.json").is_file(), reason="the shapes weights are not there"
)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def vidsparse(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as stop:
            app([str(a) for a in arguments], prog_name="vidsparse")
        code = stop.value.code
        return Outcome(code if isinstance(code, int) else 0, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random two-layer pipeline."""
    folder = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
        WanPipeline(
            tokenizer=shapes.build_tokenizer(),
            text_encoder=shapes.build_text_encoder(),
            transformer=shapes.build_transformer(num_layers=2),
            vae=shapes.build_vae(),
            scheduler=scheduler,
        ).save_pretrained(folder)
    return folder


@pytest.fixture
def small(tiny: Path) -> list[str]:
    """Options for a sample that takes a second."""
    return [
        "--model",
        str(tiny),
        "--frames",
        "9",
        "--height",
        "32",
        "--width",
        "48",
        "--steps",
        "2",
        "--dense-steps",
        "1",
    ]


def test_generate_writes_a_video_and_a_report(vidsparse: Any, small: list[str]) -> None:
    done = vidsparse("generate", PROMPT, *small, "-o", "a.mp4", "--report", "a.json", "--fps", 10)
    assert done.code == 0, done.err
    assert "wrote a.mp4 and a.json" in done.out
    assert sorted(os.listdir()) == ["a.json", "a.mp4"]
    video = imageio.imread("a.mp4", plugin="FFMPEG")
    assert video.shape == (9, 4 * 32, 4 * 48, 3), "small videos are shown four times as large"
    assert imageio.immeta("a.mp4", plugin="FFMPEG")["fps"] == 10
    report = json.loads(Path("a.json").read_text())
    assert report["request"]["prompt"] == PROMPT
    assert report["judge"] is None, "only shapes has a judge"
    # Two steps of two layers, each with and without the prompt; the first step is dense.
    assert (report["attention"]["sparse_calls"], report["attention"]["dense_calls"]) == (4, 4)
    assert report["seconds"]["total"] >= report["seconds"]["denoising"] >= report["seconds"]["attention"] > 0


def test_generate_is_reproducible(vidsparse: Any, small: list[str]) -> None:
    for name, seed in (("a.mp4", 3), ("b.mp4", 3), ("c.mp4", 4)):
        assert vidsparse("generate", PROMPT, *small, "-o", name, "--seed", seed, "--scale", 1).code == 0
    a, b, c = (imageio.imread(name, plugin="FFMPEG") for name in ("a.mp4", "b.mp4", "c.mp4"))
    assert a.shape == (9, 32, 48, 3)
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_frames_that_do_not_fit_are_replaced_with_a_note(vidsparse: Any, small: list[str]) -> None:
    done = vidsparse("generate", PROMPT, *small, "--frames", 6, "-o", "a.mp4")
    assert done.code == 0, done.err
    assert "note: 6 frames do not fit the VAE's stride of 4 in time: legal are 1, 5, 9, ...; using 5" in done.err
    assert len(imageio.imread("a.mp4", plugin="FFMPEG")) == 5


@pytest.mark.parametrize(
    ("frames", "stride", "used"), [(33, 4, 33), (34, 4, 33), (35, 4, 33), (36, 4, 37), (2, 4, 1), (10, 8, 9), (7, 1, 7)]
)
def test_nearest_legal_frames(frames: int, stride: int, used: int) -> None:
    assert sampling.fit_frames(frames, stride) == used


def test_compare_writes_all_that_is_asked_for(vidsparse: Any, small: list[str]) -> None:
    files = ["--dense-output", "d.mp4", "--sparse-output", "s.mp4", "--strip", "s.png", "--json", "c.json"]
    done = vidsparse("compare", PROMPT, *small, "-o", "both.mp4", *files)
    assert done.code == 0, done.err
    assert sorted(os.listdir()) == ["both.mp4", "c.json", "d.mp4", "s.mp4", "s.png"]
    both, dense = (imageio.imread(name, plugin="FFMPEG") for name in ("both.mp4", "d.mp4"))
    assert both.shape[:1] == dense.shape[:1] and both.shape[2] == 2 * dense.shape[2] + 4
    with Image.open("s.png") as strip:
        assert strip.width > 9 * 128
    result = json.loads(Path("c.json").read_text())
    assert 0 < result["sparse"]["density"] < 1
    assert result["psnr"] > 10 and 0 < result["ssim"] <= 1
    for clock, ratio in result["speedup"].items():
        assert ratio == pytest.approx(result["dense"][clock] / result["sparse"][clock])
    assert "PSNR to dense" in done.out


def test_compare_prints_json_and_nothing_else(vidsparse: Any, small: list[str]) -> None:
    done = vidsparse("compare", PROMPT, *small, "--frames", 6, "--pattern", "dense", "-o", "both.mp4", "--json", "-")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["psnr"] is None and result["ssim"] == pytest.approx(1), "dense and dense are identical"
    assert result["frames"] == 5 and "using 5" in done.err
    assert os.listdir() == ["both.mp4"]


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
    assert (report["request"]["lora"], report["lora"]["frames"]) == (str(lora), 5)
    # Two branches of two steps of six layers; the first step and the first layer are dense.
    assert (report["attention"]["sparse_calls"], report["attention"]["dense_calls"]) == (10, 14)
    assert imageio.imread("a.mp4", plugin="FFMPEG").shape[0] == 5


@needs_weights
def test_compare_runs_both_with_the_lora(vidsparse: Any, lora: Path) -> None:
    size = ["--frames", 9, "--height", 32, "--width", 32, "--steps", 2]
    files = ["--dense-output", "dense.mp4", "--json", "c.json"]
    done = vidsparse("compare", PROMPT, "--lora", lora, *size, *files, "-o", "both.mp4", "--dense-steps", 0)
    assert done.code == 0, done.err
    result, text = json.loads(Path("c.json").read_text()), re.sub(r"\s+", " ", done.out)
    assert result["frames"] == 9, "what is given goes before what the LoRA was trained with"
    assert result["sparse"]["sparse_calls"] == 20 and result["psnr"] is not None
    assert result["lora"]["name"] == str(lora) and "dense and radial, density" in text and "both with LoRA" in text
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
    request = Request(PROMPT, lora=str(lora), **given)
    assert request.build_pattern() == expected
    assert request.build_correction() == RECIPE.correction
    assert Request(PROMPT, lora=str(lora), correction="none").build_correction() is None


def test_without_a_lora_the_defaults_are_those_of_the_help() -> None:
    request = Request(PROMPT)
    assert request.build_pattern() == StepSchedule(Radial(density=0.3), dense_steps=4)
    assert request.build_correction() is None and request.recipe == LoraRecipe()


def test_a_lora_of_a_pattern_without_a_schedule_runs_without_one(tmp_path: Path) -> None:
    (transformer := shapes.build_transformer(num_layers=1)).add_adapter(peft.LoraConfig(target_modules=["to_q"]))
    library.save_lora(tmp_path, transformer, LoraRecipe(pattern=Reuse(TopBlocks(density=0.2))))
    assert Request(PROMPT, lora=str(tmp_path)).build_pattern() == Reuse(TopBlocks(density=0.2))
    assert Request(PROMPT, lora=str(tmp_path), density=0.1).build_pattern() == Reuse(TopBlocks(density=0.1))


def test_patterns_are_changed_as_they_are_built() -> None:
    assert change_pattern(SlidingTile(), settings=["window=3,8,8"]) == SlidingTile(window=(3, 8, 8))
    heads = GriddedHeads((Gridded(),))
    assert (name_of(heads), name_of(StepSchedule(Radial(0.1), 4))) == ("GriddedHeads", "radial")
    for pattern, density, settings, says in (
        (heads, 0.2, [], "pattern 'GriddedHeads' takes no --density; --set takes heads"),
        (Radial(decay=1.0), 0.2, [], r"give one of density=0\.2 and decay=1\.0"),
        (Radial(0.2), None, ["window=3"], "pattern 'radial' has no window"),
        (Radial(0.2), None, ["density=much"], "pattern 'radial' with {'density': 'much'}"),
    ):
        with pytest.raises(ValueError, match=says):
            change_pattern(pattern, density, settings)


@pytest.mark.parametrize("pattern", ["dense", "radial", "radial-raster", "sliding-tile"])
def test_inspect_shows_and_draws_every_pattern(vidsparse: Any, pattern: str) -> None:
    size = ["--frames", 17, "--height", 240, "--width", 400]
    done = vidsparse("inspect", *size, "--pattern", pattern, "--png", "map.png")
    assert done.code == 0, done.err
    assert "5x15x25 (latent frames x height x width), 1,875 tokens" in done.out
    assert re.search(r"attention FLOPs +72 GFLOP dense", done.out)  # 4 x 1875^2 x 40 x 128
    assert os.listdir() == ["map.png"]
    with Image.open("map.png") as picture:
        colours = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)
    assert picture.width > 1000 and len(colours) > 50


def test_inspect_takes_other_heads_and_notes_odd_sizes(vidsparse: Any) -> None:
    size = ["--model-family", "shapes", "--frames", 35, "--height", 66, "--width", 64]
    done = vidsparse("inspect", *size, "--heads", 1, "--head-dim", 250, "--density", 0.5)
    assert done.code == 0, done.err
    assert "9x16x16" in done.out and "5.31 GFLOP dense" in done.out
    assert "using 33" in done.err and "using 64x64" in done.err


def test_patterns_lists_every_pattern(vidsparse: Any) -> None:
    done = vidsparse("patterns")
    assert done.code == 0, done.err
    for word in (*PATTERNS, "2506.19852", "density=0.3", "window=9,24,24"):
        assert word in done.out


@pytest.mark.parametrize(
    ("name", "density", "settings", "expected"),
    [
        ("radial", None, [], Radial(density=0.3)),
        ("radial", 0.2, ["sink=False", "tile=1,8,8"], Radial(density=0.2, sink=False, tile=(1, 8, 8))),
        ("radial", None, ["decay=1.0"], Radial(decay=1.0)),
        ("radial-raster", None, ["adjacent=half"], RadialRaster(adjacent="half")),
        ("reuse", 0.4, ["refresh_every=5"], Reuse(ExactBlocks(ratio=0.4), refresh_every=5)),
        ("reuse", None, ["pattern=top-blocks"], Reuse(TopBlocks(density=0.3))),
        ("mixture-of-blocks", None, [], MixtureOfBlocks.training_free()),
        ("mixture-of-blocks", None, ["threshold=0.25"], MixtureOfBlocks.trained()),
        ("spatial-temporal", None, ["density=None", "frames=1", "radius=4"], SpatialTemporal(None, 1, 4)),
        ("top-blocks", None, ["top_p=0.9"], TopBlocks(top_p=0.9)),
    ],
)
def test_a_pattern_is_built_from_words(
    name: str, density: float | None, settings: list[str], expected: Pattern
) -> None:
    assert build_pattern(name, density, settings) == expected


def test_every_pattern_has_a_name_and_its_defaults_are_legal(tmp_path: Path) -> None:
    classes = {getattr(library, entry.cls) for entry in PATTERNS.values()}
    public = {getattr(library, name) for name in library.__all__}
    concrete = {p for p in public if isinstance(p, type) and issubclass(p, Pattern) and not inspect.isabstract(p)}
    assert classes == concrete - {StepSchedule, GriddedHeads}
    HeadModes(((("full", "temporal"),) * 2,)).to_json(tmp_path / "table.json")
    for name, entry in PATTERNS.items():
        settings = [f"table={tmp_path}/table.json"] if name == "head-modes" else []
        assert type(build_pattern(name, None, settings)) is getattr(library, entry.cls)


# Arguments after the prompt -> what the one line says. None of these may load a model.
REFUSED: dict[str, tuple[list[str], str]] = {
    "unknown pattern": (["--pattern", "spiral"], "choose one of dense, exact-blocks, gridded"),
    "density 0": (["--density", "0"], "must be in (0, 1]"),
    "density over 1": (["--density", "1.5"], "must be in (0, 1]"),
    "density of a window": (
        ["--pattern", "sliding-tile", "--density", "0.3"],
        "takes no --density; --set takes window",
    ),
    "window of dense": (["--pattern", "dense", "--set", "window=1,2,3"], "has no window; --set takes tile"),
    "density and decay": (["--density", "0.3", "--set", "decay=1"], "give one of density=0.3 and decay=1"),
    "short window": (["--pattern", "sliding-tile", "--set", "window=9,24"], "must be a tuple of three whole numbers"),
    "a field without a value": (["--set", "sink"], "must be NAME=VALUE, such as window=9,24,24"),
    "a word for a number": (["--set", "density=much"], "pattern 'radial' with {'density': 'much'}"),
    "unknown correction": (["--correction", "glasses"], "choose one of none, pooled-complement"),
    "no table": (["--pattern", "head-modes"], "no file FILE.json"),
    "dense layers": (["--dense-layers", "first"], "must be whole numbers with commas"),
    "unknown LoRA": (["--lora", "shapes-short"], "it is no file or folder here, nor a Hub id such as owner/name"),
    "folder without a LoRA": (["--lora", "."], "holds no LoRA: there is no file of safetensors"),
    "unknown model": (["--model", "shape"], "model 'shape' is unknown"),
    "folder without a model": (["--model", "."], "has no model_index.json"),
    "missing folder": (["-o", "missing/a.mp4"], "the folder missing does not exist"),
    "a directory": (["-o", "."], "it is a directory"),
    "a device": (["-o", "/dev/null"], "it is a device or a pipe"),
    "sink of neither": (["--set", "sink=maybe"], "--set sink=maybe must be true or false"),
    "other format": (["-o", "a.avi"], "must end in .mp4"),
    "no leave to write": (["-o", "/proc/a.mp4"], "cannot write /proc/a.mp4"),
    "unknown device": (["--device", "abacus"], "device 'abacus' is not available"),
    "unknown dtype": (["--dtype", "int4"], "dtype 'int4' is unknown"),
    "offload from the CPU": (["--device", "cpu", "--offload"], "the device is the CPU"),
}


@pytest.mark.parametrize(("text", "value"), [("false", False), ("False", False), ("no", False), ("1", True)], ids=str)
def test_a_truth_may_be_written_as_a_word(text: str, value: bool) -> None:
    assert build_pattern("radial", 0.3, [f"sink={text}"]) == Radial(density=0.3, sink=value)


def test_similarity() -> None:
    rng = np.random.default_rng(0)
    first = rng.random((3, 16, 20, 3), dtype=np.float32)
    assert similarity(first, first) == (None, 1.0)
    second = first.copy()
    second[1] = second[1] * 0.5
    psnr, ssim = similarity(first, second)
    assert psnr == pytest.approx(-10 * np.log10(((first - second) ** 2).mean()), rel=1e-4)
    alone = [similarity(first[i : i + 1], second[i : i + 1])[1] for i in range(3)]
    assert ssim == pytest.approx(sum(alone) / 3) and alone[0] == 1.0 > alone[1]


def test_a_video_of_nan_is_no_video(vidsparse: Any, small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    decode = WanPipeline.__call__

    def broken(*arguments: Any, **settings: Any) -> Any:
        out = decode(*arguments, **settings)
        out.frames[0][1] = np.nan
        return out

    monkeypatch.setattr(WanPipeline, "__call__", functools.wraps(decode)(broken))
    refused(vidsparse("generate", PROMPT, *small), "holds numbers that are not finite; try another --dtype")


def test_an_output_that_is_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.json").symlink_to("folder/report.json")
    with replacing(tmp_path / "link.json") as temporary:
        temporary.write_text("{}")
    assert (tmp_path / "link.json").is_symlink() and (tmp_path / "folder/report.json").read_text() == "{}"


@pytest.mark.parametrize("index", ["{}", '{"_class_name": "NopePipeline"}'], ids=["empty", "unknown"])
def test_a_model_folder_that_says_nothing(vidsparse: Any, tmp_path_factory: pytest.TempPathFactory, index: str) -> None:
    folder = tmp_path_factory.mktemp("model")
    (folder / "model_index.json").write_text(index)
    refused(vidsparse("generate", PROMPT, "--model", folder), "cannot load model")


@pytest.mark.parametrize("command", ["generate", "compare"])
@pytest.mark.parametrize(("arguments", "says"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_in_one_line_before_the_model_is_loaded(
    vidsparse: Any, monkeypatch: pytest.MonkeyPatch, command: str, arguments: list[str], says: str
) -> None:
    monkeypatch.setattr(sampling, "_load", lambda *_: pytest.fail("the model was loaded"))
    refused(vidsparse(command, PROMPT, *arguments), says)


@pytest.mark.parametrize(
    ("prompt", "arguments", "says"),
    [
        ("  ", [], "the prompt is empty"),
        ("  ", ["--model", "."], "the prompt is empty"),
        ("a red dog moving left on a blue background", [], "does not know 'dog'"),
        (PROMPT, ["--report", "missing/r.json"], "the folder missing does not exist"),
        (PROMPT, ["-o", "a.mp4", "--report", "./a.mp4"], "two outputs would both be"),
    ],
    ids=["empty", "empty for another model", "unknown word", "report folder", "one name twice"],
)
def test_bad_prompts_and_reports(
    vidsparse: Any, monkeypatch: pytest.MonkeyPatch, prompt: str, arguments: list[str], says: str
) -> None:
    monkeypatch.setattr(sampling, "_load", lambda *_: pytest.fail("the model was loaded"))
    refused(vidsparse("generate", prompt, *arguments), says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--impl", "magic"], "impl='magic' is unknown"),
        (["--height", "40"], "divisible by 16"),
        (["--model", "nobody/nothing"], "cannot load model 'nobody/nothing'"),
        (["--lora", "nobody/nothing"], "no LoRA 'nobody/nothing': it is no folder here, and the Hub says"),
    ],
    ids=["impl", "height", "hub id", "LoRA"],
)
def test_errors_of_the_libraries_are_one_line(
    vidsparse: Any, small: list[str], arguments: list[str], says: str
) -> None:
    refused(vidsparse("generate", PROMPT, *small, *arguments), says)


def test_a_lora_of_another_model_is_refused(vidsparse: Any, small: list[str], lora: Path) -> None:
    refused(vidsparse("generate", PROMPT, *small, "--lora", lora), "was made for another model: it changes blocks.")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model-family", "cinema"], "choose one of shapes, wan, wan-5b"),
        (["--height", "8"], "smaller than one token"),
        (["--png", "missing/map.png"], "the folder missing does not exist"),
        (["--pattern", "spiral"], "is unknown"),
    ],
    ids=["family", "tiny frame", "folder", "pattern"],
)
def test_inspect_refuses_bad_input(vidsparse: Any, arguments: list[str], says: str) -> None:
    refused(vidsparse("inspect", *arguments), says)


TINY_GRID = ("--frames", 9, "--height", 128, "--width", 144, "--heads", 1, "--head-dim", 16, "--device", "cpu")


def test_bench_times_dense_and_sparse(vidsparse: Any) -> None:
    done = vidsparse("bench", *TINY_GRID, "--dtype", "float32", "--json")
    result = json.loads(done.out)
    assert result["tokens"] == 3 * 8 * 9 and result["impl"] == "cpu" and result["dense"] == "sdpa"
    assert result["R"] == pytest.approx(result["sparse_seconds"] / result["dense_seconds"] / result["density"])
    lines = vidsparse("bench", *TINY_GRID, "--impl", "reference", "--density", 0.5).out.splitlines()
    assert lines[0].startswith("Radial(density=0.5") and "216 tokens, 1 heads of 16, bfloat16 on cpu" in lines[0]
    assert "impl reference" in lines[2] and "R = " in lines[3]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--tune", "--device", "cpu"], "times launches on a GPU, but the device is cpu"),
        (["--impl", "magic"], "impl='magic' is unknown"),
        (["--dtype", "int8"], "choose one of float32, float16, bfloat16"),
        (["--model-family", "cinema"], "choose one of shapes, wan, wan-5b"),
        (["--pattern", "spiral"], "is unknown"),
    ],
    ids=["tune", "impl", "dtype", "family", "pattern"],
)
def test_bench_refuses_bad_input(vidsparse: Any, arguments: list[str], says: str) -> None:
    refused(vidsparse("bench", *arguments), says)


def refused(done: Outcome, says: str) -> None:
    """Exit code 1, one line that says why, and no file."""
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.code == 1 and len(errors) == 1 and says in errors[0], done
    assert "Traceback" not in done.err and not done.out
    assert os.listdir() == [], "nothing is left behind"


@pytest.mark.parametrize("arguments", [["--frames", "0"], ["--steps", "many"], ["--no-such-option"]], ids=" ".join)
def test_usage_errors_exit_with_two(vidsparse: Any, arguments: list[str]) -> None:
    assert vidsparse("generate", PROMPT, *arguments).code == 2


def test_traceback_shows_where_an_error_comes_from(vidsparse: Any) -> None:
    with pytest.raises(ValueError, match="spiral"):
        app(["--traceback", "inspect", "--pattern", "spiral"])


@pytest.mark.parametrize("command", ["generate", "compare"])
def test_interrupt_restores_the_pipeline_and_leaves_nothing(
    vidsparse: Any, small: list[str], tiny: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    pipe = WanPipeline.from_pretrained(tiny)
    processors = dict(pipe.transformer.attn_processors)
    calls = []

    def interrupt(*_: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    pipe.transformer.register_forward_hook(interrupt)
    monkeypatch.setattr(sampling, "_load", lambda *_: pipe)
    done = vidsparse(command, PROMPT, *small, "-o", "a.mp4")
    assert done.code == 130 and "interrupted" in done.err.splitlines()
    assert os.listdir() == []
    assert all(pipe.transformer.attn_processors[name] is processor for name, processor in processors.items())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.mp4"]


def test_written_colours_are_those_of_the_frames(tmp_path: Path) -> None:
    frames = np.zeros((5, 16, 16, 3), np.float32)
    frames[:, :8, :, 0], frames[:, 8:, :, 2] = 0.9, 0.6
    pixels = to_pixels(frames, 4)
    write_video(tmp_path / "a.mp4", side_by_side(pixels, pixels, ("one", "two")), fps=12)
    read = imageio.imread(tmp_path / "a.mp4", plugin="FFMPEG").astype(float)
    assert read.shape == (5, 24 + 64, 64 + 4 + 64, 3)
    for left in (4, 64 + 4 + 4):
        inner = read[:, 24 + 4 : 24 + 28, left : left + 56], read[:, 24 + 36 : 24 + 60, left : left + 56]
        for part, colour in zip(inner, ((230, 0, 0), (0, 0, 153)), strict=True):
            assert np.abs(part - colour).max() < 12


@needs_weights
def test_shapes_end_to_end(vidsparse: Any) -> None:
    done = vidsparse("generate", PROMPT, "--density", 0.3, "--report", "r.json")
    assert done.code == 0, done.err
    report = json.loads(Path("r.json").read_text())
    assert report["judge"]["colour"] == report["judge"]["background"] == report["judge"]["motion"] == 1, report["judge"]
    assert report["judge"]["mean"] >= 0.75, report["judge"]
    assert report["attention"]["density"] == pytest.approx(0.3, abs=0.02)
    assert imageio.imread("out.mp4", plugin="FFMPEG").shape == (33, 256, 256, 3)


@needs_weights
def test_demo_writes_everything(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples/demo.py"), "--fast", "--out", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    files = ["comparison.json", "dense.mp4", "side_by_side.mp4", "sparse.mp4", "strip.png"]
    assert sorted(os.listdir(tmp_path / "demo")) == files
    assert "PSNR to dense" in done.stdout
