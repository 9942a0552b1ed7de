"""The training loop of a LoRA with sparse attention: accelerate for devices and processes, peft for the LoRA."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vidsparse.finetune import log
from vidsparse.finetune.checkpoint import load_checkpoint, save_checkpoint
from vidsparse.finetune.curve import draw_curve
from vidsparse.finetune.data.fingerprint import fingerprint
from vidsparse.finetune.identity import ORDER, check_same, comparable
from vidsparse.finetune.low_rank import add_lora, recipe_of
from vidsparse.finetune.memory.offload import offloading
from vidsparse.finetune.noise import bounds_of, by_noise, shift_of, sparse_levels
from vidsparse.finetune.objective import ExampleStream, loss_of
from vidsparse.finetune.optim.optimizers import build_optimizer, rate_groups, set_rates
from vidsparse.finetune.process.precision import products_in_bf16
from vidsparse.finetune.process.stopping import Stop, Stopped
from vidsparse.finetune.samples import Samples
from vidsparse.finetune.settings import PRECISIONS, Settings
from vidsparse.finetune.start import start_hash
from vidsparse.finetune.task import task_for
from vidsparse.finetune.validation import Validation
from vidsparse.finetune.window import Window, peak_memory
from vidsparse.generation.positions import extend_positions
from vidsparse.generation.scheduler import build_scheduler
from vidsparse.grid import latent_frames
from vidsparse.lora.files import save_lora
from vidsparse.runtime.sparsify import sparsify

if TYPE_CHECKING:
    from accelerate import Accelerator

    from vidsparse.finetune.data.cache import Encoded

WRAPPED = ("forward", "_original_forward")  # attributes that accelerate sets on a model in lower precision
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
        ValueError: a checkpoint of other settings or of another model.
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
        self.step, self.saved, self.seconds, self.skipped = 0, None, 0.0, 0
        self.window = Window()
        self.module: Any = getattr(pipe, settings.transformer)
        self.task = task_for(pipe)
        self.recipe = recipe_of(settings, frames, base, say)
        scheduler = build_scheduler(pipe.scheduler, settings.sampler, settings.flow_shift)
        self.pattern = by_noise(settings.pattern, scheduler, settings.inference_steps)
        self.stream = ExampleStream(
            examples,
            seed=settings.seed,
            batch=settings.batch,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            shift=shift_of(scheduler),
            bounds=bounds_of(pipe, settings.transformer),
            caption_dropout=settings.caption_dropout,
            sparse=sparse_levels(self.pattern),
            sampling=settings.level_sampling,
        )
        self.validation = None
        if held_out is not None:
            share = accelerator.process_index, accelerator.num_processes
            self.validation = Validation(held_out, self.stream.bounds, settings.seed, *share)
        identity = {"model": fingerprint(self.module), "shift": str(self.stream.shift), "data": examples.fingerprint}
        identity |= {"videos of a step": str(settings.batch * accelerator.num_processes), "order": ORDER}
        identity |= {} if settings.start is None else {"start": start_hash(settings.start)}
        self.identity = {**identity, "frames": str(frames), **comparable(settings)}
        state = self._last_checkpoint()
        self.weights = add_lora(pipe, settings)
        if settings.gradient_checkpointing:
            self.module.enable_gradient_checkpointing()
        self.module.train()
        self.scheduler, pipe.scheduler = pipe.scheduler, scheduler
        lengths = frames, self.recipe.trained_frames or frames
        latent, trained = (latent_frames(count, pipe.vae_scale_factor_temporal) for count in lengths)
        self.positions = extend_positions(self.module, latent, trained, settings.positions)
        self.run = sparsify(self.module, self.pattern, correction=settings.correction)
        self._prepare(state)

    def _last_checkpoint(self) -> dict[str, Any] | None:
        """The state of the last checkpoint, or None.

        Raises:
            ValueError: it belongs to another training.
        """
        state, broken = load_checkpoint(self.folder / "checkpoints")
        for path in broken:
            self.say(f"{path} cannot be read and is skipped")
        if state is not None:
            check_same(state["identity"], self.identity, self.folder, self.say)
        return state

    def _prepare(self, state: dict[str, Any] | None) -> None:
        """Restore optimizer and running average from the checkpoint, then move the model to its device."""
        from diffusers.training_utils import EMAModel

        settings, weights = self.settings, list(self.weights.values())
        groups = rate_groups(self.weights, settings.lora_plus_ratio)
        optimizer = build_optimizer(
            settings.optimizer, groups, settings.learning_rate, settings.weight_decay, self.accelerator.device
        )
        self.average = None if settings.ema is None else EMAModel(weights, decay=settings.ema)
        if state is not None:
            for name, weight in self.weights.items():
                weight.data.copy_(state["weights"][name])
            optimizer.load_state_dict(state["optimizer"])
            for group, own in zip(optimizer.param_groups, groups, strict=True):
                group["factor"] = own["factor"]  # which an earlier version did not save
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.step = self.saved = state["step"]
            self.seconds, self.skipped = state["seconds"], state.get("skipped", 0)
            self.window = Window.from_state(state["window"]) if "window" in state else Window()
            self.say(f"resuming from step {self.step}")
        self.forward = {name: self.module.__dict__[name] for name in WRAPPED if name in self.module.__dict__}
        self.model, self.optimizer = self.accelerator.prepare(self.module, optimizer)
        if state is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.to(self.accelerator.device)

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
            if self.average is not None:
                self.average.copy_to(self.weights.values())
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
            if settings.sample_every:
                self._sample_on_the_way()
        while self.step < settings.steps:
            started = time.perf_counter()
            loss, asked = self._learn()
            seconds = time.perf_counter() - started
            self.seconds += seconds
            self.window.seconds += seconds
            self.window.steps += 1
            self.step += 1
            last = self.step == settings.steps
            self._check_finite(last)
            if last or self.step % settings.log_every == 0:
                self._log()
            progress(self.step, loss)
            if self.step % (settings.validate_every or settings.save_every) == 0 or last:
                self._validate()
            # A step that was left out may be the first of many: what is kept is from before it.
            if (last or asked or self.step % settings.save_every == 0) and not self.skipped:
                self._save()
            if asked and not last:
                raise Stopped(asked, self.saved)
            if settings.sample_every and self.step % settings.sample_every == 0 and not (last and settings.samples):
                self._sample_on_the_way()

    def close(self) -> None:
        """Undo all changes to the pipeline but the LoRA: sparse attention, positions, scheduler."""
        self.run.restore()
        self.positions.restore()
        self.pipe.scheduler = self.scheduler
        for name in WRAPPED:
            self.module.__dict__.pop(name, None)
        self.module.__dict__.update(self.forward)
        # Free DDP first: freed last, it waits for gloo's threads while holding the GIL, which they wait for.
        del self.model
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def _learn(self) -> tuple[float, int]:
        """Make one optimizer step, or leave it out if a loss or the gradient is not finite.

        Returns:
            The mean loss over all videos of all processes, and the signal that asked one of them to stop, or 0.
        """
        settings, accelerator, measured = self.settings, self.accelerator, []
        dtype = self.module.dtype if settings.precision == "no" else torch.float32
        set_rates(self.optimizer, settings.rate(self.step))
        for part in range(settings.batch):
            example = self.stream.draw(self.step, part).to(accelerator.device)
            self.run.expect_another_video()
            self._seed_dropout(part)
            with accelerator.accumulate(self.model):
                with offloading(self.model, on=settings.offload_activations):
                    loss, plain = loss_of(self.model, example, self.task, settings.weighting, dtype)
                accelerator.backward(loss)
            asked = torch.full_like(plain, self.stop.asked).reshape(1)
            measured.append(torch.cat([example.level, plain.reshape(1), asked]))
        norm = torch.as_tensor(accelerator.clip_grad_norm_(self.weights.values(), settings.clip))
        # What every process sees alike decides alike: all losses, and the norm of the gradient that they share.
        videos = accelerator.gather(torch.stack(measured)).tolist()
        losses = torch.tensor([loss for _, loss, _ in videos])
        made = bool(losses.isfinite().all())
        if accelerator.scaler is not None:
            self.optimizer.step()  # the scaler leaves it out by itself, and lowers its scale
            made = made and not self.optimizer.step_was_skipped
        elif made := made and bool(norm.isfinite()):
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.skipped = 0 if made else self.skipped + 1
        self.window.skipped += not made
        self.window.add_videos((level, loss) for level, loss, _ in videos)
        if made:
            self.window.norms.append(float(norm))
            if self.average is not None:
                self.average.step(self.weights.values())
        return float(losses.mean()), int(max(asked for _, _, asked in videos))

    def _seed_dropout(self, part: int) -> None:
        """Give the dropout of a pass numbers that depend only on the step and the video."""
        if self.settings.dropout:
            place = part * self.accelerator.num_processes + self.accelerator.process_index
            torch.manual_seed(random.Random(f"{self.settings.seed}-dropout-{self.step}-{place}").getrandbits(63))

    def _check_finite(self, last: bool) -> None:
        """End a training that no longer learns.

        Raises:
            RuntimeError: too many steps in a row were left out, or the last one.
        """
        scaled = self.accelerator.scaler is not None
        if self.skipped >= (MOST_SCALED if scaled else MOST_SKIPPED) or (last and self.skipped and not scaled):
            self._log()
            kept = (
                "no checkpoint was written" if self.saved is None else f"the checkpoint of step {self.saved} is whole"
            )
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
        videos = self.window.steps * self.settings.batch * self.accelerator.num_processes
        line |= {
            "learning_rate": self.settings.rate(self.step - 1),
            "seconds": round(self.seconds, 2),
            "videos_per_second": round(videos / self.window.seconds, 4) if self.window.seconds else None,
            "peak_memory": peak_memory(self.accelerator.device),
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
        dtype = self.module.dtype if self.settings.precision == "no" else torch.float32
        with self._averaged():
            line = self.validation.measure(self.model, self.module, self.task, self.run, self.accelerator, dtype)
        self.run.reset()
        self._write({"step": self.step, **line})

    def _save(self) -> None:
        self._measure_attention()
        if not all(bool(weight.isfinite().all()) for weight in self.weights.values()):
            raise RuntimeError(f"the LoRA is not finite after step {self.step}; try a lower learning rate")
        self.saved = self.step
        if not self.accelerator.is_main_process:
            return
        state = {
            "identity": self.identity,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "window": self.window.state(),
            "weights": {name: weight.detach().to("cpu", copy=True) for name, weight in self.weights.items()},
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
        }
        with self._averaged():
            save_checkpoint(
                self.folder / "checkpoints", self.step, state, self.settings.keep, write_lora=self._write_lora
            )
        draw_curve(self.folder)

    def _write_lora(self, folder: Path) -> None:
        save_lora(folder, self.pipe, self.recipe, dtype=PRECISIONS[self.settings.precision])

    def _sample_on_the_way(self) -> None:
        if self.samples is not None:
            steps = self.settings.sample_steps or max(1, self.settings.inference_steps // 3)
            with self._averaged():
                self._sample(steps)

    def _sample(self, inference_steps: int) -> None:
        """Write sample videos; the other expert, if there is one, is sparse as in a generation."""
        self._measure_attention()
        experts = {name: getattr(self.pipe, name, None) for name in ("transformer", "transformer_2")}
        with contextlib.ExitStack() as sparse:
            for name, expert in experts.items():
                if expert is not None and name != self.settings.transformer:
                    sparse.enter_context(sparsify(expert, self.pattern, correction=self.settings.correction))
            if self.accelerator.is_main_process and self.samples is not None:
                self.samples.write(self.pipe, self.step, inference_steps, self.accelerator.device, self.say)
        self.run.reset()
        self.accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Within the context, the LoRA has the running average of its weights, if there is one."""
        if self.average is None:
            yield
            return
        weights = list(self.weights.values())
        self.average.store(weights)
        self.average.copy_to(weights)
        try:
            yield
        finally:
            self.average.restore(weights)
