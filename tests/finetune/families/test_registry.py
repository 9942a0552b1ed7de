"""Each family that can be trained, beside the pipeline of diffusers that generates with it."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from safetensors.torch import load_file
from tiny_training import without_pictures
from trained_families import CASES, Case
from twins import ignores_warnings

import vidsparse
from vidsparse import Dense, Radial, StepSchedule
from vidsparse.finetune import Clip, Settings, drawn_clips, finetune
from vidsparse.finetune.data.encoders import Encoders
from vidsparse.finetune.draws.example import Example
from vidsparse.finetune.families import TrainingTask, task_for
from vidsparse.finetune.families.ltx2 import LTX2ImageTask
from vidsparse.finetune.families.task import MAIN, first_frame, statistics
from vidsparse.finetune.low_rank import add_lora
from vidsparse.finetune.memory.plan import plan_training
from vidsparse.finetune.objective import loss_of
from vidsparse.generation.models import find_model
from vidsparse.generation.scheduler import build_scheduler
from vidsparse.runtime.registry import adapter_for

pytestmark = [
    ignores_warnings,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.parametrize("case", CASES.values(), ids=CASES),
]
LEVEL = 0.7
# Arguments of the pipeline's, and those that a transformer else computes by itself.
OWN = ("return_dict", "video_coords", "audio_coords")


@pytest.fixture(autouse=True)
def no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some pipelines take a sample of the image's latents, a training takes their mean."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())


@pytest.fixture(autouse=True)
def coarse_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """LTX-2 compresses its image with PyAV, which the tests have no need for."""
    for place in ("utils", "pipeline_ltx2_image2video"):
        path = f"diffusers.pipelines.ltx2.{place}.apply_image_conditioning_crf"
        monkeypatch.setattr(path, lambda image, crf: image // crf * crf)
    monkeypatch.setattr(LTX2ImageTask, "packages", ())


def clip_of(case: Case) -> Clip:
    return drawn_clips(1, case.bucket)[0]


def encoded(pipe: Any, case: Case) -> tuple[TrainingTask, Example]:
    """The first clip as an example, encoded as a training does it."""
    encoders, clip = Encoders(pipe), clip_of(case)
    seen = clip.read() if encoders.task.sees_image else None
    video, text = encoders.encode_video(clip.read()), encoders.encode_text(clip.caption, seen)
    more = {name: x[None] for found in (video, text) for name, x in found.items() if name != MAIN}
    latents = video[MAIN][None]
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    return encoders.task, Example(latents, noise, text[MAIN][None], torch.tensor([LEVEL]), more)


def generate(pipe: Any, case: Case, steps: int, output: str) -> Any:
    asked: dict[str, Any] = {"height": case.bucket.height, "width": case.bucket.width}
    if task_for(pipe).from_image:
        asked["image"] = first_frame(clip_of(case).read())
    if type(pipe).__name__ == "HunyuanVideo15ImageToVideoPipeline":  # takes its size from the image
        del asked["height"], asked["width"]
    asked |= {"num_frames": case.bucket.frames, "num_inference_steps": steps, "output_type": output, **case.call}
    made = pipe(prompt=clip_of(case).caption, generator=torch.Generator().manual_seed(3), **asked).frames
    return made[-1] if isinstance(made, list) else made  # FramePack: after each section


def made_latents(pipe: Any, case: Case, steps: int, example: Example) -> torch.Tensor:
    """The latents of a generation, normalised, [1, channels, frames, height, width]."""
    made = generate(pipe, case, steps, "latent")
    if task_for(pipe).family == "LTX-2":
        return torch.as_tensor(pipe._normalize_latents(made, pipe.vae.latents_mean, pipe.vae.latents_std))
    return layout(case, made, example)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.allclose(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def test_a_call_is_the_one_of_the_pipeline(case: Case) -> None:
    pipe = case.pipe()
    task, example = encoded(pipe, case)
    calls: list[dict[str, Any]] = []
    hook = pipe.transformer.register_forward_pre_hook(lambda m, a, named: calls.append(named), with_kwargs=True)
    generate(pipe, case, 2, "latent")
    hook.remove()
    ours = task.arguments(task.noisy(example), example, torch.float32)
    theirs = calls[case.compared]
    theirs = {name: x for name, x in theirs.items() if name in ours or (x is not None and name not in OWN)}
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - {"hidden_states", "timestep", "audio_timestep", "sigma", "audio_hidden_states"}:
        assert same(ours[name], theirs[name]), name
    for name in ours.keys() & {"hidden_states", "timestep", "audio_timestep", "sigma", "audio_hidden_states"}:
        assert ours[name].shape == theirs[name].shape, name
    channels = example.latents.shape[1]
    if task.from_image and not case.kept:  # what stands beside the noisy latents
        beside = [layout(case, call["hidden_states"], example)[:, channels:] for call in (ours, theirs)]
        torch.testing.assert_close(*beside, atol=1e-5, rtol=0)


def layout(case: Case, hidden: torch.Tensor, example: Example) -> torch.Tensor:
    """Hidden states as [1, channels, frames, height, width]."""
    if case.hidden == "tokens":
        return hidden.transpose(1, 2).unflatten(2, example.latents.shape[2:])
    return {"video": hidden, "frames": hidden.transpose(1, 2), "last": hidden.movedim(-1, 1)}[case.hidden]


def laid_out(case: Case, answer: torch.Tensor) -> torch.Tensor:
    """The inverse of `layout`."""
    if case.hidden == "tokens":
        return answer.flatten(2).transpose(1, 2)
    return {"video": answer, "frames": answer.transpose(1, 2), "last": answer.movedim(1, -1)}[case.hidden]


def test_the_target_generates_the_clip(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that answers the target gives the clip back, under the pipeline's scheduler and through its decoder.

    Five steps divide the 1000 timesteps of CogVideoX, whose scheduler else ends above timestep 0.
    """
    pipe = case.pipe()
    task, example = encoded(pipe, case)
    clean = example.latents
    if case.kept:
        clean = torch.cat([example.more["first"], clean[:, :, case.kept :]], dim=2)
    channels = clean.shape[1]

    def perfect(self: Any, *args: Any, **named: Any) -> Any:
        noisy = layout(case, named["hidden_states"], example)[:, :channels].float()
        if task.prediction == "v_prediction":
            level = (named["timestep"].flatten()[:1] + 0.5) / 1000
            alpha = pipe.scheduler.alphas_cumprod[named["timestep"].long()[0]]
            noise = (noisy - alpha**0.5 * clean) / (1 - alpha) ** 0.5
        else:
            told = named["timestep"].flatten().max()
            # UniPC tells whole timesteps, and computes with the levels that they were rounded from.
            level = pipe.scheduler.sigmas[(pipe.scheduler.timesteps - told).abs().argmin()][None]
            level = 1 - level if task.family == "Mochi" else level
            given = clean.shape[2] - noisy.shape[2]  # frames that the call does not have
            noise = clean[:, :, given:] + (noisy - clean[:, :, given:]) / level
            noise = torch.cat([clean[:, :, :given], noise], dim=2)
        target = task.target(Example(clean, noise, example.text, level, example.more))
        answer = torch.cat([torch.zeros_like(noisy[:, :, target.shape[2] :]), target], dim=2)
        answer = laid_out(case, answer)
        if "audio_hidden_states" in named:
            return answer, torch.zeros_like(named["audio_hidden_states"])
        if named.get("return_dict", True):
            return diffusers.models.modeling_outputs.Transformer2DModelOutput(sample=answer)
        return (answer,)

    for name in ("transformer", "transformer_2"):
        if isinstance(model := getattr(pipe, name, None), torch.nn.Module):
            monkeypatch.setattr(model, "forward", perfect.__get__(model))
    if task.family == "Kandinsky 5" and case.kept:  # it changes the first four frames afterwards
        monkeypatch.setattr(pipe, "normalize_first_frame", lambda latents: latents)
    found = made_latents(pipe, case, 5, example)
    first = case.kept + case.dropped
    torch.testing.assert_close(found[:, :, case.kept :], clean[:, :, first:], atol=2e-3, rtol=1e-3)
    if not case.kept:
        video = clip_of(case).read()[None]
        with torch.no_grad():
            known = pipe.vae.decode(pipe.vae.encode(video).latent_dist.mean, return_dict=False)[0]
        expected = pipe.video_processor.postprocess_video(known, output_type="np")
        made = generate(pipe, case, 5, "np")
        assert abs(made - expected[:, -made.shape[1] :]).max() < 5e-3


def test_the_noise_levels_are_those_of_a_generation(case: Case) -> None:
    """Also with another shift, where the scheduler takes one."""
    pipe = case.pipe()
    with contextlib.suppress(NotImplementedError):
        pipe.scheduler = build_scheduler(pipe.scheduler, flow_shift=9.0)
    generate(pipe, case, 4, "latent")
    told = (pipe.scheduler.timesteps.double() / pipe.scheduler.config.num_train_timesteps).tolist()
    task = task_for(pipe)
    told = [1 - level for level in told] if task.family == "Mochi" else told
    size = case.bucket.frames, case.bucket.height, case.bucket.width
    assert task.levels(pipe.scheduler, 4, task.view(*size)) == pytest.approx(told, abs=1e-4)


def test_latents_are_the_inverse_of_the_decoder_s(case: Case) -> None:
    pipe = case.pipe()
    vae = pipe.vae
    middle, spread = statistics(vae, "latents_mean"), statistics(vae, "latents_std")
    with torch.no_grad():
        mean = vae.encode(clip_of(case).read()[None]).latent_dist.mean[0]
    latents = Encoders(pipe).encode_video(clip_of(case).read())[MAIN][:, -mean.shape[1] :]
    back = latents / getattr(vae.config, "scaling_factor", 1.0)
    back = back if middle is None or spread is None else back * spread + middle
    torch.testing.assert_close(back, mean, rtol=1e-5, atol=1e-5)


SMALL: dict[str, Any] = dict(rank=4, steps=4, learning_rate=3e-3, warmup=1, precision="no", log_every=1, save_every=2)
SMALL |= dict(caption_dropout=0.0, gradient_checkpointing=True, inference_steps=10, samples=False, log_with="none")
SPARSE = Radial(density=0.5, tile=(1, 2, 2))


@without_pictures
def train(case: Case, folder: Path, cache: Path) -> tuple[Any, list[dict[str, Any]]]:
    """Train on one clip, densely and sparsely, which measures the loss too; the weights and the log."""
    AcceleratorState._reset_state(reset_partial_state=True)
    settings = Settings(StepSchedule(SPARSE, dense_steps=case.dense_steps), **SMALL)
    clip, said = clip_of(case), []
    finetune(
        case.pipe(),
        [clip],
        settings,
        folder,
        base="tiny",
        cache=cache,
        validation_clips=[clip],
        cpu=True,
        say=said.append,
    )
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return load_file(folder / "pytorch_lora_weights.safetensors"), lines


def test_a_lora_learns_resumes_and_loads(case: Case, tmp_path: Path) -> None:
    whole, lines = train(case, tmp_path / "whole", tmp_path / "cache")
    losses = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert losses[-1] < losses[0]
    saved = [line["flops_saved"] for line in lines if "flops_saved" in line]
    assert min(saved) == 0.0 < max(saved), "steps of one kind alone were learned from"

    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    # As if it had been killed before the last two steps.
    shutil.rmtree(tmp_path / "parts/checkpoints/step-0000004")
    (tmp_path / "parts/pytorch_lora_weights.safetensors").unlink()
    kept = "".join(f"{json.dumps(line)}\n" for line in lines if line["step"] <= 2)
    (tmp_path / "parts/log.jsonl").write_text(kept)
    parts, again = train(case, tmp_path / "parts", tmp_path / "cache")
    assert [line["step"] for line in again] == [line["step"] for line in lines] and lines[-1]["step"] == 4
    assert parts.keys() == whole.keys() and all(torch.equal(parts[name], whole[name]) for name in whole)

    plain = _answer(case.pipe(), case)
    alone = case.pipe()
    if case.loads:
        alone.load_lora_weights(tmp_path / "whole")
    else:
        file = {"prefix": "transformer", "weight_name": "pytorch_lora_weights.safetensors"}
        alone.transformer.load_lora_adapter(str(tmp_path / "whole"), **file)
    theirs = _answer(alone, case)
    assert not torch.allclose(plain, theirs, atol=1e-6)
    ours = case.pipe()
    vidsparse.load_lora(ours, tmp_path / "whole")
    torch.testing.assert_close(_answer(ours, case), theirs)


def test_every_layer_of_the_lora_learns(case: Case) -> None:
    """One that no call reaches has no gradient, for which several processes would wait."""
    pipe = case.pipe()
    task, example = encoded(pipe, case)
    weights = add_lora(pipe, Settings(Dense(), rank=2).of_family(task))
    loss_of(pipe.transformer, example, task)[0].backward()
    assert [name for name, weight in weights.items() if weight.grad is None] == []
    changed = {name.rsplit(".lora", 1)[0] for name in weights}
    known = adapter_for(pipe.transformer).self_attentions(pipe.transformer)
    for name, attention in known.items():
        own = {f"{name}.{part}" for part, layer in attention.named_modules() if hasattr(layer, "lora_A")}
        assert len(own & changed) >= 3, f"queries, keys and values of {name}"


def test_a_blank_example_has_the_shape_of_a_real_one(case: Case) -> None:
    pipe = case.pipe()
    task, example = encoded(pipe, case)
    config, size = dict(pipe.transformer.config), (case.bucket.frames, case.bucket.height, case.bucket.width)
    blank = task.blank(config, task.view(*size), 8)
    assert blank.latents.shape == example.latents.shape and blank.text.shape[2] == example.text.shape[2]
    assert blank.more.keys() == example.more.keys()
    for name, tensor in blank.more.items():
        assert tensor.ndim == example.more[name].ndim, name
        if name in ("first", "beside"):
            assert tensor.shape == example.more[name].shape, name


def test_a_dry_run_predicts_a_step(case: Case, tmp_path: Path) -> None:
    pipe, settings = case.pipe(), Settings(Dense(), rank=2, precision="no")
    config = pipe.transformer.config
    if config.get("image_dim") and not config.get("added_kv_proj_dim"):
        pytest.skip("this small model embeds an image that none of its layers reads, which a real one does not")
    pipe.save_pretrained(tmp_path)
    found = plan_training(find_model(str(tmp_path)), settings, [clip_of(case)], torch.float32).largest
    weights = add_lora(pipe, settings.of_family(task_for(pipe)))
    assert found.lora == sum(8 * weight.numel() for weight in weights.values())
    assert found.activations > 0 and found.flops > 0 and found.density == 1


@torch.no_grad()
def _answer(pipe: Any, case: Case) -> torch.Tensor:
    task, example = encoded(pipe, case)
    answers: list[torch.Tensor] = []

    def call(**arguments: Any) -> Any:
        out = pipe.transformer(**arguments)
        answers.append(out if isinstance(out, torch.Tensor) else out[0])
        return out

    loss_of(call, example, task)
    return answers[0]
