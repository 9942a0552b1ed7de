"""The settings of a training: everything that decides the result, validated before long work starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from vidsparse.corrections import Correction, ProxyTokens, Reshaped
from vidsparse.finetune.draws.levels import UNIFORM, LevelSampling
from vidsparse.finetune.families.task import ATTENTION, TrainingTask
from vidsparse.finetune.memory.base import check_base
from vidsparse.finetune.optim.optimizers import check_optimizer
from vidsparse.finetune.optim.rates import RateSchedule
from vidsparse.finetune.process.trackers import tracker_names
from vidsparse.finetune.targets import ALL, check_targets, matches
from vidsparse.finetune.weighting import LossWeighting
from vidsparse.generation.positions import KINDS
from vidsparse.generation.scheduler import check_sampler
from vidsparse.patterns import Pattern
from vidsparse.patterns.base import patterns_in

Known = TypeVar("Known")
# Precision -> dtype of a step and of the LoRA's file; None: those of the weights and of the LoRA.
PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# Settings that may change when a training is resumed; `steps` too, unless the learning rate depends on it.
FREE = (
    *("start", "batch", "log_every", "save_every", "keep", "log_with"),
    *("gradient_checkpointing", "offload_activations", "offload_base", "context_parallel"),
    *("sample_every", "sample_prompts", "sample_steps", "samples", "validate_every"),
)


@dataclass(frozen=True)
class Settings:
    """The settings of a training.

    Attributes:
        pattern: attention of the training, forward and backward, and of the generation that the LoRA is for. A
            `StepSchedule` means the same noise levels in both, see `vidsparse.finetune.noise`.
        correction: estimates what the dropped tiles would have added, or None. `ProxyTokens(learned=True)` learns with
            the LoRA, at `PROXY_RATE` times its learning rate.
        rank, alpha: of the LoRA; alpha None is the rank, so that its output has a factor of 1.
        targets: endings of the names of the layers that the LoRA changes, or as one string a regular expression that
            matches whole names, or "all-linear", as in peft. None: the projections of attention, as the family names
            them.
        exclude: endings, or a regular expression, of layers that it does not change.
        rslora: scale by alpha / sqrt(rank) (arXiv 2312.03732). dora: also learn the length of each weight's rows (arXiv
            2402.09353). dropout: fraction of the LoRA's inputs that a step leaves out.
        start: an initial LoRA of this rank, as `load_lora` finds it. Targets that it does not have (with None all of
            them) start with a contribution of 0.
        transformer: "transformer", or "transformer_2" for the expert of low noise.
        steps: optimizer steps in total.
        batch: videos of a step in each process, or in each group of processes that share a clip. Each is a separate
            pass, of any size, and their gradients add up: this is the number of passes that other trainers call
            gradient accumulation.
        optimizer: "adamw", "adamw-8bit", "prodigy" or "muon", see `build_optimizer`.
        learning_rate: its peak.
        lora_plus_ratio: learning rate of the LoRA's matrices B by that of A (LoRA+); None: the same.
        lr_scheduler: "constant_with_warmup", "constant", "linear", "cosine", "cosine_with_restarts" or "polynomial".
        warmup: steps in which the rate rises to its peak. lr_num_cycles, lr_power: of restarts and of the polynomial.
        decay: fraction of all steps, at the end, in which a constant rate falls to 0. With a decay, or a schedule that
            falls by itself, a resumed training cannot change its number of steps.
        weight_decay, clip: of the optimizer; the largest norm of the gradient.
        timestep_sampling: density of the noise levels before the shift: "uniform", "logit_normal" or "mode"; None: as
            the model's family is trained.
        logit_mean, logit_std, mode_scale: of these densities, see `LevelSampling`.
        loss_weighting: factor of the loss by noise level: "none", "sigma_sqrt", "cosmap" or "min_snr".
        snr_gamma: of "min_snr".
        caption_dropout: fraction of the videos that train without their caption, for classifier-free guidance; None: as
            the model needs.
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
        base: how the frozen weights rest: "none" as they were loaded, "int8", "nf4" or "float8", see
            `vidsparse.finetune.memory.base`.
        gradient_checkpointing: recompute activations in the backward to save their memory. None: on a GPU, and where
            something else needs it.
        offload_activations: keep what gradient checkpointing keeps in the CPU's memory.
        offload_base: keep the frozen weights of the blocks in the CPU's memory, but for those of two blocks at a time.
        context_parallel: processes that share each clip, see `vidsparse.finetune.process.groups`; it divides their
            number and the heads.
        seed: of the LoRA's initial weights, the order of the videos, the noise and its levels.
        log_every, save_every: steps between two log lines and between two checkpoints.
        log_with: "tensorboard", "wandb", "all", "none", or "auto": TensorBoard where it is installed.
        keep: how many checkpoints are kept.
        validate_every: steps between two losses of held-out videos; 0: `save_every`.
        samples: write sample videos at the end. sample_every: also at step 0 and after every so many steps; 0: not.
        sample_prompts: prompts of the sample videos; without any, the caption of one video.
        sample_steps: denoising steps of those on the way; None: a third of `inference_steps`.
    """

    pattern: Pattern
    correction: Correction | None = None
    rank: int = 128
    alpha: float | None = None
    targets: tuple[str, ...] | str | None = None
    exclude: tuple[str, ...] | str = ()
    rslora: bool = False
    dora: bool = False
    dropout: float = 0.0
    start: str | None = None
    transformer: str = "transformer"
    steps: int = 1000
    batch: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 1e-4
    lora_plus_ratio: float | None = None
    lr_scheduler: str = "constant_with_warmup"
    warmup: int = 20
    lr_num_cycles: int = 1
    lr_power: float = 1.0
    decay: float = 0.0
    weight_decay: float = 0.0
    clip: float = 1.0
    timestep_sampling: str | None = None
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    loss_weighting: str = "none"
    snr_gamma: float = 5.0
    caption_dropout: float | None = None
    ema: float | None = None
    positions: str = "plain"
    trained_frames: int | None = None
    inference_steps: int = 30
    sampler: str | None = None
    flow_shift: float | None = None
    precision: str = "bf16"
    base: str = "none"
    gradient_checkpointing: bool | None = None
    offload_activations: bool = False
    offload_base: bool = False
    context_parallel: int = 1
    seed: int = 0
    log_every: int = 10
    save_every: int = 100
    log_with: str = "auto"
    keep: int = 2
    validate_every: int = 0
    samples: bool = True
    sample_every: int = 0
    sample_prompts: tuple[str, ...] = ()
    sample_steps: int | None = None

    def __post_init__(self) -> None:
        optional = [] if self.sample_steps is None else ["sample_steps"]
        for name in (
            "rank",
            "steps",
            "batch",
            "inference_steps",
            "log_every",
            "save_every",
            "keep",
            "context_parallel",
            *optional,
        ):
            _at_least(name, getattr(self, name), 1)
        for name in ("warmup", "weight_decay", "sample_every", "validate_every"):
            _at_least(name, getattr(self, name), 0)
        given = [name for name in ("alpha", "lora_plus_ratio") if getattr(self, name) is not None]
        for name in ("learning_rate", "clip", *given):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        shares = [name for name in ("caption_dropout", "ema") if getattr(self, name) is not None]
        for name in ("dropout", *shares):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1)")
        if self.targets is not None and not self.targets:
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
        if self.learns_proxies and self.optimizer == "prodigy":
            raise ValueError(
                f"correction={self.correction!r} learns at a rate of its own, and optimizer='prodigy' has one for all; "
                "take another optimizer, or learned=False"
            )
        if self.dora and self.start is not None:
            raise ValueError("start begins with the output of a LoRA, which dora changes; leave one of them out")
        if self.dora and self.optimizer == "muon":
            raise ValueError("optimizer='muon' trains matrices alone, and dora adds vectors; leave one of them out")
        if self.dora and self.base == "float8":
            raise ValueError(
                "dora reads the frozen weights directly, and with base='float8' they are float8 outside of their "
                "layers; take base='int8', or leave out dora"
            )
        if self.dropout and self.context_parallel > 1:
            raise ValueError(
                f"dropout={self.dropout} with context_parallel={self.context_parallel} would drop the same in each "
                "part of a clip; leave one of them out"
            )
        if self.offload_activations and self.gradient_checkpointing is False:
            raise ValueError("offload_activations moves what gradient_checkpointing keeps; switch that on too")
        if self.offload_base and self.gradient_checkpointing is False:
            raise ValueError(
                "offload_base moves weights back and forth, and without gradient_checkpointing the backward pass keeps "
                "all of them on the GPU; switch that on too"
            )
        if self.offload_base and self.base == "nf4":
            raise ValueError(
                "offload_base does not move weights of base='nf4', which bitsandbytes keeps on the GPU; leave one out"
            )
        if not isinstance(self.pattern, Pattern):
            raise TypeError(f"pattern={self.pattern!r} must be a pattern, such as vidsparse.Radial(density=0.2)")
        if any(pattern.two_passes for pattern in patterns_in(self.pattern)):
            raise ValueError("FreeSwim is for generation and has no gradients; train with the pattern that it holds")
        # Each refuses what it does not take.
        check_optimizer(self.optimizer)
        check_base(self.base)
        tracker_names(self.log_with)
        _ = self.rates, self._levels(self.timestep_sampling or UNIFORM.kind), self.weighting

    @property
    def rates(self) -> RateSchedule:
        """The course of the learning rate."""
        return RateSchedule(self.lr_scheduler, self.steps, self.warmup, self.decay, self.lr_num_cycles, self.lr_power)

    @property
    def level_sampling(self) -> LevelSampling:
        """The density of the noise levels. Raises RuntimeError where it is that of a family, see `of_family`."""
        return self._levels(_known("timestep_sampling", self.timestep_sampling))

    @property
    def share_without_caption(self) -> float:
        """`caption_dropout`. Raises RuntimeError where it is that of a family, see `of_family`."""
        return _known("caption_dropout", self.caption_dropout)

    def _levels(self, kind: str) -> LevelSampling:
        return LevelSampling(kind, self.logit_mean, self.logit_std, self.mode_scale)

    @property
    def weighting(self) -> LossWeighting:
        """The factor of the loss by noise level."""
        return LossWeighting(self.loss_weighting, self.snr_gamma)

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        return self.learning_rate * self.rates.factor(step)

    @property
    def learns_proxies(self) -> bool:
        """Whether the correction has proxies that learn."""
        return isinstance(self.correction, ProxyTokens) and self.correction.learned

    @property
    def half(self) -> torch.dtype | None:
        """The dtype that a step computes in; None: that of the weights."""
        return PRECISIONS[self.precision]

    @property
    def scale(self) -> float:
        """The factor of the product of the LoRA's matrices."""
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def on(self, device: torch.device) -> Settings:
        """The settings with what depends on the device, where it is not given."""
        if self.gradient_checkpointing is not None:
            return self
        needed = self.offload_activations or self.offload_base
        return replace(self, gradient_checkpointing=needed or device.type != "cpu")

    def of_family(self, task: TrainingTask) -> Settings:
        """The settings with those of a family, where none are given."""
        own = [name for name in ("targets", "timestep_sampling", "caption_dropout") if getattr(self, name) is None]
        return replace(self, **{name: getattr(task, name) for name in own})

    @property
    def layers(self) -> tuple[str, ...] | str:
        """The targets."""
        return ATTENTION if self.targets is None else self.targets

    def is_target(self, name: str) -> bool:
        """Whether the LoRA changes the linear layer of this name."""
        wanted = self.layers == ALL or matches(name, self.layers)
        return wanted and not (self.exclude and matches(name, self.exclude))

    def check_targets(self, transformer: torch.nn.Module, untrained: str | None = None) -> None:
        """Refuse targets that a transformer does not have, or that are untrained. Raises: see `check_targets`."""
        check_targets(transformer, self.layers, self.exclude, untrained)


def _known(name: str, value: Known | None) -> Known:
    if value is None:
        raise RuntimeError(f"{name}=None means that of the model's family; call settings.of_family(task) first")
    return value


def _at_least(name: str, value: float, least: int) -> None:
    if not value >= least:
        raise ValueError(f"{name}={value} must be {least} or more")
