"""The training loop of a LoRA with sparse attention: accelerate for devices and processes, peft for the LoRA."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vidsparse.finetune import log
from vidsparse.finetune.checkpoint import load_checkpoint, save_checkpoint
from vidsparse.finetune.data.fingerprint import fingerprint
from vidsparse.finetune.noise import bounds_of, by_noise, shift_of, sparse_levels
from vidsparse.finetune.objective import ExampleStream, flow_loss
from vidsparse.finetune.samples import Prompt, write_samples
from vidsparse.finetune.settings import PRECISIONS, Settings
from vidsparse.finetune.start import start_hash, start_weights
from vidsparse.generation.positions import extend_positions
from vidsparse.generation.scheduler import build_scheduler
from vidsparse.grid import latent_frames
from vidsparse.lora.files import LoraRecipe, save_lora
from vidsparse.runtime.sparsify import sparsify
from vidsparse.serialize import to_data

if TYPE_CHECKING:
    from accelerate import Accelerator

    from vidsparse.corrections import Correction
    from vidsparse.finetune.data.cache import Encoded
    from vidsparse.patterns import Pattern

WRAPPED = ("forward", "_original_forward")  # attributes that accelerate sets on a model in lower precision
# Settings that may change when a training is resumed.
FREE = ("start", "steps", "batch", "log_every", "save_every", "keep", "sample_every", "sample_prompts")


class Training:
    """One training in one process: the LoRA in its transformer, optimizer, running average, checkpoints and log.

    Args:
        pipe: validated by `check_pipeline`. Its transformer gets the LoRA, and is sparsified until `close`.
        examples: the encoded videos and captions.
        settings: how to train.
        frames: frames (not latent) of the longest video, the length that the LoRA is for.
        folder: receives `log.jsonl`, `checkpoints`, `samples` and in the end the LoRA. With a checkpoint in it, the
            training resumes, and computes what an uninterrupted one would have.
        accelerator: from `accelerator_for(settings)`.
        base: name of the base model, for the LoRA's file.
        prompts: of sample videos.
        sampling: arguments of `pipe(...)` for sample videos.
        fps: frames per second of sample videos.
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
        prompts: tuple[Prompt, ...],
        sampling: Mapping[str, Any],
        fps: int = 16,
        say: Callable[[str], None] = print,
    ):
        self.pipe, self.settings, self.folder, self.accelerator = pipe, settings, folder, accelerator
        self.prompts, self.sampling, self.fps, self.say = prompts, sampling, fps, say
        self.step, self.seconds, self.losses = 0, 0.0, list[float]()
        self.module: Any = getattr(pipe, settings.transformer)
        trained_frames = settings.trained_frames or frames
        self.recipe = LoraRecipe(
            pattern=_nameable(settings.pattern, say),
            correction=_nameable(settings.correction, say),
            frames=frames,
            trained_frames=trained_frames,
            inference_steps=settings.inference_steps,
            positions=settings.positions,
            sampler=settings.sampler,
            flow_shift=settings.flow_shift,
            transformer=settings.transformer,
            base=base,
        )
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
        )
        identity = {"model": fingerprint(self.module), "shift": str(self.stream.shift), "data": examples.fingerprint}
        identity |= {"videos of a step": str(settings.batch * accelerator.num_processes)}
        identity |= {} if settings.start is None else {"start": start_hash(settings.start)}
        self.identity = {**identity, "frames": str(frames), **_comparable(settings)}
        state = self._last_checkpoint()
        self._add_lora()
        self.scheduler, pipe.scheduler = pipe.scheduler, scheduler
        latent, trained = (latent_frames(count, pipe.vae_scale_factor_temporal) for count in (frames, trained_frames))
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
            _check_same(state["identity"], self.identity, self.folder)
        return state

    def _add_lora(self) -> None:
        from diffusers.training_utils import cast_training_params
        from peft import LoraConfig, set_peft_model_state_dict

        settings = self.settings
        self.module.requires_grad_(False)
        torch.manual_seed(settings.seed)
        alpha = settings.rank if settings.alpha is None else settings.alpha
        lora: Any = dict(r=settings.rank, lora_alpha=alpha, target_modules=list(settings.targets))
        start = None if settings.start is None else start_weights(self.pipe, settings, settings.start)
        self.module.add_adapter(LoraConfig(**lora))
        if start is not None:
            set_peft_model_state_dict(self.module, start)
        cast_training_params([self.module], dtype=torch.float32)
        if settings.gradient_checkpointing:
            self.module.enable_gradient_checkpointing()
        self.module.train()
        self.weights = {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def _prepare(self, state: dict[str, Any] | None) -> None:
        """Restore optimizer and running average from the checkpoint, then move the model to its device."""
        from diffusers.training_utils import EMAModel

        settings, weights = self.settings, list(self.weights.values())
        optimizer = torch.optim.AdamW(
            weights, lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.99)
        )
        self.average = None if settings.ema is None else EMAModel(weights, decay=settings.ema)
        if state is not None:
            for name, weight in self.weights.items():
                weight.data.copy_(state["weights"][name])
            optimizer.load_state_dict(state["optimizer"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.step, self.seconds, self.losses = state["step"], state["seconds"], state["losses"]
            self.say(f"resuming from step {self.step}")
        self.forward = {name: self.module.__dict__[name] for name in WRAPPED if name in self.module.__dict__}
        self.model, self.optimizer = self.accelerator.prepare(self.module, optimizer)
        if state is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.to(self.accelerator.device)

    def train(self, progress: Callable[[int, float], None] = lambda step, loss: None) -> Path:
        """Train up to `settings.steps` and write the LoRA; the transformer keeps it.

        Args:
            progress: called after each step with the number of completed steps and the loss of this step.

        Returns:
            The folder of the LoRA, for `pipe.load_lora_weights` and `vidsparse.load_lora`.
        """
        if self.accelerator.is_main_process:
            log.forget_after(self.folder, self.step)
        with self._products_in_bf16():
            self._train(progress)
        if self.average is not None:
            self.average.copy_to(self.weights.values())
        if self.accelerator.is_main_process:
            save_lora(self.folder, self.pipe, self.recipe, dtype=PRECISIONS[self.settings.precision])
        self.accelerator.wait_for_everyone()
        return self.folder

    def _train(self, progress: Callable[[int, float], None]) -> None:
        settings = self.settings
        while self.step < settings.steps:
            started = time.perf_counter()
            self.losses.append(self._learn())
            self.seconds += time.perf_counter() - started
            self.step += 1
            progress(self.step, self.losses[-1])
            last = self.step == settings.steps
            if last or self.step % settings.log_every == 0:
                self._log()
            if last or self.step % settings.save_every == 0:
                self._save()
            if settings.sample_every and (last or self.step % settings.sample_every == 0):
                self._sample()

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

    def _learn(self) -> float:
        """Make one optimizer step. Returns the mean loss over all videos of all processes."""
        settings, accelerator, losses = self.settings, self.accelerator, []
        dtype = self.module.dtype if settings.precision == "no" else torch.float32
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate(self.step)
        for part in range(settings.batch):
            example = self.stream.draw(self.step, part).to(accelerator.device)
            self.run.expect_another_video()
            with accelerator.accumulate(self.model):
                loss = flow_loss(self.model, example, dtype)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(self.weights.values(), settings.clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
            losses.append(loss.detach())
        if self.average is not None:
            self.average.step(self.weights.values())
        return float(accelerator.gather(torch.stack(losses)).mean())

    def _log(self) -> None:
        """Write a JSON line and tracker values: means since the last line, over all processes."""
        report = self.run.report()
        self.run.reset()
        attention = torch.tensor([report.density, report.flops_saved], device=self.accelerator.device)
        # Processes compute videos of the same sizes on average, so their means have equal weight.
        density, flops_saved = self.accelerator.gather(attention).view(-1, 2).mean(dim=0).tolist()
        line = {
            "step": self.step,
            "loss": sum(self.losses) / len(self.losses),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds": round(self.seconds, 2),
            "density": density,
            "flops_saved": flops_saved,
        }
        self.losses = []
        self.accelerator.log({k: v for k, v in line.items() if k != "step"}, step=self.step)
        if self.accelerator.is_main_process:
            log.append(self.folder, line)

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            state = {
                "identity": self.identity,
                "seconds": self.seconds,
                "losses": self.losses,
                "weights": {name: weight.detach().cpu() for name, weight in self.weights.items()},
                "optimizer": self.optimizer.state_dict(),
                "average": None if self.average is None else self.average.state_dict(),
                "scaler": None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
            }
            save_checkpoint(self.folder / "checkpoints", self.step, state, self.settings.keep)

    def _sample(self) -> None:
        with self._averaged(), self._other_expert_sparse():
            if self.accelerator.is_main_process:
                write_samples(
                    self.pipe,
                    self.prompts,
                    self.folder / "samples",
                    self.step,
                    self.sampling,
                    self.fps,
                    self.settings.seed,
                    self.accelerator.device,
                )
                self.run.reset()
        self.accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def _other_expert_sparse(self) -> Iterator[None]:
        """Within the context, the expert that is not trained, if there is one, is sparse as in a generation."""
        experts = {name: getattr(self.pipe, name, None) for name in ("transformer", "transformer_2")}
        with contextlib.ExitStack() as sparse:
            for name, expert in experts.items():
                if expert is not None and name != self.settings.transformer:
                    sparse.enter_context(sparsify(expert, self.pattern, correction=self.settings.correction))
            yield

    @contextlib.contextmanager
    def _products_in_bf16(self) -> Iterator[None]:
        """Within the context, a CPU also computes float32 products with its bfloat16 units, with that precision.

        Under autocast these are the scores of sparse attention: keys and values come from bfloat16 and lose nothing;
        the scaled queries are rounded once more.
        """
        before = torch.get_float32_matmul_precision()
        if self.settings.precision == "bf16" and self.accelerator.device.type == "cpu":
            torch.set_float32_matmul_precision("medium")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

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


def accelerator_for(settings: Settings, folder: Path, cpu: bool) -> Accelerator:
    """The accelerator of a training; it writes TensorBoard's files to `folder` if tensorboard is installed.

    Raises:
        ValueError: accelerate already uses another precision in this process.
    """
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs, is_tensorboard_available

    tracked = is_tensorboard_available()
    accelerator = Accelerator(
        mixed_precision=settings.precision,
        gradient_accumulation_steps=settings.batch,
        cpu=cpu,
        log_with="tensorboard" if tracked else None,
        project_dir=folder,
        # While one process still encodes, the others wait.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
    )
    if tracked:
        accelerator.init_trackers("tensorboard")
    return accelerator


def _nameable(value: Pattern | Correction | None, say: Callable[[str], None]) -> Any:
    """A pattern or correction for the LoRA's file; None, with a message, if a file cannot name it."""
    if value is None:
        return None
    try:
        to_data(value)
    except TypeError:
        say(f"the LoRA's file cannot name {value}; pass it to vidsparse.sparsify wherever the LoRA is used")
        return None
    return value


def _comparable(settings: Settings) -> dict[str, str]:
    """The settings that decide the result, as text for a checkpoint."""
    free = [name for name in FREE if name != "steps" or not settings.decay]
    return {f.name: repr(getattr(settings, f.name)) for f in fields(settings) if f.name not in free}


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    names = dict.fromkeys((*now, *before))
    changed = [f"{n} was {before.get(n)}, is {now.get(n)}" for n in names if before.get(n) != now.get(n)]
    if changed:
        raise ValueError(
            f"the checkpoints in {folder} are of another training ({'; '.join(changed)}); "
            "resume with its settings, or choose another folder"
        )
