"""The settings of a training: everything that decides the result, validated before long work starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vidsparse.corrections import Correction, Reshaped
from vidsparse.generation.positions import KINDS
from vidsparse.generation.scheduler import check_sampler
from vidsparse.patterns import Pattern

# Precision -> dtype of the LoRA's file; None: that of the training.
PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """The settings of a training.

    Attributes:
        pattern: attention of the training, forward and backward, and of the generation that the LoRA is for. A
            `StepSchedule` means the same noise levels in both, see `vidsparse.finetune.noise`.
        correction: estimates what the dropped tiles would have added, or None.
        rank, alpha: of the LoRA; alpha None is the rank, so that its output has a factor of 1.
        targets: endings of the names of the layers that the LoRA changes.
        start: an initial LoRA of this rank, as `load_lora` finds it. Targets that it does not have (with None all of
            them) start with a contribution of 0.
        transformer: "transformer", or "transformer_2" for the expert of low noise.
        steps: optimizer steps in total.
        batch: videos of a step in each process. Each is a separate pass, of any size: one fills a GPU.
        learning_rate: the peak of AdamW's learning rate.
        warmup: steps in which the rate rises to its peak.
        decay: fraction of all steps, at the end, in which the rate falls to 0. With a decay, a resumed training cannot
            change its number of steps.
        weight_decay, clip: of AdamW; the largest norm of the gradient.
        caption_dropout: fraction of the videos that train without their caption, for classifier-free guidance.
        ema: decay of the running average of the weights that is saved; None saves the weights themselves.
        positions: "plain", "riflex" or "yarn": how rotary positions extend beyond the frames that the model was trained
            with.
        trained_frames: video frames (not latent) that the base model was trained with; None: as many as the longest
            clip.
        inference_steps: denoising steps of the generation, which turn the steps of a `StepSchedule` into noise levels.
        sampler, flow_shift: of that generation and of sample videos, see `vidsparse.build_scheduler`; the noise levels
            of the training have the same shift. None: those of the pipeline's scheduler.
        precision: "bf16" or "fp16" (GPU only) computes in that dtype, "no" in the dtype of the weights. The LoRA learns
            in float32; its file has the precision, with "no" float32.
        gradient_checkpointing: recompute activations in the backward to save their memory.
        seed: of the LoRA's initial weights, the order of the videos, the noise and its levels.
        log_every, save_every, sample_every: steps between two log lines, checkpoints and samples; 0 never samples.
        keep: how many checkpoints are kept.
        sample_prompts: prompts of the sample videos.
    """

    pattern: Pattern
    correction: Correction | None = None
    rank: int = 128
    alpha: float | None = None
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    start: str | None = None
    transformer: str = "transformer"
    steps: int = 1000
    batch: int = 1
    learning_rate: float = 1e-4
    warmup: int = 20
    decay: float = 0.0
    weight_decay: float = 0.0
    clip: float = 1.0
    caption_dropout: float = 0.1
    ema: float | None = None
    positions: str = "plain"
    trained_frames: int | None = None
    inference_steps: int = 30
    sampler: str | None = None
    flow_shift: float | None = None
    precision: str = "bf16"
    gradient_checkpointing: bool = True
    seed: int = 0
    log_every: int = 10
    save_every: int = 100
    keep: int = 2
    sample_every: int = 0
    sample_prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("rank", "steps", "batch", "inference_steps", "log_every", "save_every", "keep"):
            _at_least(name, getattr(self, name), 1)
        for name in ("warmup", "weight_decay", "sample_every"):
            _at_least(name, getattr(self, name), 0)
        for name in ("learning_rate", "clip", *(["alpha"] if self.alpha is not None else [])):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        for name in ("caption_dropout", *(["ema"] if self.ema is not None else [])):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1)")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay={self.decay} must be in [0, 1], a part of the steps")
        if not self.targets:
            raise ValueError("targets is empty; name layers such as to_q")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
        if self.positions not in KINDS:
            raise ValueError(f"positions={self.positions!r} is unknown; choose one of {', '.join(KINDS)}")
        if self.positions != "plain" and self.trained_frames is None:
            raise ValueError(
                f"positions={self.positions!r} needs trained_frames, the length that the base model was trained with"
            )
        check_sampler(self.sampler, self.flow_shift)
        if isinstance(self.correction, Reshaped):
            raise ValueError(
                f"correction={self.correction!r} needs consecutive denoising steps, which training does not have; use "
                "another correction"
            )
        if self.sample_every and not self.sample_prompts:
            raise ValueError(f"sample_every={self.sample_every} needs sample_prompts")
        if not isinstance(self.pattern, Pattern):
            raise TypeError(f"pattern={self.pattern!r} must be a pattern, such as vidsparse.Radial(density=0.2)")

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        falling = (self.steps - step) / (self.decay * self.steps) if self.decay else 1.0
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup), falling)

    def check_targets(self, transformer: torch.nn.Module) -> None:
        """Refuse targets that match no linear layer of a transformer.

        Raises:
            ValueError: with the endings that exist.
        """
        linear = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
        unknown = [t for t in self.targets if not any(name == t or name.endswith(f".{t}") for name in linear)]
        if unknown:
            ends = sorted({_end(name) for name in linear})
            raise ValueError(f"targets {', '.join(unknown)} do not exist; choose from {', '.join(ends)}")


def _end(name: str) -> str:
    """The last part of a module's name; if that is a number, the last two parts."""
    *before, last = name.split(".")
    return f"{before[-1]}.{last}" if last.isdigit() and before else last


def _at_least(name: str, value: float, least: int) -> None:
    if not value >= least:
        raise ValueError(f"{name}={value} must be {least} or more")
