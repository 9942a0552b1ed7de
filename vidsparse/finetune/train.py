"""The training loop of a LoRA with sparse attention: accelerate for devices and processes, peft for the LoRA."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vidsparse.corrections.proxy_tokens import averaged
from vidsparse.finetune.checkpoint import load_checkpoint, save_checkpoint
from vidsparse.finetune.data.fingerprint import fingerprint
from vidsparse.finetune.families import task_for
from vidsparse.finetune.identity import ORDER, check_same, comparable
from vidsparse.finetune.learner import Learner
from vidsparse.finetune.low_rank import add_lora, recipe_of
from vidsparse.finetune.memory.base import cast_layers
from vidsparse.finetune.memory.sharding import shard, views_are_fine
from vidsparse.finetune.memory.swap import swapped
from vidsparse.finetune.noise import bounds_of, by_noise, sparse_levels
from vidsparse.finetune.objective import ExampleStream
from vidsparse.finetune.optim.optimizers import know_states
from vidsparse.finetune.process.accelerator import shards_base
from vidsparse.finetune.process.groups import Groups
from vidsparse.finetune.process.precision import products_in_bf16
from vidsparse.finetune.process.stopping import Stop, Stopped
from vidsparse.finetune.process.zero import zero_of
from vidsparse.finetune.record import log
from vidsparse.finetune.record.curve import draw_curve
from vidsparse.finetune.record.validation import Validation
from vidsparse.finetune.record.window import Window
from vidsparse.finetune.samples import Samples
from vidsparse.finetune.settings import Settings
from vidsparse.finetune.start import start_hash
from vidsparse.finetune.untrained import Untrained
from vidsparse.generation.peak_memory import PeakMemory
from vidsparse.generation.positions import extend_positions
from vidsparse.generation.scheduler import build_scheduler
from vidsparse.grid import latent_frames
from vidsparse.lora.files import save_lora
from vidsparse.runtime.sparsify import sparsify

if TYPE_CHECKING:
    from accelerate import Accelerator

    from vidsparse.finetune.data.cache import Encoded

# Steps in a row that are left out before the training ends. A scaler finds its scale by leaving out the first steps.
MOST_SKIPPED, MOST_SCALED = 5, 25


class Training:
    """One training in one process: the LoRA in its transformer, optimizer, running average, checkpoints and log.

    Args:
        pipe: validated by `check_pipeline`. Its transformer gets the LoRA, and is sparsified until `close`.
        examples: the encoded videos and captions.
        settings: how to train.
        frames: frames (not latent) of the longest video, the length that the LoRA is for.
        folder: receives `log.jsonl`, `loss.png`, `checkpoints`, `samples` and in the end the LoRA. With a checkpoint in
            it, the training resumes, and computes what an uninterrupted one would have.
        accelerator: from `accelerator_for(settings)`.
        base: name of the base model, for the LoRA's file.
        held_out: encoded videos that measure the loss and are not trained on, or None.
        samples: writes the sample videos, or None.
        stop: signals that ask the training to stop.
        say: called with messages for the user, one line each.

    Raises:
        ValueError: a checkpoint of other settings or of another model. Whatever it raises, the pipeline is as before.
    """

    def __init__(
        self,
        pipe: Any,
        examples: Encoded,
        settings: Settings,
        frames: int,
        folder: Path,
        accelerator: Accelerator,
        base: str,
        held_out: Encoded | None = None,
        samples: Samples | None = None,
        stop: Stop | None = None,
        say: Callable[[str], None] = print,
    ):
        self.pipe, self.settings, self.folder, self.accelerator = pipe, settings, folder, accelerator
        self.samples, self.stop, self.say = samples, stop or Stop(), say
        self.step, self.seconds, self.skipped = 0, 0.0, 0
        self.sharded = shards_base() and accelerator.num_processes > 1
        groups = Groups(settings.context_parallel, accelerator.process_index, accelerator.num_processes)
        self.groups = groups
        self.window, self.memory = Window(), PeakMemory(accelerator.device)
        self.module: Any = getattr(pipe, settings.transformer)
        self.task = task_for(pipe)
        self.recipe = recipe_of(settings, self.task.asked(frames), base, say)
        scheduler = build_scheduler(pipe.scheduler, settings.sampler, settings.flow_shift)
        levels = self.task.levels(scheduler, settings.inference_steps, examples.view)
        self.pattern = by_noise(settings.pattern, scheduler, settings.inference_steps, levels)
        stream = ExampleStream(
            examples,
            seed=settings.seed,
            batch=settings.batch,
            rank=groups.own,
            world=groups.number,
            shift=self.task.shift(scheduler, examples.view),
            bounds=bounds_of(pipe.config, settings.transformer),
            caption_dropout=settings.share_without_caption,
            sparse=sparse_levels(self.pattern),
            sampling=settings.level_sampling,
            shift_of=lambda latents: self.task.shift(scheduler, (latents.shape[1], latents.shape[2], latents.shape[3])),
        )
        self.validation = None
        if held_out is not None:
            self.validation = Validation(held_out, stream.bounds, settings.seed, groups)
        identity = {"model": fingerprint(self.module), "shift": str(stream.shift), "data": examples.fingerprint}
        identity |= {"videos of a step": str(settings.batch * groups.number), "order": ORDER}
        identity |= {} if settings.start is None else {"start": start_hash(settings.start)}
        self.identity = {**identity, "frames": str(frames), **comparable(settings)}
        state = self._last_checkpoint()
        with contextlib.ExitStack() as failure:
            failure.callback(Untrained(self.module).restore)
            self._changes = failure.enter_context(contextlib.ExitStack())
            weights = add_lora(pipe, settings)
            if settings.gradient_checkpointing:
                self.module.enable_gradient_checkpointing()
            self.module.train()
            self._changes.callback(setattr, pipe, "scheduler", pipe.scheduler)
            pipe.scheduler = scheduler
            lengths = frames, self.recipe.trained_frames or frames
            latent, trained = (latent_frames(count, self.task.stride[0]) for count in lengths)
            for expert in (self.module, *self._others()):  # the other one makes sample videos
                self._changes.callback(extend_positions(expert, latent, trained, settings.positions).restore)
            self.run = sparsify(self.module, self.pattern, correction=settings.correction)
            self._changes.callback(self.run.restore)
            if settings.base == "float8":
                for part in (self.module, *(self._others() if samples is not None else ())):
                    cast_layers(part, settings.half or part.dtype)
            self._changes.enter_context(
                swapped(self.module, weights.values(), accelerator.device, settings.offload_base)
            )
            self._changes.enter_context(groups.sharing(self.module, accelerator.device))
            if self.sharded:
                self._changes.enter_context(views_are_fine())
                shard(self.module, weights.values(), accelerator.device, accelerator.num_processes)
            zero = zero_of() if accelerator.num_processes > 1 else None
            self.learner = Learner(self.module, weights, settings, accelerator, self.task, stream, groups, state, zero)
            self._changes.callback(self.learner.close)
            self.stop.saved = None if state is None else state["step"]
            if state is not None:
                self.step = state["step"]
                self.seconds, self.skipped = state["seconds"], state.get("skipped", 0)
                self.window = Window.from_state(state["window"]) if "window" in state else Window()
                say(f"resuming from step {self.step}")
            failure.pop_all()

    def _last_checkpoint(self) -> dict[str, Any] | None:
        """The state of the last checkpoint, or None.

        Raises:
            ValueError: it belongs to another training.
        """
        know_states(self.settings.optimizer)
        state, broken = load_checkpoint(self.folder / "checkpoints")
        for path in broken:
            self.say(f"{path} cannot be read and is skipped")
        if state is not None:
            check_same(state["identity"], self.identity, self.folder, self.say)
        return state

    def train(self, progress: Callable[[int, float], None] = lambda step, loss: None) -> Path:
        """Train up to `settings.steps`, write the LoRA and the last sample videos; the transformer keeps the LoRA.

        Args:
            progress: called after each step with the number of completed steps and the loss of this step.

        Returns:
            The folder of the LoRA, for `pipe.load_lora_weights` and `vidsparse.load_lora`.

        Raises:
            RuntimeError: losses or gradients were not finite in several steps in a row, or in the last.
            Stopped: a signal asked for it; the step is finished and saved.
        """
        if self.accelerator.is_main_process:
            log.forget_after(self.folder, self.step or -1)
        on_cpu = self.accelerator.device.type == "cpu"
        with products_in_bf16(self.settings.precision == "bf16" and on_cpu):
            with self.stop.patient():
                self._train(progress)
            self.learner.keep_average()
            if self.accelerator.is_main_process:
                self._write_lora(self.folder)
            self.accelerator.wait_for_everyone()
            if self.samples is not None and self.settings.samples:
                self._sample(self.settings.inference_steps)
        return self.folder

    def _train(self, progress: Callable[[int, float], None]) -> None:
        settings = self.settings
        if not self.step:
            self._validate()
        # A training that was stopped or killed at a step may have saved it, and not written its videos.
        if self._has_samples() and (not self.step or self._samples_are_missing()):
            self._sample_on_the_way()
        due = False
        while self.step < settings.steps:
            started = time.perf_counter()
            learned = self.learner.learn(self.step, self.run.expect_another_video, self.stop.asked)
            seconds = time.perf_counter() - started
            self.seconds += seconds
            self.window.add(learned, seconds)
            self.skipped = 0 if learned.made else self.skipped + 1
            self.step += 1
            last = self.step == settings.steps
            self._check_finite(last)
            if last or self.step % settings.log_every == 0:
                self._log()
            progress(self.step, learned.loss)
            if self.step % (settings.validate_every or settings.save_every) == 0 or last:
                self._validate()
            due = due or last or bool(learned.asked) or self.step % settings.save_every == 0
            # A step that was left out may be the first of many: what is saved is from before it, or after the next.
            if due and not self.skipped:
                self._save()
                due = False
            if learned.asked and not last:
                raise Stopped(learned.asked, self.stop.saved)
            if self._has_samples():
                self._sample_on_the_way()

    def close(self) -> None:
        """Undo all changes to the pipeline but the LoRA: sparse attention, positions, scheduler."""
        self._changes.close()

    def _check_finite(self, last: bool) -> None:
        """End a training that no longer learns.

        Raises:
            RuntimeError: too many steps in a row were left out, or the last one.
        """
        scaled = self.accelerator.scaler is not None
        if self.skipped >= (MOST_SCALED if scaled else MOST_SKIPPED) or (last and self.skipped and not scaled):
            self._log()
            saved = self.stop.saved
            kept = "no checkpoint was written" if saved is None else f"the checkpoint of step {saved} is whole"
            raise RuntimeError(
                f"the loss or the gradient was not finite in the last {self.skipped} of {self.step} steps; {kept}; try "
                "a lower learning rate, a longer warm-up or precision='no', in another folder"
            )

    def _measure_attention(self) -> None:
        """Move what sparse attention has reported to the window, before something else reports."""
        steps = self.window.steps - sum(count for count, _, _ in self.window.attention)
        if steps:
            report = self.run.report()
            own = torch.tensor([report.density, report.flops_saved], device=self.accelerator.device)
            # Processes compute videos of the same sizes on average, so their means have equal weight.
            density, saved = self.accelerator.gather(own).view(-1, 2).mean(dim=0).tolist()
            self.window.attention.append((steps, density, saved))
        self.run.reset()

    def _log(self) -> None:
        """Write a JSON line and tracker values: means since the last line, over all processes."""
        self._measure_attention()
        line = {"step": self.step, **self.window.line()}
        videos = self.window.steps * self.settings.batch * self.groups.number
        line |= {
            "learning_rate": self.settings.rate(self.step - 1),
            "seconds": round(self.seconds, 2),
            "videos_per_second": round(videos / self.window.seconds, 4) if self.window.seconds else None,
            "peak_memory": self.memory.bytes(),
        }
        self.window = Window()
        self._write(line)

    def _write(self, line: dict[str, Any]) -> None:
        self.accelerator.log({name: value for name, value in log.flat(line) if name != "step"}, step=self.step)
        if self.accelerator.is_main_process:
            log.append(self.folder, line)

    def _validate(self) -> None:
        """Log the loss of the held-out videos."""
        if self.validation is None:
            return
        self._measure_attention()
        with self.learner.averaged():
            line = self.validation.measure(
                self.learner.model, self.module, self.task, self.run, self.accelerator, self.learner.dtype
            )
        self.run.reset()
        self._write({"step": self.step, **line})

    def _save(self) -> None:
        self._measure_attention()
        if not self.learner.is_finite():
            raise RuntimeError(f"the LoRA is not finite after step {self.step}; try a lower learning rate")
        optimizer = self.learner.update.state()  # of which each process may have a part
        if self.accelerator.is_main_process:
            state = {
                "identity": self.identity,
                "seconds": self.seconds,
                "skipped": self.skipped,
                "window": self.window.state(),
                **self.learner.state(),
                **optimizer,
            }
            with self.learner.averaged():
                save_checkpoint(
                    self.folder / "checkpoints", self.step, state, self.settings.keep, write_lora=self._write_lora
                )
        self.stop.saved = self.step
        if self.accelerator.is_main_process:
            draw_curve(self.folder)

    def _write_lora(self, folder: Path) -> None:
        save_lora(folder, self.pipe, self.recipe, dtype=self.settings.half)

    def _sample_on_the_way(self) -> None:
        steps = self.settings.sample_steps or max(1, self.settings.inference_steps // 3)
        with self.learner.averaged():
            self._sample(steps)

    def _has_samples(self) -> bool:
        """Whether there are sample videos of this step, beside those at the end."""
        settings = self.settings
        due = bool(settings.sample_every) and self.step % settings.sample_every == 0
        return self.samples is not None and due and not (self.step == settings.steps and settings.samples)

    def _samples_are_missing(self) -> bool:
        """Whether a sample video of this step is not there, as the main process sees it."""
        from accelerate.utils import broadcast_object_list

        missing = [self.samples is not None and self.samples.are_missing(self.step)]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(missing)
        return missing[0]

    def _others(self) -> list[Any]:
        """The transformers of the pipeline that are not trained."""
        experts = [getattr(self.pipe, name, None) for name in ("transformer", "transformer_2")]
        return [expert for expert in experts if expert is not None and expert is not self.module]

    def _sample(self, inference_steps: int) -> None:
        """Write sample videos; the other expert, if there is one, is sparse as in a generation."""
        self._measure_attention()
        with contextlib.ExitStack() as sparse:
            for expert in self._others():
                sparse.enter_context(sparsify(expert, self.pattern, correction=averaged(self.settings.correction)))
                sparse.enter_context(swapped(expert, (), self.accelerator.device, self.settings.offload_base))
            stay = [self.module, *self._others()] if self.settings.offload_base else []
            stay += [self.module] if self.sharded else []
            # With divided weights or tokens all processes compute the same videos: each waits for the others' parts.
            keep, shared = self.accelerator.is_main_process, self.sharded or self.groups.size > 1
            device = self.accelerator.device
            if (keep or shared) and self.samples is not None:
                self.samples.write(self.pipe, self.step, inference_steps, device, self.say, stay, keep, shared)
        self.run.reset()
        self.accelerator.wait_for_everyone()
