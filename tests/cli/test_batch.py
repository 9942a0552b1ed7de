"""`vidsparse generate --prompts`: many videos, what a second run makes, what fails, and what is refused."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import random
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import pytest
import torch
from command_line import PROMPT, refused, small_sample, tiny_pipeline, vidsparse_in_a_folder
from diffusers import WanPipeline
from forked import printed, start
from needs import needs_weights
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from vidsparse.cli import batch, main
from vidsparse.generation.models import Model, Shapes

vidsparse = pytest.fixture(vidsparse_in_a_folder)
tiny = pytest.fixture(scope="session")(tiny_pipeline)
small = pytest.fixture(small_sample)

OTHER, THIRD = "a green square bouncing on a white background", "a blue cross standing still on a black background"
FILES = ("fox", "0002-a-green-square-bouncing-on-a-white-background")
# Of shapes: the smallest video that has more than one tile.
LEAST = ("--steps", "2", "--frames", "5", "--height", "32", "--width", "32", "--set", "tile=1,4,4", "--scale", "1")


@pytest.fixture
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "p.jsonl"
    lines = {"prompt": PROMPT, "name": "fox", "seed": 3, "frames": 5}, {"prompt": OTHER, "guidance": 3, "scale": 1}
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def never_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Model, Shapes):
        monkeypatch.setattr(kind, "load", lambda *_: pytest.fail("the model was loaded"))


def made(folder: Path | str, *names: str) -> bool:
    """Whether a folder holds these videos and their reports, whole, and nothing else."""
    for name in names:
        assert json.loads((Path(folder) / f"{name}.json").read_text())["attention"]["calls"]
        assert len(imageio.imread(Path(folder) / f"{name}.mp4", plugin="FFMPEG"))
    return sorted(os.listdir(folder)) == sorted(f"{name}{end}" for name in names for end in (".json", ".mp4"))


def summary(printed: str) -> dict[str, str]:
    """Title and text of the table at the end."""
    return dict(re.findall(r"^(videos|made|skipped|failed|seconds) +(.*?) *$", printed, re.M))


def test_every_video_is_made_once_and_with_its_options(
    vidsparse: Any, small: list[str], prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, load = [], Model.load
    monkeypatch.setattr(Model, "load", lambda *given: loads.append(1) or load(*given))
    done = vidsparse("generate", "--prompts", prompts, "--out", "new/out", *small)
    assert done.code == 0, done.err
    assert loads == [1] and made("new/out", *FILES)
    assert [line.split(" in ")[0] for line in done.out.splitlines()[:2]] == [f"wrote new/out/{f}.mp4" for f in FILES]
    told = summary(done.out)
    assert told["videos"] == "2 in new/out" and told["made"].startswith("2, in ")
    assert told["skipped"] == "0 that were there" and told["failed"] == "0"
    first, second = (json.loads(Path(f"new/out/{name}.json").read_text())["request"] for name in FILES)
    assert (first["prompt"], first["seed"], first["frames"], first["guidance"]) == (PROMPT, 3, 5, None)
    assert (second["prompt"], second["seed"], second["frames"], second["guidance"]) == (OTHER, 0, 9, 3)
    shapes = [imageio.imread(f"new/out/{name}.mp4", plugin="FFMPEG").shape for name in FILES]
    assert shapes == [(5, 128, 192, 3), (9, 32, 48, 3)]

    inode = os.stat(f"new/out/{FILES[0]}.mp4").st_ino
    os.unlink(f"new/out/{FILES[1]}.mp4")
    again = vidsparse("generate", "--prompts", prompts, "--out", "new/out", *small)
    assert again.code == 0 and loads == [1, 1] and made("new/out", *FILES), again.err
    assert os.stat(f"new/out/{FILES[0]}.mp4").st_ino == inode
    assert summary(again.out)["skipped"] == "1 that were there"
    assert vidsparse("generate", "--prompts", prompts, "--out", "new/out", *small).code == 0
    assert loads == [1, 1], "nothing to do needs no model"

    alone = vidsparse("generate", PROMPT, *small, "--seed", 3, "--frames", 5, "-o", "a.mp4")
    assert alone.code == 0 and Path("a.mp4").read_bytes() == Path("new/out/fox.mp4").read_bytes()


def test_videos_of_other_options_are_kept(
    vidsparse: Any, small: list[str], prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert vidsparse("generate", "--prompts", prompts, "--out", "out", *small).code == 0
    monkeypatch.setattr(Model, "load", lambda *_: pytest.fail("the model was loaded"))
    report, text = Path("out/fox.json"), prompts.read_text()

    def run(*options: object) -> Any:
        return vidsparse("generate", "--prompts", prompts, "--out", "out", *small, *options)

    changed = {
        "density None, not 0.3": (["--density", "0.3"], text),
        "seed 3, not 4": ([], text.replace('"seed": 3', '"seed": 4')),
        f"prompt {PROMPT!r}, not {THIRD!r}": ([], text.replace(PROMPT, THIRD)),
        "another what its LoRAs were trained with": ([], text),
    }
    for says, (options, lines) in changed.items():
        if "another" in says:
            report.write_text(json.dumps(json.loads(report.read_text()) | {"loras": {"a": {}}}))
        prompts.write_text(lines)
        done = run(*options)
        assert done.code == 1 and done.err.count("\n") == 1, done
        assert f"out/fox.mp4 was made with {says}; take another --out, or remove that file" in done.err
    kept = json.loads(report.read_text()) | {"loras": {}}
    kept["request"] |= {"device": "cuda:7", "new": "unknown to this vidsparse"}
    del kept["request"]["budget"]  # an older vidsparse did not have it
    report.write_text(json.dumps(kept))
    prompts.write_text(text)
    assert run().code == 0, "the machine and the version may be others"
    report.write_text("[]")
    report.with_suffix(".mp4").write_bytes(b"")
    report.write_text('{"mine": 1}')
    assert "out/fox.json is not the report of a video; take another --out" in run().err


def test_a_prompt_that_fails_is_recorded_and_the_rest_is_made(
    vidsparse: Any, small: list[str], prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = WanPipeline.__call__

    def broken(pipe: WanPipeline, *arguments: Any, **settings: Any) -> Any:
        if settings["prompt"] == PROMPT:
            raise torch.OutOfMemoryError("out of\nmemory")
        return call(pipe, *arguments, **settings)

    monkeypatch.setattr(WanPipeline, "__call__", functools.wraps(call)(broken))
    done = vidsparse("generate", "--prompts", prompts, "--out", "out", *small)
    assert done.code == 1 and sorted(os.listdir("out")) == [f"{FILES[1]}.json", f"{FILES[1]}.mp4", "fox.error.json"]
    assert [line for line in done.err.splitlines() if line.startswith(("failed", "note: the", "error"))] == [
        f"failed: {prompts}:1: out of memory; its traceback is in out/fox.error.json",
        "note: the same command tries the 1 video again",
    ]
    assert summary(done.out)["failed"] == "1" and f"{prompts}:1(fox):outofmemory" in "".join(done.out.split())
    assert "broken" in json.loads(Path("out/fox.error.json").read_text())["traceback"]
    monkeypatch.setattr(WanPipeline, "__call__", call)
    assert vidsparse("generate", "--prompts", prompts, "--out", "out", *small).code == 0
    assert made("out", *FILES), "the record of the failure is gone"


def test_a_gpu_that_computes_no_more_ends_the_run(
    vidsparse: Any, small: list[str], prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(batch, "sample_video", lost)
    monkeypatch.setattr(WanPipeline, "_execution_device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    done = vidsparse("generate", "--prompts", prompts, "--out", "out", *small)
    assert done.code == 1 and os.listdir("out") == ["fox.error.json"]
    assert [line.split(":")[0] for line in done.err.splitlines()[-2:]] == ["failed", "error"]


BAD: dict[str, tuple[str, list[str], str]] = {
    "no file": ("", ["--prompts", "none.txt", "--out", "o"], "none.txt cannot be read: No such file"),
    "no --out": (PROMPT, ["--prompts", "FILE"], "--prompts needs --out, the folder that the videos go to"),
    "no --prompts": ("", [PROMPT, "--out", "o"], "--out is the folder of --prompts"),
    "neither": ("", [], "the prompt is empty; say what the video shows, or give --prompts FILE and --out FOLDER"),
    "both": (PROMPT, [PROMPT, "--prompts", "FILE", "--out", "o"], "give a prompt or --prompts, not both"),
    "a name": (PROMPT, ["--prompts", "FILE", "--out", "o", "-o", "a.mp4"], "leave out --output and --report"),
    "a report": (PROMPT, ["--prompts", "FILE", "--out", "o", "--report", "a.json"], "leave out --output and --report"),
    "overwrite": (PROMPT, ["--prompts", "FILE", "--out", "o", "--overwrite"], "--prompts replaces no video"),
    "a file for the folder": (PROMPT, ["--prompts", "FILE", "--out", "FILE"], "it is a file, and a folder is needed"),
    "no leave": (PROMPT, ["--prompts", "FILE", "--out", "/proc/o"], "cannot write /proc/o"),
    "unknown word": (f"# one\n{PROMPT}\na red dog", ["--prompts", "FILE", "--out", "o"], ".txt:3: "),
    "option of the command": (PROMPT, ["--prompts", "FILE", "--out", "o", "--pattern", "spiral"], "error: pattern"),
    "size of the command": (PROMPT, ["--prompts", "FILE", "--out", "o", "--height", "63"], "error: `height`"),
    "too many processes": (PROMPT, ["--prompts", "FILE", "--out", "o", "--ulysses", "3"], "needs 3 processes"),
}
# A second line of JSON -> what is said of it.
BAD_LINES = {
    '{"prompt": "a red circle", "steps": 0}': "steps=0 must be at least 1",
    '{"prompt": "a red circle", "seed": 9223372036854775808}': "must be at most 9223372036854775807",
    '{"prompt": "a red circle", "density": 0.2}': "unknown density; known are prompt, name, seed, negative_prompt, im",
    f'{{"prompt": "{PROMPT}", "height": 63}}': "have to be divisible by 16",
    f'{{"prompt": "{PROMPT}", "frames": 200000}}': "has positions for 1024 on each axis",
    f'{{"prompt": "{PROMPT}", "negative_prompt": "ugly"}}': "'ugly'",
}


@pytest.mark.parametrize(("text", "arguments", "says"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_in_one_line_before_the_model_is_loaded(
    vidsparse: Any,
    tmp_path_factory: pytest.TempPathFactory,
    never_loads: None,
    text: str,
    arguments: list[str],
    says: str,
) -> None:
    file = tmp_path_factory.mktemp("bad") / "p.txt"
    file.write_text(text)
    refused(vidsparse("generate", *(str(file) if word == "FILE" else word for word in arguments)), says)


@pytest.mark.parametrize(("line", "says"), BAD_LINES.items(), ids=BAD_LINES.values())
def test_bad_lines_are_named(vidsparse: Any, prompts: Path, never_loads: None, line: str, says: str) -> None:
    prompts.write_text(json.dumps({"prompt": PROMPT}) + "\n" + line)
    done = vidsparse("generate", "--prompts", prompts, "--out", "o")
    refused(done, says)
    assert done.err.startswith(f"error: {prompts}:2: ")


def test_a_thousand_lines_are_checked_once_for_each_size(
    vidsparse: Any, prompts: Path, never_loads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    monkeypatch.setattr("vidsparse.cli.request.Request.check", lambda self, *_: sizes.append(self.height))
    lines = [{"prompt": PROMPT, "seed": seed, "height": 32 + 32 * (seed % 2)} for seed in range(1000)]
    prompts.write_text("\n".join(map(json.dumps, [*lines, {"prompt": "a red dog"}])))
    refused(vidsparse("generate", "--prompts", prompts, "--out", "o"), "'dog'")
    prompts.write_text("\n".join(map(json.dumps, [*lines, {"prompt": PROMPT, "height": 63}])))
    refused(vidsparse("generate", "--prompts", prompts, "--out", "o"), f"{prompts}:1001: ")
    assert sizes == [None, 32, 64]


def test_positions_are_for_one_length(vidsparse: Any, prompts: Path, never_loads: None) -> None:
    done = vidsparse("generate", "--prompts", prompts, "--out", "o", "--positions", "yarn", "--frames", 65)
    refused(done, "positions are extended for one number of frames; give --frames for all videos")


# Processes of their own


def wait_for(happened: Callable[[], object]) -> None:
    until = time.monotonic() + 100
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.002)


def test_kill_9_at_random_moments_leaves_no_half_file_and_a_restart_completes(
    small: list[str], prompts: Path, tmp_path: Path
) -> None:
    out, chance = tmp_path / "out", random.Random(0)
    names = [f"{number:04d}-{prompt.replace(' ', '-')[:48]}" for number, prompt in enumerate([PROMPT] * 4, start=1)]
    prompts = prompts.with_suffix(".txt")
    prompts.write_text("\n".join([PROMPT] * 4))
    arguments = ["generate", "--prompts", prompts, "--out", out, *small, "--frames", 5]
    interrupted = 0
    for _ in range(5):
        begun = set(out.glob(".*"))
        process = start(tmp_path, *arguments)
        wait_for(lambda begun=begun: set(out.glob(".*")) - begun)
        time.sleep(chance.uniform(0, 0.6))
        process.kill()
        process.join()
        interrupted += bool(list(out.glob(".*")))
        for report in out.glob("[!.]*.json"):
            assert json.loads(report.read_text())["attention"]["calls"] and report.with_suffix(".mp4").is_file()
        for video in out.glob("[!.]*.mp4"):
            assert len(imageio.imread(video, plugin="FFMPEG")) == 5
        if len(list(out.glob("[!.]*.json"))) == 4:
            shutil.rmtree(out)
    assert interrupted > 1
    process = start(tmp_path, *arguments)
    process.join()
    assert process.exitcode == 0 and made(out, *names), printed(tmp_path)


def test_sigterm_ends_the_run_as_ctrl_c_does(small: list[str], prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(tmp_path, "generate", "--prompts", prompts, "--out", out, *small, "--steps", 200)
    wait_for(lambda: list(out.glob(".*.lock")))
    time.sleep(0.2)
    process.terminate()
    process.join()
    assert process.exitcode == 130, printed(tmp_path)
    assert printed(tmp_path).splitlines()[-2:] == ["note: the same command makes the rest", "interrupted"]
    assert os.listdir(out) == []


def as_launched(folder: str, arguments: list[str]) -> None:
    """Runs as a launcher starts a process. One prompt takes long, one fails; what is printed is left in a file."""
    sample = batch.sample_video

    def sample_video(pipe: Any, request: Any, *others: Any) -> Any:
        if request.prompt == THIRD:
            raise ValueError("a fault of this prompt")
        time.sleep(1.0 if request.prompt == OTHER else 0)
        return sample(pipe, request, *others)

    os.chdir(folder)
    batch.sample_video = sample_video
    sys.argv = ["vidsparse", *arguments]
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    finally:
        Path(f"{os.environ['RANK']}.log").write_text(out.getvalue() + err.getvalue())


@needs_weights
def test_two_launched_processes_share_the_prompts(vidsparse: Any, prompts: Path) -> None:
    lines = [{"prompt": OTHER, "name": "slow"}, {"prompt": THIRD, "name": "fault"}]
    lines += [{"prompt": PROMPT, "name": f"fox {seed}", "seed": seed} for seed in range(3)]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    arguments = ["generate", "--prompts", str(prompts), "--out", "out", *LEAST]
    # What torchrun and accelerate launch start processes with: it ends all of them when one fails.
    endpoint = dict(run_id="batch", rdzv_backend="c10d", rdzv_endpoint="localhost:0")
    config = LaunchConfig(1, 1, 2, **endpoint, start_method="forkserver", max_restarts=0)
    with pytest.raises(ChildFailedError, match=r"exitcode +: 1 "):
        elastic_launch(config, as_launched)(os.getcwd(), arguments)
    logs = [Path(f"{rank}.log").read_text() for rank in (0, 1)]
    names = ["slow", "fox 0", "fox 1", "fox 2"]
    assert [name for name in names if f"wrote out/{name}.mp4" in "".join(logs)] == names
    assert "wrote out/slow.mp4" in logs[0] + logs[1] and "".join(logs).count("failed: ") == 1
    told = summary(logs[0])
    assert told["made"].startswith("4, in") and told["failed"] == "1", "the first waits for the slow one"
    assert not summary(logs[1]) and "error:" not in logs[1], "the first speaks for all"
    os.unlink("out/fault.error.json")
    assert made("out", *names)
    assert vidsparse("generate", PROMPT, *LEAST, "--seed", 2, "-o", "alone.mp4").code == 0
    assert Path("alone.mp4").read_bytes() == Path("out/fox 2.mp4").read_bytes()


def test_lines_know_the_names_of_diffusers() -> None:
    allowed = batch.allowed(batch.OPTIONS)
    aliases = {name: option.alias for name, option in allowed.items() if option.alias}
    assert aliases == {"frames": "num_frames", "steps": "num_inference_steps", "guidance": "guidance_scale"}
