"""The LoRA training end to end, on a tiny random Wan pipeline and drawn videos."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState
from diffusers import UniPCMultistepScheduler, WanPipeline
from safetensors.torch import load_file
from torch.distributed.run import get_args_parser as torchrun_parser
from typer.main import get_command

from vidsparse import Dense, Radial, Reuse, StepSchedule, TopBlocks, load_lora
from vidsparse.cli import app
from vidsparse.finetune import Bucket, Settings, drawn_clips, finetune
from vidsparse.lora import read_recipe
from vidsparse.shapes import model

BUCKET = Bucket(9, 16, 16)  # 3x4x4 tokens
PATTERN = StepSchedule(Radial(density=0.5, tile=(1, 2, 2)), dense_steps=3, dense_layers=(0,))
SMALL: dict[str, Any] = dict(rank=4, steps=4, learning_rate=3e-3, warmup=2, precision="no", log_every=2, save_every=2)
SMALL |= dict(caption_dropout=0.0, gradient_checkpointing=False, inference_steps=20)


@pytest.fixture(autouse=True)
def accelerate_forgets() -> Iterator[None]:
    """Its settings are of the whole process, and each test has others."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def pipeline(**changes: Any) -> WanPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return WanPipeline(
            tokenizer=model.build_tokenizer(),
            text_encoder=model.build_text_encoder().eval(),
            vae=model.build_vae().eval(),
            transformer=model.build_transformer(num_layers=2, num_attention_heads=1, **changes).eval(),
            scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def train(folder: Path, cache: Path, pipe: Any = None, videos: int = 4, **changes: Any) -> dict[str, torch.Tensor]:
    """Train, and read the weights that were written."""
    settings = Settings(**{"pattern": PATTERN, **SMALL, **changes})
    sampling = dict(height=16, width=16, num_frames=9, num_inference_steps=2, max_sequence_length=model.MAX_WORDS)
    AcceleratorState._reset_state(reset_partial_state=True)
    finetune(
        pipeline() if pipe is None else pipe,
        drawn_clips(videos, BUCKET),
        settings,
        folder,
        base="tiny",
        sampling=sampling,
        cache=cache,
        cpu=True,
        say=lambda text: None,
    )
    return load_file(folder / "pytorch_lora_weights.safetensors")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_the_loss_falls_and_the_log_says_what_ran(tmp_path: Path, cache: Path) -> None:
    weights = train(tmp_path, cache, steps=60, batch=4, log_every=20, gradient_checkpointing=True)
    log = lines(tmp_path)
    assert [line["step"] for line in log] == [20, 40, 60]
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]
    assert all(0.0 < line["flops_saved"] < 0.5 and 0 < line["density"] < 1 for line in log)
    assert len(weights) == 2 * 2 * 8  # A and B of q, k, v, out in the two attentions of two layers
    assert all(weight.abs().max() > 0 for weight in weights.values())
    assert any((tmp_path / "tensorboard").iterdir())


def test_a_resumed_training_is_the_unbroken_one_to_the_bit(tmp_path: Path, cache: Path) -> None:
    for ema in (None, 0.9):
        whole = train(tmp_path / f"whole-{ema}", cache, steps=6, ema=ema)
        train(tmp_path / f"parts-{ema}", cache, steps=4, ema=ema)
        assert_same(train(tmp_path / f"parts-{ema}", cache, steps=6, ema=ema), whole)
        assert [line["loss"] for line in lines(tmp_path / f"whole-{ema}")] == [
            line["loss"] for line in lines(tmp_path / f"parts-{ema}")
        ]


def test_a_training_begins_with_a_lora(tmp_path: Path, cache: Path) -> None:
    before = train(tmp_path / "before", cache)
    start, still = str(tmp_path / "before"), {"steps": 1, "learning_rate": 1e-30}
    assert_same(train(tmp_path / "same", cache, start=start, **still), before)
    # With twice the alpha half the weights add the same.
    halved = train(tmp_path / "halved", cache, start=start, alpha=2 * SMALL["rank"], **still)
    assert_same(halved, {name: weight / 2 if "lora_B" in name else weight for name, weight in before.items()})
    # Targets that it does not have begin by adding nothing.
    more = train(tmp_path / "more", cache, start=start, targets=(*Settings.targets, "ffn.net.2"), **still)
    assert_same({name: weight for name, weight in more.items() if "ffn" not in name}, before)
    added = {name.rsplit(".", 2)[1]: float(weight.abs().max()) for name, weight in more.items() if "ffn" in name}
    assert added["lora_A"] > 1e-3 and added["lora_B"] < 1e-20
    further = train(tmp_path / "further", cache, start=start)
    assert all(not torch.equal(further[name], before[name]) for name in before)
    with pytest.raises(ValueError, match=r"of another training \(start was \w+, is None\)"):
        train(tmp_path / "further", cache)


def test_the_file_has_the_precision_of_the_training(tmp_path: Path, cache: Path) -> None:
    weights = train(tmp_path, cache, precision="bf16")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    # It learns in float32.
    learnt = torch.load(max((tmp_path / "checkpoints").iterdir()), weights_only=True)["weights"]
    assert {weight.dtype for weight in learnt.values()} == {torch.float32}
    stored = {name.replace(".default", ""): weight.bfloat16() for name, weight in learnt.items()}
    assert_same({name.removeprefix("transformer."): weight for name, weight in weights.items()}, stored)


def test_the_log_goes_on_from_the_checkpoint(tmp_path: Path, cache: Path) -> None:
    whole = train(tmp_path / "whole", cache, steps=8, save_every=3)
    train(tmp_path / "parts", cache, steps=5, save_every=3)
    (tmp_path / "parts/checkpoints/step-0000005.pt").unlink()  # as if it had been killed before
    with (tmp_path / "parts/log.jsonl").open("a") as log:
        log.write('{"step": 6, "lo')
    assert_same(train(tmp_path / "parts", cache, steps=8, save_every=3), whole)
    found, expected = ([(x["step"], x["loss"]) for x in lines(tmp_path / name)] for name in ("parts", "whole"))
    assert found == expected and [step for step, _ in found] == [2, 4, 6, 8]


def test_nothing_is_kept_from_one_video_to_the_next(tmp_path: Path, cache: Path) -> None:
    blocks = TopBlocks(density=0.5, tile=(1, 2, 2))
    assert_same(train(tmp_path / "kept", cache, pattern=Reuse(blocks)), train(tmp_path / "anew", cache, pattern=blocks))


def test_the_running_average_is_what_is_saved(tmp_path: Path, cache: Path) -> None:
    plain, averaged = (train(tmp_path / str(ema), cache, ema=ema) for ema in (None, 0.5))
    assert any(not torch.equal(plain[name], averaged[name]) for name in plain)
    # Both trained the same weights: the checkpoints agree.
    states = [torch.load(tmp_path / str(ema) / "checkpoints/step-0000004.pt")["weights"] for ema in (None, 0.5)]
    assert_same(*states)


def test_gradients_through_sparse_attention_are_those_of_the_reference(tmp_path: Path, cache: Path) -> None:
    """One step with the fast implementation and one with the reference move the LoRA alike."""
    from vidsparse import layer

    found = train(tmp_path / "auto", cache, steps=2)
    with pytest.MonkeyPatch.context() as patch:
        plain = layer.sparse_attention
        patch.setattr(layer, "sparse_attention", lambda *a, **k: plain(*a, **{**k, "impl": "reference"}))
        expected = train(tmp_path / "reference", cache, steps=2)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-5)


def test_the_pipeline_is_left_with_the_lora_and_without_sparse_attention(tmp_path: Path, cache: Path) -> None:
    pipe = pipeline()
    before = dict(pipe.transformer.attn_processors)
    train(tmp_path, cache, pipe)
    assert all(pipe.transformer.attn_processors[name] is processor for name, processor in before.items())
    assert pipe.get_active_adapters() == ["default"]
    with pytest.raises(ValueError, match=r"has a LoRA already; pipe\.unload_lora_weights"):
        train(tmp_path / "again", cache, pipe)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_weights_of_half_precision(tmp_path: Path, cache: Path, precision: str) -> None:
    pipe = pipeline()
    pipe.transformer.to(torch.bfloat16)
    weights = train(tmp_path, cache, pipe, precision=precision, learning_rate=0.1)
    assert all(weight.isfinite().all() for weight in weights.values())
    latents, text = torch.randn(1, 8, 3, 4, 4).bfloat16(), torch.randn(1, 5, 64).bfloat16()
    with torch.no_grad():
        without, whole = (
            pipe.transformer(latents, torch.tensor([500.0]), text, attention_kwargs={"scale": scale})[0]
            for scale in (0.0, 1.0)
        )
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.equal(without, whole)  # nothing of accelerate is left that hides diffusers' scale


def test_the_lora_restores_its_recipe(tmp_path: Path, cache: Path) -> None:
    train(tmp_path, cache, trained_frames=5, positions="riflex")
    recipe = load_lora(pipeline(), tmp_path)
    assert (recipe.pattern, recipe.frames, recipe.trained_frames) == (PATTERN, 9, 5)
    assert (recipe.positions, recipe.base, recipe.transformer) == ("riflex", "tiny", "transformer")
    assert recipe.inference_steps == 20


def test_sample_videos_show_what_was_asked_for(tmp_path: Path, cache: Path) -> None:
    prompts = ("a red circle moving left on a blue background", "a green square staying still on a black background")
    plain = train(tmp_path / "plain", cache)
    sampled = train(tmp_path / "sampled", cache, pipe := pipeline(), sample_every=2, sample_prompts=prompts)
    videos = sorted(path.name for path in (tmp_path / "sampled/samples").iterdir())
    assert videos == [f"step-{step:07d}-{i}.mp4" for step in (2, 4) for i in range(2)]
    # Sampling leaves no trace, in the training, its log or the pipeline.
    assert_same(sampled, plain)
    found, expected = ([dict(x, seconds=0) for x in lines(tmp_path / name)] for name in ("sampled", "plain"))
    assert found == expected
    assert pipe.config["text_encoder"] == pipeline().config["text_encoder"] and pipe.text_encoder is not None


def test_another_sampler_and_shift_are_trained_for_and_taken_out_again(tmp_path: Path, cache: Path) -> None:
    pipe, prompts = pipeline(), ("a red circle moving left on a blue background",)
    before = pipe.scheduler
    train(tmp_path / "own", cache)
    train(tmp_path / "sde", cache, pipe, sampler="sde", flow_shift=9.0, sample_every=4, sample_prompts=prompts)
    recipe = read_recipe(tmp_path / "sde")
    assert (recipe.sampler, recipe.flow_shift) == ("sde", 9.0) and pipe.scheduler is before
    assert len(list((tmp_path / "sde" / "samples").iterdir())) == 1
    losses = [[line["loss"] for line in lines(tmp_path / name)] for name in ("own", "sde")]
    assert all(own != other for own, other in zip(*losses, strict=True)), "the noise levels are others"


def test_the_expert_of_low_noise(tmp_path: Path, cache: Path) -> None:
    pipe = pipeline()
    pipe.register_modules(transformer_2=pipeline().transformer.eval())
    pipe.register_to_config(boundary_ratio=0.9)
    sampled = dict(sample_every=4, sample_prompts=("a red circle moving left on a blue background",))
    weights = train(tmp_path, cache, pipe, transformer="transformer_2", **sampled)
    assert all(weight.abs().max() > 0 for weight in weights.values())
    assert pipe.transformer_2.training and not pipe.transformer.training and not pipe.vae.training
    assert not hasattr(pipe.transformer, "peft_config") and read_recipe(tmp_path).transformer == "transformer_2"
    assert list((tmp_path / "samples").glob("*.mp4"))


def test_dense_and_sparse_trainings_differ(tmp_path: Path, cache: Path) -> None:
    dense = train(tmp_path / "dense", cache, pattern=Dense())
    sparse = train(tmp_path / "sparse", cache, pattern=Radial(density=0.3, tile=(1, 2, 2)))
    assert any(not torch.equal(dense[name], sparse[name]) for name in dense)
    assert lines(tmp_path / "dense")[-1]["flops_saved"] == 0.0


# Processes

WORKER = textwrap.dedent(
    """
    import gc, sys
    from pathlib import Path

    import torch
    from torch.nn.parallel import DistributedDataParallel

    sys.path.insert(0, sys.argv[1])
    import test_finetune as t
    from vidsparse.finetune import Settings, drawn_clips, finetune

    def destroy_without_ddp(group=None, destroy=torch.distributed.destroy_process_group):
        # One that outlives its process group may hang for ever, or may not.
        assert not any(type(thing) is DistributedDataParallel for thing in gc.get_objects())
        destroy(group)

    torch.distributed.destroy_process_group = destroy_without_ddp
    folder, cache, batch = Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    settings = Settings(**{"pattern": t.PATTERN, **t.SMALL, "batch": batch, "steps": int(sys.argv[5]), "save_every": 1})
    finetune(t.pipeline(), drawn_clips(4, t.BUCKET), settings, folder, base="tiny", cache=cache, cpu=True)
    """
)


def start(launcher: list[str], tmp_path: Path, cache: Path, batch: int, steps: int) -> subprocess.Popen[str]:
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    arguments = [str(Path(__file__).parent), str(tmp_path / "out"), str(cache), str(batch), str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    return subprocess.Popen([*launcher, str(worker), *arguments], env=environment, text=True, stderr=subprocess.PIPE)


def has_loopback() -> bool:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        try:
            socket.create_connection(listener.getsockname(), timeout=5).close()
        except OSError:
            return False
    return True


@pytest.mark.skipif(not has_loopback(), reason="processes cannot talk to each other: 127.0.0.1 cannot be reached")
def test_two_processes_compute_what_one_does_with_twice_the_batch(tmp_path: Path, cache: Path) -> None:
    # accelerate's own launcher starts one process on a CPU; what it sets for several is what torchrun sets.
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    # By number, not by name: a machine without a network may not be able to look up its own.
    process = start([*torchrun, "--local-addr=127.0.0.1"], tmp_path, cache, batch=1, steps=3)
    try:
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    one = train(tmp_path / "one", cache, batch=2, steps=3)
    two = load_file(tmp_path / "out/pytorch_lora_weights.safetensors")
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-6)
    losses = [[line["loss"] for line in lines(tmp_path / folder)] for folder in ("out", "one")]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)


def test_a_killed_training_goes_on(tmp_path: Path, cache: Path) -> None:
    process = start([sys.executable], tmp_path, cache, batch=1, steps=100_000)
    checkpoints = tmp_path / "out/checkpoints"
    try:
        while process.poll() is None and not list(checkpoints.glob("step-*.pt")):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors
    (checkpoints / ".step-0999999-0a.pt").write_bytes(b"half a checkpoint")
    reached = max(int(path.stem[5:]) for path in checkpoints.glob("step-*.pt"))
    settings = dict(batch=1, steps=reached + 3, save_every=1)
    assert_same(train(tmp_path / "out", cache, **settings), train(tmp_path / "whole", cache, **settings))
    assert not list(checkpoints.glob(".step-*"))


# Bad input


def test_bad_input_is_refused_before_anything_is_written(tmp_path: Path, cache: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"targets to_z: no such layers; there are .*to_q"):
        train(out, cache, targets=("to_z",))
    with pytest.raises(ValueError, match=r"transformer='transformer_2': the pipeline has none"):
        train(out, cache, transformer="transformer_2")
    with pytest.raises(ValueError, match="precision='fp16' needs a GPU"):
        train(out, cache, precision="fp16")
    with pytest.raises(ValueError, match="has no sparse step among 20"):
        train(out, cache, pattern=StepSchedule(Radial(density=0.5), dense_steps=20))
    with pytest.raises(FileNotFoundError, match="no LoRA 'nowhere'"):
        train(out, cache, start="nowhere")
    with pytest.raises(ValueError, match=r"start='shapes-long' does not fit: .*in a training of rank 4 and"):
        train(out, cache, start="shapes-long")
    assert not out.exists()


def test_checkpoints_of_another_training_are_refused(tmp_path: Path, cache: Path) -> None:
    train(tmp_path, cache)
    written = (tmp_path / "pytorch_lora_weights.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"of another training \(rank was 4, is 8\); go on with its settings"):
        train(tmp_path, cache, pipe := pipeline(), rank=8)
    assert not hasattr(pipe.transformer, "peft_config") and "Sparse" not in str(pipe.transformer.attn_processors)
    with pytest.raises(ValueError, match=r"of another training \(data was "):
        train(tmp_path, cache, videos=3)
    falling = tmp_path / "falling"
    train(falling, cache, decay=0.5)
    with pytest.raises(ValueError, match=r"of another training \(steps was 4, is 8\)"):
        train(falling, cache, decay=0.5, steps=8)
    wider = pipeline(ffn_dim=384)
    with pytest.raises(ValueError, match=r"of another training \(model was "):
        train(tmp_path, cache, wider)
    assert (tmp_path / "pytorch_lora_weights.safetensors").read_bytes() == written


def test_frames_that_the_vae_does_not_take(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ValueError, match=r"10 frames do not fit the VAE's stride of 4 in time; use 9 or 13"):
        finetune(pipeline(), drawn_clips(2, Bucket(10, 16, 16)), Settings(PATTERN), tmp_path, base="tiny", cpu=True)


def test_another_pipeline_is_not_trained(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="object is not trained here: finetune knows WanPipeline"):
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


def test_a_lora_from_the_command_line(command: Any, tmp_path: Path, cache: Path) -> None:
    asked = ["--out", "run", "--frames", 9, "--size", "16x16", "--videos", 2, "--rank", 2, "--cache", cache, "--cpu"]
    asked += ["--density", 0.5, "--set", "tile=(1,2,2)", "--dense-steps", 1, "--precision", "no", "--log-every", 1]
    code, out, errors = command(*asked, "--steps", 1)
    assert code == 0, errors
    assert out.splitlines()[-1] == "wrote the LoRA to run; vidsparse generate --lora run uses it"
    recipe = read_recipe(tmp_path / "run")
    assert (recipe.frames, recipe.trained_frames, recipe.base) == (9, 33, "shapes")
    assert recipe.pattern == StepSchedule(Radial(density=0.5, tile=(1, 2, 2)), dense_steps=1)
    AcceleratorState._reset_state(reset_partial_state=True)
    code, _, errors = command(*asked, "--steps", 2)
    assert code == 0 and "going on from step 1" in errors
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2]


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
        (["--size", "large"], "--size 'large' must be WIDTHxHEIGHT in pixels, such as 832x480"),
        (["--frames", 10, "--size", "16x16"], "10 frames do not fit the VAE's stride of 4 in time; use 9 or 13"),
        (["--targets", "to_z"], "targets to_z: no such layers; there are"),
        (["--data", "nowhere"], "no folder nowhere; give one with videos and their captions"),
        (["--pattern", "spiral"], "pattern 'spiral' is unknown"),
        (["--positions", "ntk"], "positions='ntk' is unknown; choose one of plain, riflex"),
        (["--model", "nowhere"], "model 'nowhere' is unknown"),
    ],
)
def test_bad_options_are_one_line(command: Any, tmp_path: Path, arguments: list[object], message: str) -> None:
    code, out, errors = command("--out", "run", "--videos", 1, "--cpu", *arguments)
    assert (code, out) == (1, "")
    said = errors.splitlines()[-1]  # before it, the bars of the libraries that load the model
    assert said.startswith("error: ") and message in said and "Traceback" not in errors
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("*.safetensors"))
