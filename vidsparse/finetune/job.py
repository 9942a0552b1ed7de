"""A whole training: encode the clips, move the encoders away, train the LoRA, leave the pipeline usable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vidsparse.finetune.checks import check_pipeline
from vidsparse.finetune.data.cache import encode
from vidsparse.finetune.data.clips import Clip
from vidsparse.finetune.samples import read_prompts
from vidsparse.finetune.settings import Settings
from vidsparse.finetune.train import Training, accelerator_for


def finetune(
    pipe: Any,
    clips: Sequence[Clip],
    settings: Settings,
    folder: str | Path,
    *,
    base: str,
    sampling: Mapping[str, Any] | None = None,
    fps: int = 16,
    cache: str | Path | None = None,
    cpu: bool = False,
    say: Callable[[str], None] = print,
    progress: Callable[[str, int, int, float | None], None] = lambda task, done, total, loss: None,
) -> Path:
    """Train a LoRA with sparse attention, and write it together with its settings.

        clips = drawn_clips(512, Bucket(129, 64, 64))
        settings = Settings(StepSchedule(Radial(density=0.2), dense_steps=4), trained_frames=33, rank=16, steps=400)
        finetune(load_pipeline(), clips, settings, "runs/long", base="shapes")

    If the folder has checkpoints, it resumes from the last one and ends with the weights of an uninterrupted run. Under
    `accelerate launch` each process calls it, and each step has the videos of all processes.

    Args:
        pipe: a `WanPipeline`, with weights already in the dtype they should be stored in; moved to the device of the
            training.
        clips: from `folder_clips` or `drawn_clips`.
        settings: everything that decides the result.
        folder: receives the LoRA, `checkpoints`, `samples`, `log.jsonl` and TensorBoard's files.
        base: name of the base model, for the LoRA's file.
        sampling: arguments of `pipe(...)` for sample videos.
        fps: frames per second of sample videos.
        cache: folder of latents and embeddings; by default `folder/cache`.
        cpu: train on the CPU even if there is a GPU.
        say: called with messages for the user, one line each, in the main process only.
        progress: called with the task ("encoding" or "training"), what is done and the total, and the loss.

    Returns:
        The folder, for `vidsparse.load_lora` and `pipe.load_lora_weights`.

    Raises:
        NotImplementedError: a pipeline or scheduler that cannot be trained.
        ImportError: peft is missing.
        ValueError: targets, sizes or checkpoints that do not fit the model or the settings; no readable clip; a
            precision that the device does not support, or that differs from accelerate's in this process.
        OSError: the disk is full; files written before are complete.
    """
    folder = Path(folder)
    check_pipeline(pipe, settings, {clip.bucket for clip in clips})
    cpu = cpu or not torch.accelerator.is_available()  # accelerate joins processes on a CPU only if told to
    if settings.precision == "fp16" and cpu:
        raise ValueError("precision='fp16' needs a GPU; use 'bf16' on a CPU")
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = accelerator_for(settings, folder, cpu)
    if not accelerator.is_main_process:
        say = _nothing
    for encoder in (pipe.vae, pipe.text_encoder):
        encoder.to(accelerator.device)
    examples, skipped = encode(
        pipe,
        clips,
        Path(cache) if cache else folder / "cache",
        progress=lambda done, total: progress("encoding", done, total, None),
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        wait=accelerator.wait_for_everyone,
    )
    for video in skipped:
        say(f"{video.path} is left out: {video.reason}")
    if skipped:
        say(f"{len(skipped)} of {len(clips)} videos are left out")
    prompts = read_prompts(pipe, settings.sample_prompts, examples.words) if settings.sample_every else ()
    for encoder in (pipe.vae, pipe.text_encoder):
        encoder.to("cpu")
    sampling = sampling or {}
    training = Training(
        pipe, examples, settings, examples.frames, folder, accelerator, base, prompts, sampling, fps, say
    )
    try:
        return training.train(lambda step, loss: progress("training", step, settings.steps, loss))
    finally:
        training.close()


def _nothing(text: str) -> None:
    """Say nothing: for all processes but the main one."""
