"""A whole training: encode the clips, move the encoders away, train the LoRA, leave the pipeline usable."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vidsparse.finetune.checkpoint import newest_step
from vidsparse.finetune.checks import check_device, check_pipeline, training_device
from vidsparse.finetune.data.cache import Encoded, encode
from vidsparse.finetune.data.clips import Clip
from vidsparse.finetune.data.encoders import moved
from vidsparse.finetune.families import task_for
from vidsparse.finetune.families.task import MAIN, first_frame
from vidsparse.finetune.process.accelerator import accelerator_for, check_launch
from vidsparse.finetune.process.lock import locked_for_all
from vidsparse.finetune.process.stopping import stopping
from vidsparse.finetune.record.validation import hold_out
from vidsparse.finetune.samples import Prompt, Samples, read_prompts
from vidsparse.finetune.settings import Settings
from vidsparse.finetune.train import Training

if TYPE_CHECKING:
    from accelerate import Accelerator


def finetune(
    pipe: Any,
    clips: Sequence[Clip],
    settings: Settings,
    folder: str | Path,
    *,
    base: str,
    sampling: Mapping[str, Any] | None = None,
    fps: float = 16,
    cache: str | Path | None = None,
    validation_share: float = 0.0,
    validation_clips: Sequence[Clip] = (),
    cpu: bool = False,
    keep_parts: bool = True,
    say: Callable[[str], None] = print,
    progress: Callable[[str, int, int, float | None], None] = lambda task, done, total, loss: None,
) -> Path:
    """Train a LoRA with sparse attention, and write it together with its settings.

        clips = drawn_clips(512, Bucket(65, 128, 128))
        settings = Settings(StepSchedule(Radial(density=0.2), dense_steps=4), trained_frames=33, rank=16, steps=400)
        finetune(load_pipeline(), clips, settings, "runs/long", base="shapes")

    If the folder has checkpoints, it resumes from the last one and ends with the weights of an uninterrupted run. Under
    `accelerate launch` each process calls it, and each step has the videos of all processes.

    Args:
        pipe: a pipeline of `vidsparse.finetune.families.TASKS`, with weights already in the dtype they should be
            stored in, and quantised as `Settings.base` says; moved to the device of the training, but with
            `Settings.offload_base` back to the CPU. With base "float8" the layers of its transformers stay in float8;
            where accelerate's settings ask for FSDP 2, its transformer stays divided among the processes.
        clips: from `folder_clips` or `drawn_clips`.
        settings: everything that decides the result.
        folder: receives the LoRA, `checkpoints`, `samples`, `log.jsonl`, `loss.png` and TensorBoard's files. One
            training at a time uses it.
        base: name of the base model, for the LoRA's file.
        sampling: arguments of `pipe(...)` for sample videos.
        fps: frames per second of sample videos.
        cache: folder of latents and embeddings; by default `folder/cache`.
        validation_share: fraction of the videos that are not trained on; their loss goes into the log.
        validation_clips: further clips of this kind.
        cpu: train on the CPU even if there is a GPU.
        keep_parts: leave the pipeline whole. False frees the text encoder, and without sample videos the VAE and the
            other expert, once all is encoded.
        say: called with messages for the user, one line each, in the main process only.
        progress: called with the task ("encoding" or "training"), what is done and the total, and the loss.

    Returns:
        The folder, for `vidsparse.load_lora` and `pipe.load_lora_weights`.

    Raises:
        NotImplementedError: a pipeline or scheduler that cannot be trained, or what accelerate's settings switch on.
        ImportError: peft, a tracker or an optimizer is missing.
        ValueError: targets, sizes or checkpoints that do not fit the model or the settings; no readable clip; a
            precision that the device does not support, or that differs from accelerate's in this process.
        OSError: the disk is full; files written before are complete.
        RuntimeError: another process trains in the folder, or losses are not finite.
        Stopped: SIGINT or SIGTERM asked the training to stop; the step is finished and saved.
    """
    folder = Path(folder)
    check_launch()
    clips, held_out = hold_out(clips, validation_share)
    held_out += validation_clips
    check_pipeline(pipe, settings, {clip.bucket for clip in (*clips, *held_out)})
    check_device(settings, cpu)
    settings = settings.of_family(task_for(pipe)).on(training_device(cpu))
    cpu = cpu or not torch.accelerator.is_available()  # accelerate joins processes on a CPU only if told to
    folder.mkdir(parents=True, exist_ok=True)
    with stopping() as stop:
        stop.saved = newest_step(folder / "checkpoints")
        accelerator = accelerator_for(settings, folder, cpu, say)
        say = say if accelerator.is_main_process else _nothing
        with locked_for_all(folder, accelerator):
            store = Path(cache) if cache else folder / "cache"
            examples = _encoded(pipe, clips, store, accelerator, say, progress)
            others = _encoded(pipe, held_out, store, accelerator, say, progress) if held_out else None
            samples = None
            if settings.samples or settings.sample_every:
                prompts = _prompts(pipe, settings, clips, examples, accelerator.device)
                samples = Samples(prompts, folder / "samples", sampling or {}, fps, settings.seed)
            if not keep_parts:
                _free(pipe, settings, samples is not None)
            training = Training(
                pipe, examples, settings, examples.frames, folder, accelerator, base, others, samples, stop, say
            )
            try:
                return training.train(lambda step, loss: progress("training", step, settings.steps, loss))
            finally:
                training.close()


def _encoded(
    pipe: Any,
    clips: list[Clip],
    cache: Path,
    accelerator: Accelerator,
    say: Callable[[str], None],
    progress: Callable[[str, int, int, float | None], None],
) -> Encoded:
    """Encode clips, and say which cannot be read."""
    examples, skipped = encode(
        pipe,
        clips,
        cache,
        progress=lambda done, total: progress("encoding", done, total, None),
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        wait=accelerator.wait_for_everyone,
        device=accelerator.device,
    )
    for video in skipped:
        say(f"{video.path} is left out: {video.reason}")
    if skipped:
        say(f"{len(skipped)} of {len(clips)} videos are left out")
    return examples


def _prompts(
    pipe: Any, settings: Settings, clips: Sequence[Clip], examples: Encoded, device: torch.device
) -> tuple[Prompt, ...]:
    """The prompts of the sample videos; where none are given, a caption, whose embedding is there.

    A video that starts from an image starts from the first frame of the first clip that can be read.
    """
    task, caption, image = task_for(pipe), examples.captions[0], None
    if task.from_image:
        clip, video = _readable(clips)
        caption, image = clip.caption, first_frame(video)
    if not task.embeds_prompts:
        return tuple(Prompt(text, image=image) for text in settings.sample_prompts or (caption,))
    if not settings.sample_prompts:
        return (Prompt(examples.captions[0], examples.text(0)[None], examples.no_caption(0)[MAIN][None]),)
    with moved((pipe.text_encoder,), device):
        return read_prompts(pipe, settings.sample_prompts, examples.words)


def _readable(clips: Sequence[Clip]) -> tuple[Clip, torch.Tensor]:
    """The first clip that can be read, and its video.

    Raises:
        ValueError: none can, though the cache has them.
    """
    reasons = []
    for clip in clips:
        try:
            return clip, clip.read()
        except ValueError as error:
            reasons.append(f"{clip.path}: {error}")
    raise ValueError(
        f"no clip can be read for the first frame of sample videos; {reasons[0]}; restore the files, or leave the "
        "sample videos out (samples=False, sample_every=0)"
    )


def _free(pipe: Any, settings: Settings, samples: bool) -> None:
    """Take the parts that a training does not use out of a pipeline, so that their memory is free."""
    task = task_for(pipe)
    expert = {"transformer": "transformer_2", "transformer_2": "transformer"}[settings.transformer]
    text = task.text_parts if task.embeds_prompts or not samples else ()
    for name in (*text, *(() if samples else (*task.video_parts, expert))):
        if getattr(pipe, name, None) is not None:
            setattr(pipe, name, None)
    gc.collect()


def _nothing(text: str) -> None:
    """Say nothing: for all processes but the main one."""
