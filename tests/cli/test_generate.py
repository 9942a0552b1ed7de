"""The command line: what `generate` and `compare` write, and what is left when they are interrupted."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from command_line import PROMPT, small_sample, tiny_pipeline, vidsparse_in_a_folder
from diffusers import WanPipeline
from needs import needs_weights
from PIL import Image
from safetensors.torch import load_file, save_file

from vidsparse.generation.models import Model, Shapes

ROOT = Path(__file__).parents[2]
SLUG = PROMPT.replace(" ", "-")
vidsparse = pytest.fixture(vidsparse_in_a_folder)
tiny = pytest.fixture(scope="session")(tiny_pipeline)
small = pytest.fixture(small_sample)


def comment(video: Path) -> dict[str, Any]:
    """What a video says of how it was made."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(video), "-f", "ffmetadata", "-"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    [found] = re.findall(r"^comment=(.*)$", text, re.M)
    said: dict[str, Any] = json.loads(re.sub(r"\\(.)", r"\1", found))
    return said


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
    assert report["arguments"]["num_frames"] == 9 and report["arguments"]["guidance_scale"] == 5, "the pipeline's own"
    assert report["versions"]["torch"] == torch.__version__ and report["device_name"]
    assert (report["device"], report["dtype"]) in (("cpu", "float32"), ("cuda", "bfloat16"))
    assert report["judge"] is None, "only shapes has a judge"
    # Two steps of two layers, each with and without the prompt; the first step and the first layer are dense.
    assert (report["attention"]["sparse_calls"], report["attention"]["dense_calls"]) == (2, 6)
    assert (
        "note: preset default, which is the model's: Radial(density=0.3); dense: 0.24 of the steps, layer 0" in done.err
    )
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


def test_compare_writes_all_that_is_asked_for(vidsparse: Any, small: list[str]) -> None:
    files = ["--dense-output", "d.mp4", "--sparse-output", "s.mp4", "--strip", "s.png", "--json", "c.json"]
    done = vidsparse("compare", PROMPT, *small, "-o", "both.mp4", *files)
    assert done.code == 0, done.err
    assert sorted(os.listdir()) == ["both.mp4", "c.json", "d.mp4", "s.mp4", "s.png"]
    both, dense = (imageio.imread(name, plugin="FFMPEG") for name in ("both.mp4", "d.mp4"))
    made = {name: comment(Path(name)) for name in ("both.mp4", "d.mp4", "s.mp4")}
    assert made["both.mp4"] == made["s.mp4"] and made["s.mp4"]["attention"].startswith("StepSchedule(pattern=Radial(")
    assert made["d.mp4"] == made["s.mp4"] | {"attention": "Dense(tile=None)"}
    assert both.shape[:1] == dense.shape[:1] and both.shape[2] == 2 * dense.shape[2] + 4
    with Image.open("s.png") as strip:
        assert strip.width > 9 * 128
    result = json.loads(Path("c.json").read_text())
    assert result["arguments"]["num_inference_steps"] == 2 and result["versions"]["diffusers"]
    assert 0 < result["sparse"]["density"] < 1
    assert result["psnr"] > 10 and 0 < result["ssim"] <= 1
    for clock, ratio in result["speedup"].items():
        assert ratio == pytest.approx(result["dense"][clock] / result["sparse"][clock])
    assert result["dense_backend"] == "native" and result["flicker"] > 0 and result["lpips"] is None
    assert result["frame_psnr"][result["worst_frame"]] == min(result["frame_psnr"]) and len(result["frame_ssim"]) == 9
    assert "PSNR to dense" in done.out and f"PSNR of the worst frame ({result['worst_frame']})" in done.out
    assert "dense attention: native" in " ".join(done.out.split())


def test_steps_that_are_all_dense_are_noted_before_the_model_is_loaded(
    vidsparse: Any, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    load = Model.load
    monkeypatch.setattr(Model, "load", lambda *given: order.append("loaded") or load(*given))
    monkeypatch.setattr("vidsparse.cli.request.note", order.append)
    assert vidsparse("generate", PROMPT, *small, "--dense-steps", 9, "-o", "a.mp4").code == 0
    said = "all 2 steps are dense, so nothing will be sparse; use --dense-steps 1, or more --steps"
    assert order[0] == said and order[1].startswith("preset default") and order[2:] == ["loaded"]
    radial = "--pattern", "radial"
    assert vidsparse("generate", PROMPT, *small, *radial, "-o", "b.mp4").code == 0 and order[3:] == ["loaded"]


def test_few_steps_are_sparse_by_default(vidsparse: Any, small: list[str]) -> None:
    files = "-o", "a.mp4", "--report", "a.json", "--overwrite"
    for steps, counts in ((1, (2, 2)), (4, (6, 10))):  # two layers, the first dense, with and without the prompt
        done = vidsparse("generate", PROMPT, *small[:-2], "--steps", steps, *files)
        assert done.code == 0, done.err
        report = json.loads(Path("a.json").read_text())["attention"]
        assert (report["sparse_calls"], report["dense_calls"]) == counts and "are dense" not in done.err


def test_a_checkpoint_with_gates_runs_with_its_coarse_branch(
    vidsparse: Any, small: list[str], tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("gated") / "model"
    shutil.copytree(tiny, folder)
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    for name in [name for name in weights if ".attn1.to_q." in name]:
        weights[name.replace("attn1.to_q", "to_gate_compress")] = 3 * torch.randn_like(weights[name])
    save_file(weights, file)
    asked, sparse = [*small, "--model", folder, "--scale", 1], ["--pattern", "video-sparse", "--density", 0.5]
    ran, noted = {}, {}
    for name, more in (
        ("gated", sparse),
        ("none", [*sparse, "--correction", "none"]),
        ("dense", ["--pattern", "dense"]),
    ):
        done = vidsparse("generate", PROMPT, *asked, *more, "-o", f"{name}.mp4", "--report", f"{name}.json")
        assert done.code == 0, done.err
        ran[name] = json.loads(Path(f"{name}.json").read_text())["attention"]["pattern"]
        noted[name] = "coarse branch" in done.err
    assert ran["gated"].endswith("with GatedCoarse()") and "GatedCoarse" not in ran["none"] + ran["dense"]
    assert noted == {"gated": True, "none": False, "dense": False}
    gated, none = (imageio.imread(f"{name}.mp4", plugin="FFMPEG") for name in ("gated", "none"))
    assert not np.array_equal(gated, none)
    done = vidsparse("generate", PROMPT, *small, "--correction", "gated-coarse", "-o", "a.mp4")
    assert done.code == 1 and "has no to_gate_compress" in done.err, "a model without gates cannot have it"


def test_compare_prints_json_and_nothing_else(vidsparse: Any, small: list[str]) -> None:
    done = vidsparse("compare", PROMPT, *small, "--frames", 6, "--pattern", "dense", "-o", "both.mp4", "--json", "-")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["psnr"] is None and result["ssim"] == pytest.approx(1), "dense and dense are identical"
    assert result["frames"] == 5 and "using 5" in done.err
    assert "note: comparing dense with itself" in done.err and result["repeat"] == 2
    for side in ("dense", "sparse"):
        for clock in result["speedup"]:
            low, high = result[side]["spread"][clock]
            assert 0 < low <= result[side][clock] <= high
    assert os.listdir() == ["both.mp4"]


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
    monkeypatch.setattr(Model, "load", lambda *_: pipe)
    done = vidsparse(command, PROMPT, *small, "-o", "a.mp4")
    assert done.code == 130 and "interrupted" in done.err.splitlines()
    assert os.listdir() == []
    assert all(pipe.transformer.attn_processors[name] is processor for name, processor in processors.items())


@needs_weights
def test_shapes_end_to_end(vidsparse: Any) -> None:
    short = ["--frames", 9, "--steps", 8, "-o", "a.mp4", "--report", "r.json"]
    done = vidsparse("generate", "a red square standing still on a blue background", "--density", 0.3, *short)
    assert done.code == 0, done.err
    report = json.loads(Path("r.json").read_text())
    assert report["judge"]["colour"] == report["judge"]["background"] == report["judge"]["motion"] == 1, report["judge"]
    assert report["judge"]["mean"] >= 0.75, report["judge"]
    assert report["attention"]["density"] == pytest.approx(0.3, abs=0.02)
    assert imageio.imread("a.mp4", plugin="FFMPEG").shape == (9, 512, 512, 3)


@needs_weights
def test_demo_writes_everything(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/strip.png").touch()  # of a run before
    command = [sys.executable, str(ROOT / "examples/demo.py"), "--fast", "--out", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    files = ["comparison.json", "dense.mp4", "side_by_side.mp4", "sparse.mp4", "strip.png"]
    assert sorted(os.listdir(tmp_path / "demo")) == files and (tmp_path / "demo/strip.png").stat().st_size
    assert "PSNR to dense" in done.stdout and "vidsparse estimate wan2.1-14b" in done.stdout.splitlines()[-4]
    lines = [line.partition(" of ")[0] for line in done.stderr.splitlines()]
    assert lines.count("warming up: 2") == lines.count("dense, sdpa: 4") == 1 and "sparse: 4" in lines, done.stderr


def test_options_have_the_names_of_diffusers_too(vidsparse: Any, small: list[str]) -> None:
    asked = {"--frames": "--num-frames", "--steps": "--num-inference-steps", "--guidance": "--guidance-scale"}
    both = [*small, "--guidance", "3", "--dtype", "float32"], [asked.get(word, word) for word in small]
    both[1].extend(["--guidance-scale", "3", "--dtype", "FP32"])
    for name, words in zip(("a", "b"), both, strict=True):
        done = vidsparse("generate", PROMPT, *words, "-o", f"{name}.mp4", "--report", f"{name}.json")
        assert done.code == 0, done.err
    assert Path("a.mp4").read_bytes() == Path("b.mp4").read_bytes()
    requests = [json.loads(Path(name).read_text())["request"] for name in ("a.json", "b.json")]
    assert requests[0] == requests[1] and requests[0]["dtype"] == "float32"
    assert (requests[0]["frames"], requests[0]["steps"], requests[0]["guidance"]) == (9, 2, 3)


def test_a_video_without_a_name_replaces_no_other(vidsparse: Any, small: list[str]) -> None:
    asked = "generate", PROMPT, *small, "--steps", 1, "--seed", 7
    names = f"{SLUG}-7.mp4", f"{SLUG}-7-2.mp4", f"{SLUG}-7-3.mp4"
    for name in names:
        assert f"wrote outputs/{name}" in vidsparse(*asked).out.replace("\n", "")
    assert sorted(os.listdir("outputs")) == sorted(names)
    before = Path("outputs", names[0]).stat().st_mtime_ns
    assert vidsparse(*asked, "--overwrite").code == 0
    assert sorted(os.listdir("outputs")) == sorted(names) and Path("outputs", names[0]).stat().st_mtime_ns > before
    assert f"wrote outputs/{SLUG}-0-compare.mp4" in vidsparse("compare", PROMPT, *small, "--repeat", 1).out


def test_the_name_of_a_video_is_chosen_when_it_is_written(
    vidsparse: Any, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Model.load

    def meanwhile(*given: Any) -> Any:
        Path("outputs").mkdir()
        Path("outputs", f"{SLUG}-0.mp4").write_text("of another process")
        return load(*given)

    monkeypatch.setattr(Model, "load", meanwhile)
    assert vidsparse("generate", PROMPT, *small).code == 0
    assert Path("outputs", f"{SLUG}-0.mp4").read_text() == "of another process"
    assert len(imageio.imread(f"outputs/{SLUG}-0-2.mp4", plugin="FFMPEG")) == 9


@pytest.mark.parametrize(
    ("command", "option"),
    [("generate", "-o a.mp4"), ("generate", "--report a.json"), ("compare", "-o a.mp4"), ("compare", "--strip a.png")]
    + [("compare", f"--{side}-output a.mp4") for side in ("dense", "sparse")]
    + [("compare", "--json a.json"), ("inspect", "--png a.png"), ("doctor", "--json a.json")],
    ids=" ".join,
)
def test_a_file_that_is_there_is_not_replaced(
    vidsparse: Any, monkeypatch: pytest.MonkeyPatch, command: str, option: str
) -> None:
    for kind in (Model, Shapes):
        monkeypatch.setattr(kind, "load", lambda *_: pytest.fail("the model was loaded"))
    name, text = option.split()[1], "weeks of work"
    Path(name).write_text(text)
    asked = [PROMPT] if command in ("generate", "compare") else []
    done = vidsparse(command, *asked, *option.split())
    assert done.code == 1 and Path(name).read_text() == text and os.listdir() == [name]
    assert done.err == f"error: {name} is there already; give another name, or --overwrite to replace it\n"


def test_a_line_says_what_to_expect_and_others_how_far_it_is(vidsparse: Any, small: list[str]) -> None:
    asked = [*small, "--steps", "20", "--pattern", "radial", "--density", "0.3", "--device", "cpu"]
    done = vidsparse("generate", PROMPT, *asked, "--set", "tile=1,2,2", "-o", "a.mp4")
    assert done.code == 0, done.err
    lines = done.err.splitlines()
    header = next(
        i for i, line in enumerate(lines) if line.startswith(f"{small[1]} on cpu, float32: 288 tokens, radial")
    )
    assert re.search(r" of density 0\.\d\d, 19 of 20 steps sparse, attention at most \d\.\d\dx faster$", lines[header])
    told = [line for line in lines[header + 1 :] if line.startswith("radial: ")]
    assert [line.split(",")[0] for line in told] == [f"radial: {step} of 20" for step in range(2, 21, 2)]
    assert all(re.fullmatch(r"radial: \d+ of 20, \d+ seconds", line) for line in told)


@pytest.mark.parametrize("command", ["generate", "compare"])
def test_quiet_leaves_results_and_errors(vidsparse: Any, small: list[str], command: str) -> None:
    done = vidsparse(command, PROMPT, *small, "--frames", 6, "-o", "a.mp4", "--quiet")
    ours = [line for line in done.err.splitlines() if line and "it/s]" not in line]  # the console script has no bars
    assert done.code == 0 and not ours and "wrote a.mp4" in done.out
    done = vidsparse(command, PROMPT, *small, "-o", "a.mp4", "-q")
    assert done.code == 1 and done.err.startswith("error: a.mp4 is there already")
    assert "note: 6 frames" in vidsparse(command, PROMPT, *small, "--frames", 6, "-o", "b.mp4").err, "quiet has ended"


def test_a_video_says_what_it_was_made_with(vidsparse: Any, small: list[str]) -> None:
    prompt = 'a "fox" = 1; #2 \\ 一只狐狸\nin the snow'
    asked = "generate", prompt, *small, "--negative-prompt", "rain", "--seed", 5, "--pattern", "radial"
    assert vidsparse(*asked, "-o", "a.mp4").code == 0
    said = comment(Path("a.mp4"))
    assert said["prompt"] == prompt and said["negative_prompt"] == "rain" and said["seed"] == 5
    assert (said["num_frames"], said["height"], said["width"], said["num_inference_steps"]) == (9, 32, 48, 2)
    assert said["model"] == small[1] and "Radial(density=" in said["attention"] and "loras" not in said
    assert vidsparse(*asked, "-o", "b.mp4", "--device", "cpu", "--dtype", said["dtype"]).code == 0
    assert Path("a.mp4").read_bytes() == Path("b.mp4").read_bytes()
