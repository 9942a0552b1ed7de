"""The command line refuses what it cannot do: one line that says why, and nothing else."""

from __future__ import annotations

import functools
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import PROMPT, refused, small_sample, tiny_pipeline, vidsparse_in_a_folder
from diffusers import WanPipeline

from vidsparse import HeadModes
from vidsparse.cli import app
from vidsparse.generation.models import Model, Shapes

vidsparse = pytest.fixture(vidsparse_in_a_folder)
tiny = pytest.fixture(scope="session")(tiny_pipeline)
small = pytest.fixture(small_sample)
# Arguments after the prompt -> what the one line says. None of these may load a model.
REFUSED: dict[str, tuple[list[str], str]] = {
    "unknown pattern": (["--pattern", "spiral"], "choose one of dense, exact-blocks, free-swim, gridded"),
    "density 0": (["--density", "0"], "must be in (0, 1]"),
    "density over 1": (["--density", "1.5"], "must be in (0, 1]"),
    "density of a window": (
        ["--pattern", "sliding-tile", "--density", "0.3"],
        "has no density; its fields are window",
    ),
    "window of dense": (["--pattern", "dense", "--set", "window=1,2,3"], "has no window; its fields are tile"),
    "density and decay": (["--density", "0.3", "--set", "decay=1"], "give one of density=0.3 and decay=1"),
    "short window": (["--pattern", "sliding-tile", "--set", "window=9,24"], "must be a tuple of three whole numbers"),
    "a field without a value": (["--set", "sink"], "must be NAME=VALUE, such as window=9,24,24"),
    "a word for a number": (["--set", "density=much"], "density='much' must be in (0, 1]"),
    "unknown correction": (["--correction", "glasses"], "choose one of none, gated-coarse, pooled-complement"),
    "proxies that no LoRA brings": (
        ["--correction", "proxy-tokens learned=true"],
        "needs a LoRA that has learned proxies for this box; none given has",
    ),
    "unknown field of a correction": (["--correction", "reshaped box=1,2,2"], "'reshaped' has no box; its fields are"),
    "no table": (["--pattern", "head-modes"], "table=FILE.json cannot be read: No such file"),
    "no gate": (["--pattern", "learned-gate"], "gate='FOLDER' is neither a file nor a folder: give what vidsparse"),
    "dense layers": (["--dense-layers", "first"], "must be whole numbers with commas"),
    "unknown LoRA": (
        ["--lora", "shapes-short"],
        "it is neither a file or folder here, nor a Hub id such as owner/name",
    ),
    "folder without a LoRA": (["--lora", "."], "holds no LoRA: it has no safetensors file"),
    "unknown model": (["--model", "shape"], "model 'shape' is unknown"),
    "folder without a model": (["--model", "."], "has no model_index.json"),
    "missing folder": (["-o", "missing/a.mp4"], "the folder missing does not exist"),
    "a directory": (["-o", "."], "it is a directory"),
    "a device": (["-o", "/dev/null"], "it is a device or a pipe"),
    "sink of neither": (["--set", "sink=maybe"], "sink=maybe must be true or false"),
    "other format": (["-o", "a.avi"], "must end in .mp4"),
    "no leave to write": (["-o", "/proc/a.mp4"], "cannot write /proc/a.mp4"),
    "unknown positions": (["--positions", "ntk"], "positions 'ntk' is unknown; choose one of plain, riflex, yarn"),
    "unknown device": (["--device", "abacus"], "device 'abacus' is not available"),
    "unknown dtype": (["--dtype", "int4"], "dtype 'int4' is unknown"),
    "offload from the CPU": (["--device", "cpu", "--offload"], "the device is the CPU"),
    "a number for a pattern": (["--pattern", "reuse", "--set", "pattern=3"], "pattern=3 must be the name of a pattern"),
    "a number for a table": (["--pattern", "head-modes", "--set", "table=3"], "table=3 must name a file"),
    "a word for a bias": (["--temporal-bias", "strong"], "--temporal-bias 'strong' must be STRENGTH or STRENGTH,WIDTH"),
    "three numbers for a bias": (["--temporal-bias", "1,2,3"], "must be STRENGTH or STRENGTH,WIDTH, such as 1.5"),
    "a bias below 0": (["--temporal-bias=-1"], "--temporal-bias -1: strength=-1.0 must be a finite number of at least"),
    "a bias without a width": (["--temporal-bias", "1,0"], "width=0.0 must be a finite number greater than 0"),
    "unknown impl": (["--impl", "tritn"], "impl='tritn' is unknown"),
    "impl of another device": (["--impl", "cpu", "--device", "meta"], "impl='cpu' needs tensors on the CPU"),
    "layers that do not exist": (["--dense-layers", "0,99"], "dense_layers [99]"),
    "height of no token": (["--height", "63"], "divisible by 16"),
    "more frames than positions": (["--frames", "200000"], "has positions for 1024 on each axis"),
    "table of another model": (["--pattern", "TABLE"], "the table is for 1 layers of 2 heads"),
}


def never_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Model, Shapes):
        monkeypatch.setattr(kind, "load", lambda *_: pytest.fail("the model was loaded"))


def test_a_video_of_nan_is_no_video(vidsparse: Any, small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    decode = WanPipeline.__call__

    def broken(*arguments: Any, **settings: Any) -> Any:
        out = decode(*arguments, **settings)
        out.frames[0][1] = np.nan
        return out

    monkeypatch.setattr(WanPipeline, "__call__", functools.wraps(decode)(broken))
    refused(vidsparse("generate", PROMPT, *small), "holds values that are not finite; try another dtype")


@pytest.mark.parametrize("index", ["{}", '{"_class_name": "NopePipeline"}'], ids=["empty", "unknown"])
def test_a_model_folder_that_says_nothing(vidsparse: Any, tmp_path_factory: pytest.TempPathFactory, index: str) -> None:
    folder = tmp_path_factory.mktemp("model")
    (folder / "model_index.json").write_text(index)
    refused(vidsparse("generate", PROMPT, "--model", folder), "cannot load model")


@pytest.mark.parametrize("command", ["generate", "compare"])
@pytest.mark.parametrize(("arguments", "says"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_in_one_line_before_the_model_is_loaded(
    vidsparse: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    command: str,
    arguments: list[str],
    says: str,
) -> None:
    never_loads(monkeypatch)
    table = tmp_path_factory.mktemp("table") / "t.json"
    HeadModes(((("full", "temporal"),),)).to_json(table)
    refused(vidsparse(command, PROMPT, *(str(table) if text == "TABLE" else text for text in arguments)), says)


@pytest.mark.parametrize(
    ("prompt", "arguments", "says"),
    [
        ("  ", [], "the prompt is empty"),
        ("  ", ["--model", "nobody/nothing"], "the prompt is empty"),
        ("a red dog moving left on a blue background", [], "does not know 'dog'"),
        ("a red dog moving left on a blue background", [], "For any other prompt give --model, the folder or Hub id"),
        (PROMPT, ["--report", "missing/r.json"], "the folder missing does not exist"),
        (PROMPT, ["-o", "a.mp4", "--report", "./a.mp4"], "two outputs would both be"),
    ],
    ids=["empty", "empty for another model", "unknown word", "another model", "report folder", "one name twice"],
)
def test_bad_prompts_and_reports(
    vidsparse: Any, monkeypatch: pytest.MonkeyPatch, prompt: str, arguments: list[str], says: str
) -> None:
    never_loads(monkeypatch)
    refused(vidsparse("generate", prompt, *arguments), says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--height", "40"], "divisible by 16"),
        (["--model", "nobody/nothing"], "cannot reach huggingface.co, and model_index.json of model 'nobody/nothing'"),
        (["--lora", "nobody/nothing"], "no LoRA 'nobody/nothing': there is no such folder here, and the Hub says"),
    ],
    ids=["height", "hub id", "LoRA"],
)
def test_errors_of_the_libraries_are_one_line(
    vidsparse: Any, small: list[str], arguments: list[str], says: str
) -> None:
    refused(vidsparse("generate", PROMPT, *small, *arguments), says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model-family", "cinema"], "model 'cinema' is unknown; give 'shapes', a folder, a Hub id"),
        (["--model", "nobody/nothing"], "cannot reach huggingface.co"),
        (["--height", "8"], "smaller than one token"),
        (["--frames", "1000000", "--height", "100", "--width", "100"], "times what a block map can hold"),
        (["--pattern", "top-blocks", "--png", "a.png"], "'wan' is only a size; give --model shapes"),
        (["--pattern", "reuse", "--png", "a.png"], "chooses its tiles by content"),
        (["--png", "missing/map.png"], "the folder missing does not exist"),
        (["--pattern", "spiral"], "is unknown"),
    ],
    ids=["family", "hub id", "tiny frame", "huge", "content", "content inside", "folder", "pattern"],
)
def test_inspect_refuses_bad_input(vidsparse: Any, arguments: list[str], says: str) -> None:
    refused(vidsparse("inspect", *arguments), says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--tune", "--device", "cpu"], "times launches on a GPU, but the device is cpu"),
        (["--impl", "magic"], "impl='magic' is unknown"),
        (["--dtype", "int8"], "choose one of float32 (fp32, f32, float), bfloat16"),
        (["--model-family", "cinema"], "model 'cinema' is unknown"),
        (["--pattern", "spiral"], "is unknown"),
        (["--device", "cuda"], "device 'cuda' is not available"),
        (["--device", "abacus"], "device 'abacus' is not available"),
        (["--frames", "1000000"], "times what a block map can hold"),
    ],
    ids=["tune", "impl", "dtype", "family", "pattern", "no cuda", "device", "huge"],
)
def test_bench_refuses_bad_input(vidsparse: Any, arguments: list[str], says: str) -> None:
    refused(vidsparse("bench", *arguments), says)


@pytest.mark.parametrize(
    "arguments",
    [["--frames", "0"], ["--steps", "many"], ["--no-such-option"], ["--seed", "99999999999999999999"]],
    ids=" ".join,
)
def test_usage_errors_exit_with_two(vidsparse: Any, arguments: list[str]) -> None:
    assert vidsparse("generate", PROMPT, *arguments).code == 2


def test_the_version_comes_first(vidsparse: Any) -> None:
    done = vidsparse("--version")
    assert done.code == 0 and done.out.startswith(f"vidsparse {metadata.version('vidsparse')}\ntorch ")
    assert re.search(r"^triton (\d|is not installed)", done.out, re.M)


def test_traceback_shows_where_an_error_comes_from(vidsparse: Any) -> None:
    with pytest.raises(ValueError, match="spiral"):
        app(["--traceback", "inspect", "--pattern", "spiral"])


@pytest.mark.parametrize(
    ("pipeline", "says"),
    [
        ("WanImageToVideoPipeline", "WanImageToVideoPipeline needs --image FILE: what its video starts from"),
        ("WanVideoToVideoPipeline", "WanVideoToVideoPipeline needs --video FILE"),
        ("LTXImageToVideoPipeline", "LTXImageToVideoPipeline needs --image FILE"),
        ("CosmosVideoToWorldPipeline", "CosmosVideoToWorldPipeline needs --image FILE or --video FILE"),
        ("Cosmos2_5_TransferPipeline", "Cosmos2_5_TransferPipeline needs controls, which no option gives"),
        ("Kandinsky5T2IPipeline", "Kandinsky5T2IPipeline makes images"),
        ("Kandinsky5I2IPipeline", "Kandinsky5I2IPipeline makes images"),
    ],
)
def test_pipelines_that_need_more_than_a_prompt_are_refused_before_they_are_loaded(
    vidsparse: Any,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    pipeline: str,
    says: str,
) -> None:
    never_loads(monkeypatch)
    folder = tmp_path_factory.mktemp("model")
    (folder / "model_index.json").write_text(f'{{"_class_name": "{pipeline}"}}')
    refused(vidsparse("generate", PROMPT, "--model", folder, "--frames", 9), says)


@pytest.mark.parametrize("command", ["generate", "compare"])
def test_a_file_in_the_place_of_the_folder_of_videos(
    vidsparse: Any, monkeypatch: pytest.MonkeyPatch, command: str, tmp_path: Path
) -> None:
    never_loads(monkeypatch)
    (tmp_path / "outputs").touch()
    done = vidsparse(command, PROMPT)
    assert done.code == 1 and done.err == "error: cannot write to outputs: it is a file, and a folder is needed\n"


def test_finetune_refuses_a_file_for_its_folder(vidsparse: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("out") / "a.mp4"
    path.touch()
    refused(vidsparse("finetune", "-o", path), "it is a file, and a folder is needed")
