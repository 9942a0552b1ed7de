"""What a LoRA is trained with: everything that decides the result, checked before the long work starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vidsparse.corrections import Correction, Reshaped
from vidsparse.generation.positions import KINDS
from vidsparse.generation.scheduler import check_sampler
from vidsparse.patterns import Pattern

PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # of a LoRA's file; None: as it learns


@dataclass(frozen=True)
class Settings:
    """How a LoRA is trained.

    Attributes:
        pattern: attention of the training, forward and backward, and of the generation that it is for. A `StepSchedule`
            means the same noise levels in both, see `vidsparse.finetune.noise`.
        correction: what is added back for dropped tiles, or None.
        rank, alpha: of the LoRA; alpha None is the rank, so that its output has a factor of 1.
        targets: ends of the names of the layers that it changes.
        start: a LoRA of this rank to begin with, as `load_lora` finds it. Targets that it does not have, all of them
            with None, begin by adding 0.
        transformer: "transformer", or "transformer_2" for the expert of low noise.
        steps: optimizer steps in all.
        batch: videos of a step in each process. Each is a pass of its own, of any size: one fills a GPU.
        learning_rate, warmup, decay: peak of AdamW's rate, reached after so many steps, and the part of all, at the
            end, in which it falls to 0. With a decay, a training that goes on cannot be of another length.
        weight_decay, clip: of AdamW; the largest norm of the gradient.
        caption_dropout: part of the videos that train without their caption, for classifier-free guidance.
        ema: decay of the running average of the weights that is saved, or None to save the weights themselves.
        positions: "plain", "riflex" or "yarn", how rotary positions go on beyond the frames that the model was
            trained with.
        trained_frames: frames of the video (not latent) that the base model was trained with; None: no more than here.
        inference_steps: denoising steps of the generation, by which the steps of a `StepSchedule` become noise levels.
        sampler, flow_shift: of that generation and of sample videos, see `vidsparse.build_scheduler`; noise levels of
            the training are spaced by the same shift. None: those of the pipeline's scheduler.
        precision: "bf16" or "fp16" (on a GPU) computes in that, "no" in the dtype of the weights. The LoRA
            learns in float32; its file has the precision, with "no" float32.
        gradient_checkpointing: compute activations again in the backward, in exchange for their memory.
        seed: of the LoRA's start, the order of the videos, the noise and its levels.
        log_every, save_every, sample_every: steps from one to the next; 0 never samples. keep: checkpoints that stay.
        sample_prompts: what the sample videos show.
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
            raise ValueError(f"positions={self.positions!r} needs trained_frames, the length that the base model knows")
        check_sampler(self.sampler, self.flow_shift)
        if isinstance(self.correction, Reshaped):
            raise ValueError(f"correction={self.correction!r} adds what it saw a step before; a training has no steps")
        if self.sample_every and not self.sample_prompts:
            raise ValueError(f"sample_every={self.sample_every} needs sample_prompts")
        if not isinstance(self.pattern, Pattern):
            raise TypeError(f"pattern={self.pattern!r} must be a pattern, such as vidsparse.Radial(density=0.2)")

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        falling = (self.steps - step) / (self.decay * self.steps) if self.decay else 1.0
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup), falling)

    def check_targets(self, transformer: torch.nn.Module) -> None:
        """Refuse targets that name no linear layer of a transformer.

        Raises:
            ValueError: lists the ends of names that there are.
        """
        linear = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
        unknown = [t for t in self.targets if not any(name == t or name.endswith(f".{t}") for name in linear)]
        if unknown:
            ends = sorted({_end(name) for name in linear})
            raise ValueError(f"targets {', '.join(unknown)}: no such layers; there are {', '.join(ends)}")


def _end(name: str) -> str:
    """The last part of a module's name; with the one before where it is a number."""
    *before, last = name.split(".")
    return f"{before[-1]}.{last}" if last.isdigit() and before else last


def _at_least(name: str, value: float, least: int) -> None:
    if not value >= least:
        raise ValueError(f"{name}={value} must be {least} or more")
