"""The command line refuses what it cannot do: one line that says why, and nothing else."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from command_line import PROMPT, refused, small_sample, tiny_pipeline, vidsparse_in_a_folder
from diffusers import WanPipeline

from vidsparse.cli import app, sampling

vidsparse = pytest.fixture(vidsparse_in_a_folder)
tiny = pytest.fixture(scope="session")(tiny_pipeline)
small = pytest.fixture(small_sample)
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
    "a word for a number": (["--set", "density=much"], "density='much' must be in (0, 1]"),
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
    "unknown positions": (["--positions", "ntk"], "positions 'ntk' is unknown; choose one of plain, riflex, yarn"),
    "unknown device": (["--device", "abacus"], "device 'abacus' is not available"),
    "unknown dtype": (["--dtype", "int4"], "dtype 'int4' is unknown"),
    "offload from the CPU": (["--device", "cpu", "--offload"], "the device is the CPU"),
}


def test_a_video_of_nan_is_no_video(vidsparse: Any, small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    decode = WanPipeline.__call__

    def broken(*arguments: Any, **settings: Any) -> Any:
        out = decode(*arguments, **settings)
        out.frames[0][1] = np.nan
        return out

    monkeypatch.setattr(WanPipeline, "__call__", functools.wraps(decode)(broken))
    refused(vidsparse("generate", PROMPT, *small), "holds numbers that are not finite; try another --dtype")


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


@pytest.mark.parametrize("arguments", [["--frames", "0"], ["--steps", "many"], ["--no-such-option"]], ids=" ".join)
def test_usage_errors_exit_with_two(vidsparse: Any, arguments: list[str]) -> None:
    assert vidsparse("generate", PROMPT, *arguments).code == 2


def test_traceback_shows_where_an_error_comes_from(vidsparse: Any) -> None:
    with pytest.raises(ValueError, match="spiral"):
        app(["--traceback", "inspect", "--pattern", "spiral"])
