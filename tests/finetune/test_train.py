"""The LoRA training end to end, on a tiny random Wan pipeline and drawn videos."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from tiny_training import PATTERN, SMALL, assert_same, lines, measured, pipeline, train

from vidsparse import (
    BlockMap,
    Context,
    Dense,
    Pattern,
    Radial,
    Reuse,
    StepSchedule,
    TopBlocks,
    VideoGrid,
    load_lora,
    sparsify,
)
from vidsparse.finetune.families.task import ATTENTION
from vidsparse.finetune.samples import write_samples
from vidsparse.lora.files import read_recipe


def test_the_loss_falls_and_the_log_says_what_ran(tmp_path: Path, cache: Path) -> None:
    weights = train(tmp_path, cache, steps=36, batch=2, log_every=12, learning_rate=1e-2, gradient_checkpointing=True)
    log = lines(tmp_path)
    assert [line["step"] for line in log] == [12, 24, 36]
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
    more = train(tmp_path / "more", cache, start=start, targets=(*ATTENTION, "ffn.net.2"), **still)
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
    learnt = torch.load(max((tmp_path / "checkpoints").iterdir()) / "state.pt", weights_only=True)["weights"]
    assert {weight.dtype for weight in learnt.values()} == {torch.float32}
    stored = {name.replace(".default", ""): weight.bfloat16() for name, weight in learnt.items()}
    assert_same({name.removeprefix("transformer."): weight for name, weight in weights.items()}, stored)


def test_the_log_goes_on_from_the_checkpoint(tmp_path: Path, cache: Path) -> None:
    whole = train(tmp_path / "whole", cache, steps=8, save_every=3)
    train(tmp_path / "parts", cache, steps=5, save_every=3)
    shutil.rmtree(tmp_path / "parts/checkpoints/step-0000005")  # as if it had been killed before
    with (tmp_path / "parts/log.jsonl").open("a") as log:
        log.write('{"step": 6, "lo')
    assert_same(train(tmp_path / "parts", cache, steps=8, save_every=3), whole)
    found, expected = ([(x["step"], x["loss"]) for x in lines(tmp_path / name)] for name in ("parts", "whole"))
    assert found == expected and [step for step, _ in found] == [2, 4, 6, 8]


def test_nothing_is_kept_from_one_video_to_the_next(tmp_path: Path, cache: Path) -> None:
    blocks = TopBlocks(density=0.5, tile=(1, 2, 2))
    assert_same(train(tmp_path / "kept", cache, pattern=Reuse(blocks)), train(tmp_path / "anew", cache, pattern=blocks))


def test_the_running_average_is_what_is_saved_and_stays(tmp_path: Path, cache: Path) -> None:
    plain, averaged = (train(tmp_path / str(ema), cache, pipe := pipeline(), ema=ema) for ema in (None, 0.5))
    assert any(not torch.equal(plain[name], averaged[name]) for name in plain)
    stays = {name.replace(".default", ""): p for name, p in pipe.transformer.named_parameters() if "lora" in name}
    assert_same({f"transformer.{name}": weight for name, weight in stays.items()}, averaged)
    # Both trained the same weights: the checkpoints agree.
    states = [torch.load(tmp_path / str(ema) / "checkpoints/step-0000004/state.pt")["weights"] for ema in (None, 0.5)]
    assert_same(*states)


def test_diffusers_alone_loads_it_in_a_fresh_process(tmp_path: Path, cache: Path) -> None:
    pipe = pipeline()
    pipe.save_pretrained(tmp_path / "base")
    hidden, step, text = torch.randn(1, 8, 3, 4, 4), torch.tensor([500.0]), torch.randn(1, 5, 64)
    before = pipe.transformer(hidden, step, text)[0].detach()
    train(tmp_path / "lora", cache, pipe)
    after = pipe.transformer.eval()(hidden, step, text)[0].detach()
    assert (after - before).abs().max() > 1e-3
    torch.save((hidden, step, text, after), tmp_path / "expected.pt")
    code = """
        import sys
        import torch
        from diffusers import WanPipeline

        pipe = WanPipeline.from_pretrained("base")
        pipe.load_lora_weights("lora")
        *inputs, expected = torch.load("expected.pt")
        with torch.no_grad():
            torch.testing.assert_close(pipe.transformer(*inputs)[0], expected)
        assert not any(name.startswith("vidsparse") for name in sys.modules)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    online = {name: value for name, value in os.environ.items() if not name.endswith("OFFLINE")}  # asks for file names
    done = subprocess.run(command, cwd=tmp_path, env=online, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_gradients_through_sparse_attention_are_those_of_the_reference() -> None:
    transformer = pipeline().transformer
    transformer.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "ffn.2"], init_lora_weights=False))
    hidden, step, text = torch.randn(2, 8, 3, 4, 4), torch.tensor([500.0]), torch.randn(2, 5, 64)
    learned = [p for name, p in transformer.named_parameters() if "lora" in name]
    gradients = []
    for impl in ("auto", "reference"):
        with sparsify(transformer, Radial(density=0.5, tile=(1, 2, 2)), impl=impl) as run:
            loss = transformer(hidden, step, text)[0].square().mean()
            gradients.append(torch.autograd.grad(loss, learned))
            assert run.report().flops_saved > 0.2
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@dataclass(frozen=True)
class Own(Pattern):
    """Of a user's script: no file can name it."""

    density: float = 0.5

    def plan(self, grid: VideoGrid, context: Context = Context()) -> BlockMap:  # noqa: B008
        return Radial(density=self.density, tile=(1, 2, 2)).plan(grid)


Own.__module__ = "__main__"


def test_a_pattern_of_ones_own(tmp_path: Path, cache: Path) -> None:
    said: list[str] = []
    own = train(tmp_path / "own", cache, pattern=StepSchedule(Own(), dense_steps=3), say=said.append)
    assert len(said) == 1 and re.match(r"the LoRA's file cannot name StepSchedule\(.*Own\(density=0.5\)", said[0])
    recipe = read_recipe(tmp_path / "own")
    assert recipe.pattern is None and recipe.frames == 9
    radial = StepSchedule(Radial(density=0.5, tile=(1, 2, 2)), dense_steps=3)
    assert_same(own, train(tmp_path / "radial", cache, pattern=radial))


def test_the_pipeline_is_left_with_the_lora_and_without_sparse_attention(tmp_path: Path, cache: Path) -> None:
    pipe = pipeline()
    before = dict(pipe.transformer.attn_processors)
    train(tmp_path, cache, pipe)
    assert all(pipe.transformer.attn_processors[name] is processor for name, processor in before.items())
    assert pipe.get_active_adapters() == ["default"]
    with pytest.raises(ValueError, match=r"already has a LoRA; remove it with pipe\.unload_lora_weights"):
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
    assert videos == [f"step-{step:07d}-{i}.mp4" for step in (0, 2, 4) for i in range(2)]
    # Sampling leaves no trace, in the training, its log or the pipeline.
    assert_same(sampled, plain)
    found, expected = ([measured(line) for line in lines(tmp_path / name)] for name in ("sampled", "plain"))
    assert found == expected
    assert pipe.config["text_encoder"] == pipeline().config["text_encoder"] and pipe.text_encoder is not None


def test_another_sampler_and_shift_are_trained_for_and_taken_out_again(tmp_path: Path, cache: Path) -> None:
    pipe, prompts = pipeline(), ("a red circle moving left on a blue background",)
    before = pipe.scheduler
    train(tmp_path / "own", cache)
    train(tmp_path / "sde", cache, pipe, sampler="sde", flow_shift=9.0, sample_every=4, sample_prompts=prompts)
    recipe = read_recipe(tmp_path / "sde")
    assert (recipe.sampler, recipe.flow_shift) == ("sde", 9.0) and pipe.scheduler is before
    assert len(list((tmp_path / "sde" / "samples").iterdir())) == 2  # at step 0 and at step 4
    losses = [[line["loss"] for line in lines(tmp_path / name)] for name in ("own", "sde")]
    assert all(own != other for own, other in zip(*losses, strict=True)), "the noise levels are others"


def test_the_expert_of_low_noise(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampled_with: list[str] = []
    positions = []

    def write(pipe: Any, *arguments: Any) -> Any:
        sampled_with.append(str(pipe.transformer.attn_processors))
        positions.extend(expert.rope.freqs_cos for expert in (pipe.transformer, pipe.transformer_2))
        return write_samples(pipe, *arguments)

    monkeypatch.setattr("vidsparse.finetune.samples.write_samples", write)
    pipe = pipeline()
    pipe.register_modules(transformer_2=pipeline().transformer.eval())
    pipe.register_to_config(boundary_ratio=0.9)
    sampled = dict(sample_every=4, sample_prompts=("a red circle moving left on a blue background",))
    lengths: dict[str, Any] = dict(trained_frames=5, positions="yarn")
    weights = train(tmp_path, cache, pipe, transformer="transformer_2", **lengths, **sampled)
    assert all(weight.abs().max() > 0 for weight in weights.values())
    assert pipe.transformer_2.training and not pipe.transformer.training and not pipe.vae.training
    assert not hasattr(pipe.transformer, "peft_config") and read_recipe(tmp_path).transformer == "transformer_2"
    assert list((tmp_path / "samples").glob("*.mp4"))
    assert "Sparse" in sampled_with[0], "the other expert attends as in a generation"
    assert "Sparse" not in str(pipe.transformer.attn_processors)
    assert torch.equal(*positions[:2]), "and has the positions of the longer videos"
    assert not torch.equal(positions[0], pipe.transformer.rope.freqs_cos)


def test_dense_and_sparse_trainings_differ(tmp_path: Path, cache: Path) -> None:
    dense = train(tmp_path / "dense", cache, pattern=Dense())
    sparse = train(tmp_path / "sparse", cache, pattern=Radial(density=0.3, tile=(1, 2, 2)))
    assert any(not torch.equal(dense[name], sparse[name]) for name in dense)
    assert lines(tmp_path / "dense")[-1]["flops_saved"] == 0.0
