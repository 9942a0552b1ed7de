"""`vidsparse compare --prompts`: a study, what a second run makes, what fails, and what is refused."""

from __future__ import annotations

import errno
import functools
import json
import os
import random
import textwrap
import time
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
from command_line import PROMPT, refused, small_sample, tiny_pipeline, vidsparse_in_a_folder
from forked import printed, start

from vidsparse.cli import study_run
from vidsparse.cli.request import Request
from vidsparse.cli.settings import dense_request, read_settings, rivals
from vidsparse.generation.models import Model, Shapes
from vidsparse.generation.study import alone_in

vidsparse = pytest.fixture(vidsparse_in_a_folder)
tiny = pytest.fixture(scope="session")(tiny_pipeline)
small = pytest.fixture(small_sample)

OTHER = "a green square bouncing on a white background"
SWEEP, SETTINGS, VIDEOS = ("--sweep", "density=0.2,0.5"), ("density=0.2", "density=0.5"), ("fox-seed3", "owl-seed0")


@pytest.fixture
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    lines = {"prompt": PROMPT, "name": "fox", "seed": 3}, {"prompt": OTHER, "name": "owl"}
    path.write_text("\n\n".join(map(json.dumps, lines)) + "\n\n")  # empty lines say nothing
    return path


@pytest.fixture
def study(vidsparse: Any, small: list[str], prompts: Path) -> Any:
    """Runs a study in the folder "out"."""
    return functools.partial(vidsparse, "compare", "--prompts", prompts, "--out", "out", *small, "--frames", 5)


@pytest.fixture
def never_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Model, Shapes):
        monkeypatch.setattr(kind, "load", lambda *_: pytest.fail("the model was loaded"))


def wrote(printed: str) -> list[str]:
    """The videos that a run made, such as "dense/fox-seed3"."""
    lines = [line for line in printed.splitlines() if line.startswith("wrote out/") and " seconds" in line]
    return [line.split(".mp4")[0].removeprefix("wrote out/") for line in lines]


def test_each_video_is_dense_once_and_under_every_setting(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    done = study(*SWEEP)
    assert done.code == 0, done.err
    assert wrote(done.out) == [
        f"{s}/{v}" for v in ("fox-seed3", "owl-seed0") for s in ("dense", "density=0.2", "density=0.5")
    ]
    assert sorted(os.listdir("out")) == [
        ".study.lock",
        "dense",
        "density=0.2",
        "density=0.5",
        "pareto.png",
        "summary.json",
    ]
    files = [f"{video}{end}" for video in VIDEOS for end in (".json", ".mp4", ".png")]
    assert sorted(os.listdir("out/density=0.2")) == files
    one = json.loads(Path("out/density=0.2/fox-seed3.json").read_text())
    assert one["request"]["density"] == 0.2 and one["request"]["seed"] == 3 and one["dense_backend"] == "native"
    assert one["difference"]["psnr"] > 0 and len(one["difference"]["frame_psnr"]) == 5
    dense = np.load("out/dense/fox-seed3.npy")
    assert dense.shape == (5, 32, 48, 3) and dense.dtype == np.uint16
    summary = json.loads(Path("out/summary.json").read_text())
    row = summary["rows"]["density=0.2"]
    assert row["videos"] == 2 and row["measures"]["psnr"]["count"] == 2 and row["measures"]["ssim"]["half"] > 0
    assert row["worst"][0] in ("fox-seed3", "owl-seed0") and "Radial(density=0.2" in summary["patterns"]["density=0.2"]
    assert "dense attention: native" in done.out and "worst frame of density=0.5" in done.out

    monkeypatch.setattr(Model, "load", lambda *_: pytest.fail("the model was loaded"))
    again = study(*SWEEP)
    assert again.code == 0 and not wrote(again.out) and again.out.splitlines()[-1] == done.out.splitlines()[-1]
    assert json.loads(Path("out/summary.json").read_text()) == summary
    other = study("--sweep", "density=0.2,0.5", "--steps", 3)
    assert other.code == 1 and "was made with steps 2, not 3; take another --out" in other.err
    machines = study(*SWEEP, "--dense-backend", "_native_math")
    assert machines.code == 1 and "--dense-backend native, not _native_math" in machines.err
    report = Path("out/density=0.5/owl-seed0.json")
    report.write_text(json.dumps(json.loads(report.read_text()) | {"device_name": "a calculator"}))
    elsewhere = study(*SWEEP)
    assert elsewhere.code == 1 and "was timed on a calculator in float32, and this is" in elsewhere.err


def test_what_is_missing_is_made(study: Any) -> None:
    assert study("--sweep", "density=0.2").code == 0
    os.unlink("out/density=0.2/owl-seed0.mp4")
    inode = os.stat("out/dense/owl-seed0.npy").st_ino
    assert wrote(study("--sweep", "density=0.2").out) == ["density=0.2/owl-seed0"]
    assert wrote(study(*SWEEP).out) == ["density=0.5/fox-seed3", "density=0.5/owl-seed0"], "a setting more"
    assert os.stat("out/dense/owl-seed0.npy").st_ino == inode, "the dense video is made once"
    os.unlink("out/dense/owl-seed0.npy")
    assert not wrote(study(*SWEEP).out), "the frames are needed no more"
    more = study("--sweep", "density=0.2,0.5,0.8")
    assert wrote(more.out) == ["density=0.8/fox-seed3", "dense/owl-seed0", "density=0.8/owl-seed0"]


def test_settings_rivals_and_seeds(study: Any) -> None:
    settings = "same: {pattern: dense}\nfew: {pattern: radial, density: 0.3, set: 'tile=1,4,4', dense-steps: 0}\n"
    Path("s.yaml").write_text(settings)
    done = study("--settings", "s.yaml", "--rivals", "--steps", 3)
    assert done.code == 0, done.err
    rows = json.loads(Path("out/summary.json").read_text())["rows"]
    assert list(rows) == ["dense", "same", "few", "dense-2-steps", "dense-1-steps", "another seed"]
    assert rows["dense"]["videos"] == 4 and rows["few"]["videos"] == 2, "one more seed, to say how far apart two are"
    assert rows["another seed"]["videos"] == 2 and rows["another seed"]["measures"]["psnr"]["mean"] > 0
    assert rows["same"]["identical"] == 2 and rows["same"]["worst"] is None
    assert "2 of same identical to dense" in " ".join(done.out.split())
    few = json.loads(Path("out/few/fox-seed3.json").read_text())["request"]
    assert few["settings"] == ["tile=1,4,4"] and few["dense_steps"] == 0
    assert imageio.imread("out/pareto.png").shape[2] == 4
    assert wrote(study("--settings", "s.yaml", "--seeds", 2, "--steps", 3).out) == [
        f"{setting}/{video}" for video in ("fox-seed4", "owl-seed1") for setting in ("same", "few")
    ]


def test_the_judge_of_shapes(vidsparse: Any, prompts: Path) -> None:
    size = "--frames", 5, "--height", 32, "--width", 32, "--steps", 2, "--set", "tile=1,4,4"
    done = vidsparse("compare", "--prompts", prompts, "--out", "out", *size)
    assert done.code == 0 and "judge" in done.out, done.err
    rows = json.loads(Path("out/summary.json").read_text())["rows"]
    assert {rows[name]["judge"]["mean"]["count"] for name in ("dense", "sparse")} == {2}


# What fails


def failing(monkeypatch: pytest.MonkeyPatch, of: str, error: Exception) -> None:
    """Every video of a setting fails."""
    sample = study_run.sample_video

    def broken(pipe: Any, request: Any, pattern: Any, correction: Any, arguments: Any, title: str) -> Any:
        if title == of:
            raise error
        return sample(pipe, request, pattern, correction, arguments, title)

    monkeypatch.setattr(study_run, "sample_video", broken)


def test_a_video_that_fails_is_told_and_tried_again(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        failing(patched, "fox-seed3, dense", ValueError("a fault of\nthis prompt"))
        done = study("--sweep", "density=0.2")
    assert done.code == 1 and wrote(done.out) == ["dense/owl-seed0", "density=0.2/owl-seed0"]
    assert "failed: out/dense/fox-seed3.mp4: a fault of this prompt\n" in done.err
    assert "note: the same command tries the 2 videos again" in done.err
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["failed"]["density=0.2/fox-seed3"] == "its dense video out/dense/fox-seed3.mp4 is missing"
    assert summary["rows"]["density=0.2"]["videos"] == 1 and "failed: 2 videos" in done.out
    again = study("--sweep", "density=0.2")
    assert again.code == 0 and wrote(again.out) == ["dense/fox-seed3", "density=0.2/fox-seed3"]


def test_a_full_disk_ends_the_run_in_one_line(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        failing(patched, "owl-seed0, dense", OSError(errno.ENOSPC, "No space left on device"))
        done = study("--sweep", "density=0.2")
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.code == 1 and len(errors) == 1
    assert errors[0].startswith("error: out/dense/owl-seed0.mp4: ") and errors[0].endswith(
        "device; what is made is kept"
    )
    assert wrote(done.out) == ["dense/fox-seed3", "density=0.2/fox-seed3"]
    assert wrote(study("--sweep", "density=0.2").out) == ["dense/owl-seed0", "density=0.2/owl-seed0"]


def test_kill_9_leaves_no_half_file_and_a_restart_completes(small: list[str], prompts: Path, tmp_path: Path) -> None:
    out, chance = tmp_path / "out", random.Random(0)
    arguments = ["compare", "--prompts", prompts, "--out", out, *small, "--frames", 5, *SWEEP, "--seeds", 2]
    for number in range(3):
        process = start(tmp_path, *arguments)
        until = time.monotonic() + 100
        while len(list(out.glob("*/[!.]*.json"))) <= number and time.monotonic() < until:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        process.join()
        for report in out.glob("*/[!.]*.json"):
            assert json.loads(report.read_text())["attention"]["calls"]
            assert len(imageio.imread(report.with_suffix(".mp4"), plugin="FFMPEG")) == 5
        for frames in out.glob("dense/[!.]*.npy"):
            assert np.load(frames).shape == (5, 32, 48, 3)
    process = start(tmp_path, *arguments)
    process.join()
    assert process.exitcode == 0, printed(tmp_path)
    rows = json.loads((out / "summary.json").read_text())["rows"]
    assert {name: row["videos"] for name, row in rows.items()} == {
        **dict.fromkeys(("dense", "density=0.2", "density=0.5"), 4),
        "another seed": 2,
    }
    assert not [path for path in out.glob("*/.*") if path.suffix != ".lock"]


# What is refused

TO = "--prompts", "FILE", "--out", "o"
BAD: dict[str, tuple[list[str], str]] = {
    "both": ([PROMPT, "--prompts", "FILE", "--out", "o"], "give a prompt or --prompts, not both"),
    "neither": ([], "the prompt is empty; say what the video shows, or give --prompts FILE and --out FOLDER"),
    "no --out": (["--prompts", "FILE"], "--prompts needs --out, the folder that the videos and the summary go to"),
    "no --prompts": ([PROMPT, "--out", "o", *SWEEP], "--out, --sweep: of a study; give --prompts FILE too"),
    "rivals of one": ([PROMPT, "--rivals"], "--rivals: of a study"),
    "options of one": (
        [*TO, "--repeat", "3", "--strip", "a.png"],
        "--strip, --repeat: of one",
    ),
    "no file": (["--prompts", "none.txt", "--out", "o"], "none.txt cannot be read: No such file"),
    "a file for the folder": (["--prompts", "FILE", "--out", "FILE"], "it is a file, and a folder is needed"),
    "two ways": (
        [*TO, *SWEEP, "--settings", "s.yaml"],
        "--settings or --sweep, not both",
    ),
    "no settings": ([*TO, "--settings", "s.yaml"], "--settings s.yaml cannot be read"),
    "a sweep of nothing": ([*TO, "--sweep", "density"], "must be OPTION=VALUE,VALUE,..."),
    "a gap": ([*TO, "--sweep", "density=0.1,,0.2"], "must be OPTION=VALUE,VALUE,..."),
    "twice": ([*TO, "--sweep", "density=0.1,0.1"], "an option or a value is given twice"),
    "commas": ([*TO, "--sweep", "set=tile=1,4,4"], "write them in a --settings file"),
    "unknown": ([*TO, "--sweep", "lora=a"], "unknown option 'lora'; known are preset, "),
    "no number": (
        [*TO, "--sweep", "density=low"],
        "setting 'density=low': density='low' must be",
    ),
    "a folder": ([*TO, "--sweep", "pattern=a/b.json"], "must be the name of a file"),
    "density": ([*TO, "--sweep", "density=0.1,7"], "setting 'density=7': density"),
    "pattern": ([*TO, "--sweep", "pattern=spiral"], "pattern 'spiral' is unknown"),
    "backend": ([*TO, "--dense-backend", "quick"], "dense backend 'quick' is unknown"),
}


@pytest.mark.parametrize(("arguments", "says"), BAD.values(), ids=BAD)
def test_bad_options_are_refused_before_the_model_is_loaded(
    vidsparse: Any, prompts: Path, never_loads: None, arguments: list[str], says: str
) -> None:
    refused(vidsparse("compare", *(str(prompts) if word == "FILE" else word for word in arguments)), says)


BAD_LINES = {
    '{"prompt": ""}': "the prompt is empty",
    '{"prompt": "a red dog"}': "'dog'",
    f'{{"prompt": "{PROMPT}", "frames": 9}}': "its frames, size or steps are not those of the first prompt",
    f'{{"prompt": "{PROMPT}", "steps": 9}}': "its frames, size or steps are not those of the first prompt",
    f'{{"prompt": "{PROMPT}", "seed": 9223372036854775807}}': "leaves no room for 1 seeds",
}


@pytest.mark.parametrize(("line", "says"), BAD_LINES.items(), ids=BAD_LINES.values())
def test_bad_lines_are_named(vidsparse: Any, prompts: Path, never_loads: None, line: str, says: str) -> None:
    prompts.write_text(json.dumps({"prompt": PROMPT}) + "\n" + line)
    done = vidsparse("compare", "--prompts", prompts, "--out", "o")
    refused(done, says)
    assert done.err.startswith(f"error: {prompts}:2: ")


BAD_SETTINGS = {
    "- density": "holds no settings, such as sparse: {density: 0.3}",
    "a: 0.3": "'a' must have options, such as density: 0.3",
    "dense: {density: 0.3}": "'dense' is the name of another folder too",
    "a: {density: 0.3}\nA: {density: 0.2}": "'A' is the name of another folder too",
    "a/b: {density: 0.3}": "must be the name of a file",
    "a: {dense-steps: -1}": "setting 'a': dense-steps=-1 must be at least 0",
    "a: {steps: 9, num-inference-steps: 9}": "'num-inference-steps' is given twice",
    "a: {pattern: radial, preset: default}": "setting 'a': --preset default has a pattern of its own",
    "a: [": "is not YAML",
}


@pytest.mark.parametrize(("text", "says"), BAD_SETTINGS.items(), ids=BAD_SETTINGS.values())
def test_bad_settings_are_refused(vidsparse: Any, prompts: Path, never_loads: None, text: str, says: str) -> None:
    file = prompts.with_name("s.yaml")
    file.write_text(text)
    refused(vidsparse("compare", "--prompts", prompts, "--out", "o", "--settings", file), says)


def test_another_process_and_another_folder_are_refused(study: Any, never_loads: None, prompts: Path) -> None:
    os.mkdir("out")
    with alone_in(Path("out")):
        done = study()
    assert done.code == 1 and "error: another process is working on out; wait for it" in done.err


# Settings


def test_sweeps_multiply() -> None:
    found = read_settings(Request(PROMPT, density=0.9), None, ["density=0.1,0.2", "pattern=radial,top-blocks"])
    assert {name: (one.density, one.pattern) for name, one in found.items()} == {
        f"density={d},pattern={p}": (d, p) for d in (0.1, 0.2) for p in ("radial", "top-blocks")
    }
    assert read_settings(Request(PROMPT), None, []) == {"sparse": Request(PROMPT)}


def test_the_settings_of_the_documentation_are_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/compare.md").read_text()
    file = tmp_path / "s.yaml"
    file.write_text(textwrap.dedent(page.split("```yaml\n")[1].split("```")[0]))
    found = read_settings(Request(PROMPT), file, [])
    assert list(found) == ["careful", "fast"] and found["careful"].dense_steps == 10
    patterns = [one.build_pattern() for one in found.values()]
    assert ["TopBlocks" in repr(pattern) for pattern in patterns] == [False, True]
    assert type(found["fast"].build_correction()).__name__ == "Reshaped"


def test_dense_and_its_rivals_have_nothing_sparse() -> None:
    request = Request(PROMPT, preset="shapes", density=0.1, dense_steps=3, budget=0.5, impl="flex", seed=7, steps=12)
    assert dense_request(request) == Request(PROMPT, pattern="dense", correction="none", seed=7, steps=12)
    assert {name: one.steps for name, one in rivals(request).items()} == {
        "dense-9-steps": 9,
        "dense-6-steps": 6,
        "dense-4-steps": 4,
    }
    assert rivals(Request(PROMPT, steps=1)) == {}
