"""`vidsparse finetune`, and what a training refuses before it starts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from small_videos import leaves_pipes, write_video
from tiny_training import PATTERN, lines, pipeline, train
from torch.distributed.run import get_args_parser as torchrun_parser
from trained_families import CASES
from typer.main import get_command

from vidsparse import Radial, StepSchedule
from vidsparse.cli import app
from vidsparse.cli.finetune import _clips
from vidsparse.cli.finetune_options import Finetuning
from vidsparse.finetune import Bucket, Settings, check_pipeline, drawn_clips, finetune
from vidsparse.finetune.optim import optimizers
from vidsparse.generation.models import find_model
from vidsparse.lora.files import read_recipe


def test_bad_input_is_refused_before_anything_is_written(tmp_path: Path, cache: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"targets to_z do not exist; choose from .*to_q"):
        train(out, cache, targets=("to_z",))
    with pytest.raises(ValueError, match=r"transformer='transformer_2' does not exist in the pipeline"):
        train(out, cache, transformer="transformer_2")
    with pytest.raises(ValueError, match="precision='fp16' needs a GPU"):
        train(out, cache, precision="fp16")
    with pytest.raises(ValueError, match="has no sparse step among 20"):
        train(out, cache, pattern=StepSchedule(Radial(density=0.5), dense_steps=20))
    with pytest.raises(ValueError, match=r"dense_layers.*99"):
        train(out, cache, pattern=StepSchedule(Radial(density=0.5), dense_layers=(99,)))
    with pytest.raises(FileNotFoundError, match="no LoRA 'nowhere'"):
        train(out, cache, start="nowhere")
    with pytest.raises(ValueError, match="was made for another model: it changes blocks"):
        train(out, cache, start="shapes-long")
    assert not out.exists()


def test_an_expert_that_would_train_dense_is_refused(tmp_path: Path, cache: Path) -> None:
    pipe = pipeline()
    pipe.register_modules(transformer_2=pipeline().transformer.eval())
    pipe.register_to_config(boundary_ratio=0.9)
    with pytest.raises(
        ValueError, match=r"sparse at noise levels from 0.00 to 0.\d\d, and transformer computes from 0.90"
    ):
        train(tmp_path / "out", cache, pipe, pattern=StepSchedule(Radial(density=0.5), dense_steps=8))
    assert not (tmp_path / "out").exists() and "Sparse" not in str(pipe.transformer.attn_processors)


def test_positions_that_a_model_does_not_have(tmp_path: Path) -> None:
    settings = Settings(PATTERN, positions="yarn", trained_frames=5)
    with pytest.raises(NotImplementedError, match="and MochiTransformer3DModel has none; use kind='plain'"):
        check_pipeline(CASES["mochi"].pipe(), settings)


def test_frames_that_the_vae_does_not_take(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ValueError, match=r"10 frames do not fit the VAE's stride of 4 in time; use 9 or 13"):
        finetune(pipeline(), drawn_clips(2, Bucket(10, 16, 16)), Settings(PATTERN), tmp_path, base="tiny", cpu=True)


def test_another_pipeline_is_not_trained(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="object cannot be trained; finetune trains WanPipeline"):
        finetune(object(), [], Settings(PATTERN), tmp_path, base="none")


# The command line


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `vidsparse finetune` in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as stop:
            app(["finetune", *map(str, arguments)], prog_name="vidsparse")
        return stop.value.code or 0, *capsys.readouterr()

    return run


def test_drawn_clips_are_as_many_of_each_size() -> None:
    buckets, request = [Bucket(9, 16, 16), Bucket(5, 16, 16)], Finetuning(out=Path("out"), videos=3, seed=3)
    found = _clips(request, "shapes", buckets, find_model("owner/name"), None)
    drawn = [clip for seed, bucket in enumerate(buckets, 3) for clip in drawn_clips(2, bucket, seed)]
    assert [clip.key for clip in found] == [clip.key for clip in drawn]


def test_a_lora_from_the_command_line(command: Any, tmp_path: Path, cache: Path) -> None:
    asked = ["--out", "run", "--frames", 9, "--size", "16x16", "--videos", 2, "--rank", 2, "--cache", cache, "--cpu"]
    asked += ["--density", 0.5, "--set", "tile=(1,2,2)", "--dense-steps", 1, "--precision", "no", "--log-every", 1]
    asked += ["--no-samples"]
    code, out, errors = command(*asked, "--steps", 1)
    assert code == 0, errors
    assert re.search(r"^step 1 of 1, loss \d\.\d{4}$", errors, re.MULTILINE)
    assert (tmp_path / "run/loss.png").is_file()
    assert out.splitlines()[-1] == "wrote the LoRA to run; vidsparse generate --lora run uses it"
    recipe = read_recipe(tmp_path / "run")
    assert (recipe.frames, recipe.trained_frames, recipe.base) == (9, 33, "shapes")
    assert recipe.pattern == StepSchedule(Radial(density=0.5, tile=(1, 2, 2)), dense_steps=1)
    AcceleratorState._reset_state(reset_partial_state=True)
    code, _, errors = command(*asked, "--steps", 2)
    assert code == 0 and "resuming from step 1" in errors
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2]


@leaves_pipes
def test_a_folder_of_videos_from_the_command_line(command: Any, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name, frames, width in (("long", 12, 32), ("short", 5, 16), ("tiny", 3, 16)):
        write_video(data / f"{name}.mp4", frames, height=16, width=width)
    (data / "broken.mp4").write_bytes(b"no video")
    for video in list(data.iterdir()):
        video.with_suffix(".txt").write_text("a red circle moving left on a blue background")
    asked = ["--out", "run", "--data", "data", "--frames", 5, "--frames", 9, "--size", "16x16", "--size", "32x16"]
    asked += [
        "--cpu",
        "--rank",
        2,
        "--set",
        "tile=(1,2,2)",
        "--precision",
        "no",
        "--steps",
        2,
        "--batch",
        2,
        "--no-samples",
    ]
    code, _, errors = command(*asked, "--fps", 0)
    assert code == 0, errors
    said = " ".join(errors.split())
    assert "tiny.mp4 is left out: it has 3 frames, and the shortest clips have 5" in said
    assert "broken.mp4 is left out: it cannot be decoded" in said and "2 clips of 2 files, 2 files left out" in said
    assert read_recipe(tmp_path / "run").frames == 9
    cached = [tuple(load_file(path)["tensor"].shape) for path in (tmp_path / "run/cache").glob("latents-*")]
    assert sorted(cached) == [(8, 2, 4, 4), (8, 3, 4, 8)]


@leaves_pipes
def test_sample_videos_have_the_rate_of_the_clips(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    for name, fps in (("a", 20), ("b", 20), ("c", 10)):
        write_video(tmp_path / f"data/{name}.mp4", 25, height=16, width=16, fps=fps)
        (tmp_path / f"data/{name}.txt").write_text("a red circle")
    rates: list[float] = []
    monkeypatch.setattr("vidsparse.finetune.finetune", lambda *_, fps, **__: rates.append(fps) or tmp_path)
    asked = ["--out", "run", "--frames", 5, "--size", "16x16", "--set", "tile=(1,2,2)", "--cpu", "--videos", 1]
    for more in ([], ["--fps", 7.5], ["--fps", 0]):
        assert command(*asked, "--data", "data", *more)[0] == 0
    assert command(*asked, "--fps", 7.5)[0] == 0, "drawn videos have one rate"
    assert rates == [12, 7.5, pytest.approx(20.0), 12]


def test_a_dry_run_writes_nothing(command: Any, tmp_path: Path) -> None:
    asked = ["--out", "run", "--videos", 6, "--steps", 3, "--batch", 2, "--cpu", "--rank", 8, "--offload-activations"]
    code, out, errors = command(*asked, "--frames", 65, "--validation-share", 0.2, "--dry-run")
    assert code == 0, errors
    said = " ".join(out.split())
    # The first expert, with tokens of 2x2 latents.
    assert "5 of 65 frames, 128x128: 17x16x16 = 4,352 tokens" in said and "3 of 2 videos each: 1.2 epochs" in said
    assert "MB of activations; " in said and "in the CPU's memory" in said
    assert said.endswith("nothing was loaded: leave out --dry-run to train")
    assert not list(tmp_path.iterdir())


def test_a_dry_run_plans_for_processes_that_share_a_clip(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["--out", "run", "--videos", 6, "--frames", 9, "--size", "16x16", "--cpu"]
    asked += ["--context-parallel", 3]
    code, out, errors = command(*asked, "--dry-run")
    assert code == 0, errors
    assert "of 1 video each, in 3 processes, 3 to a clip" in " ".join(out.split())
    monkeypatch.setenv("WORLD_SIZE", "6")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    code, out, errors = command(*asked, "--dry-run")
    assert code == 0, errors
    assert "of 2 videos each, in 6 processes, 3 to a clip" in " ".join(out.split())
    assert "divided among the processes, but for two blocks and those outside of blocks" in " ".join(out.split())
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, out, errors = command(*asked, "--dry-run")
    assert (code, out) == (1, "") and "context_parallel=3 does not divide the 2 processes" in errors
    monkeypatch.undo()
    code, out, errors = command(*asked)
    assert (code, out) == (1, "") and "context_parallel=3 does not divide the 1 process" in errors


def test_a_dry_run_counts_what_deepspeed_divides(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["--out", "run", "--videos", 6, "--frames", 9, "--size", "16x16", "--cpu"]
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    code, out, errors = command(*asked, "--dry-run")
    assert code == 0, errors
    assert "DeepSpeed gradients and optimizer states of the LoRA divided among the processes" in " ".join(out.split())
    code, out, errors = command(*asked, "--dry-run", "--optimizer", "muon")
    assert (code, out) == (1, "") and "optimizer='muon' cannot be combined with DeepSpeed" in errors


def test_nf4_is_planned_for_anywhere_and_trained_with_cuda(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidsparse.finetune.memory.base.find_spec", lambda package: None)
    monkeypatch.setattr("vidsparse.generation.pipeline.load_pipeline", None)
    asked = [
        "--out",
        "run",
        "--frames",
        9,
        "--size",
        "16x16",
        "--videos",
        2,
        "--cpu",
        "--rank",
        2,
    ]
    code, out, errors = command(*asked, "--base", "nf4", "--dry-run")
    assert code == 0, errors
    assert "nf4, on the device; without gradient checkpointing" in " ".join(out.split())
    code, out, errors = command(*asked, "--base", "nf4")
    assert (code, out) == (1, "") and errors.splitlines()[-1].startswith("error: base='nf4' needs a GPU with CUDA")


def test_a_base_in_int8_that_comes_and_goes(command: Any, tmp_path: Path, cache: Path) -> None:
    pytest.importorskip("torchao")
    asked = [
        "--out",
        "run",
        "--frames",
        9,
        "--size",
        "16x16",
        "--videos",
        2,
        "--rank",
        2,
        "--cpu",
    ]
    asked += [
        "--cache",
        cache,
        "--set",
        "tile=(1,2,2)",
        "--steps",
        1,
        "--base",
        "int8",
        "--offload-base",
        "--log-every",
        1,
    ]
    code, out, errors = command(*asked, "--dry-run")
    assert code == 0, errors
    said = " ".join(out.split())
    assert "int8, in the CPU's memory, but for two blocks; with gradient checkpointing" in said
    code, _, errors = command(*asked)
    assert code == 0, errors
    assert (tmp_path / "run/samples/step-0000001-0.mp4").is_file()
    weights = load_file(tmp_path / "run/pytorch_lora_weights.safetensors")
    assert weights and all(weight.isfinite().all() for weight in weights.values())


def test_options_by_the_names_of_diffusers_in_a_file(command: Any, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "output-dir: run\nmax-train-steps: 3\ngradient-accumulation-steps: 2\nlr-warmup-steps: 1\nlora-alpha: 4\n"
        "lr-scheduler: cosine\nmixed-precision: 'no'\nmax-grad-norm: 0.5\ncheckpointing-steps: 7\nvideos: 6\n"
    )
    code, out, errors = command("--config", "run.yaml", "--cpu", "--dry-run")
    assert code == 0, errors
    assert "3 of 2 videos each: 1 epochs" in " ".join(out.split())


def test_a_signal_ends_with_how_to_go_on(tmp_path: Path) -> None:
    asked = ["--frames", 9, "--size", "16x16", "--videos", 2, "--rank", 2, "--cpu", "--precision", "no", "--no-samples"]
    asked += ["--set", "tile=(1,2,2)", "--steps", 100_000, "--log-every", 1, "-o", "run"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "vidsparse", "finetune", *map(str, asked)]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if re.match(r"step \d+ of 100,000, loss .*, .* seconds a step, .* left", line):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 130, "".join(said) + rest
    finally:
        process.kill()
        process.communicate()
    (saved,) = (tmp_path / "run/checkpoints").iterdir()
    last = f"stopped; step {int(saved.name[5:])} is saved, and the same command goes on from there"
    assert rest.splitlines()[-1] == last
    assert (saved / "pytorch_lora_weights.safetensors").is_file()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["train", "dry run"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizer", "adamw-8bit"], "optimizer='adamw-8bit' needs torchao on cpu, without CUDA"),
        (["--optimizer", "muon", "--dora"], "optimizer='muon' trains matrices alone, and dora adds vectors"),
        (["--precision", "fp16"], "precision='fp16' needs a GPU; use 'bf16' on a CPU"),
    ],
)
def test_what_the_device_cannot_do_is_refused_before_the_model_is_loaded(
    command: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str, dry: list[str]
) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda package: package == "bitsandbytes" or None)
    monkeypatch.setattr("vidsparse.generation.pipeline.load_pipeline", None)
    code, out, errors = command("--out", "run", "--cpu", *arguments, *dry)
    assert (code, out) == (1, "") and errors.splitlines()[-1].startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("name", "precision"), [("no", "no"), ("fp32", "no"), ("bf16", "bf16"), ("bfloat16", "bf16"), ("half", "fp16")]
)
def test_a_precision_has_the_names_of_dtypes_too(name: str, precision: str) -> None:
    arguments = ["--precision", name, "-o", "out"]
    assert get_command(app).commands["finetune"].make_context("finetune", arguments).params["precision"] == precision  # type: ignore[attr-defined]


def test_launchers_leave_each_option_to_the_command() -> None:
    params = get_command(app).commands["finetune"].params  # type: ignore[attr-defined]
    options = [name for param in params for name in (*param.opts, *param.secondary_opts)]
    for parser in (torchrun_parser(), launch_command_parser()):
        # They take a beginning that several of their own options share for an error, wherever it stands.
        parsed = parser.parse_args(["--no-python", "vidsparse", "finetune", *options])
        assert parsed.training_script_args == ["finetune", *options]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rank", 0], "rank=0 must be 1 or more"),
        (["--size", "0x16"], "width 0 of the clips must be a multiple of"),
        (["--data", ".", "--frames", 10, "--size", "16x16"], "10 frames do not fit the VAE's stride of 4 in time"),
        (["--data", ".", "--targets", "to_z"], "targets to_z do not exist; choose from"),
        (["--size", "large"], "--size 'large' must be WIDTHxHEIGHT in pixels, such as 832x480"),
        (["--frames", 10, "--size", "16x16"], "10 frames do not fit the VAE's stride of 4 in time; use 9 or 13"),
        (["--targets", "to_z"], "targets to_z do not exist; choose from"),
        (["--data", "nowhere"], "no folder nowhere; give one with videos and their captions"),
        (["--pattern", "spiral"], "pattern 'spiral' is unknown"),
        (["--positions", "ntk"], "positions='ntk' is unknown; choose one of plain, riflex"),
        (["--model", "nowhere"], "model 'nowhere' is unknown"),
        (["--validation-data", "nowhere"], "--validation-data: no folder nowhere; give one with videos"),
        (["--validation-share", 1], "validation_share=1.0 must be in [0, 1), a part of the videos"),
        (["--loss-weighting", "min_snr"], "is not for a model that predicts flow; choose one of none"),
        (["--lr-scheduler", "sine"], "lr_scheduler='sine' is unknown; choose one of constant"),
        (["--exclude", "to_z"], "exclude to_z do not exist; choose from"),
    ],
)
def test_bad_options_are_one_line(command: Any, tmp_path: Path, arguments: list[object], message: str) -> None:
    code, out, errors = command("--out", "run", "--videos", 1, "--cpu", *arguments)
    assert (code, out) == (1, "")
    said = errors.splitlines()[-1]  # before it, the bars of the libraries that load the model
    assert said.startswith("error: ") and message in said and "Traceback" not in errors
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("*.safetensors"))
