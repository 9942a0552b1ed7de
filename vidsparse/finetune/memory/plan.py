"""What a training will do, from the settings of its model alone: steps, epochs, and what a pass of each size takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import diffusers
import torch

from vidsparse.finetune.data.clips import Bucket, Clip
from vidsparse.finetune.memory.forecast import StepForecast, forecast_step
from vidsparse.finetune.noise import by_noise, shift_of
from vidsparse.finetune.settings import Settings
from vidsparse.finetune.targets import check_targets
from vidsparse.finetune.task import task_for
from vidsparse.generation.config_files import INDEX, read_config
from vidsparse.generation.frames import vae_stride
from vidsparse.generation.models import Model, source_of
from vidsparse.generation.scheduler import build_scheduler
from vidsparse.generation.transformers import configured_transformers, without_weights
from vidsparse.runtime.registry import adapter_of


@dataclass(frozen=True)
class Plan:
    """What a training will do.

    Attributes:
        clips: how many there are of each size.
        sizes: what one pass of each size takes.
        steps: of the training. videos: of a step, over all processes.
    """

    clips: dict[Bucket, int]
    sizes: dict[Bucket, StepForecast]
    steps: int
    videos: int

    @property
    def epochs(self) -> float:
        """How often each video is seen."""
        return self.steps * self.videos / sum(self.clips.values())

    @property
    def flops(self) -> float:
        """Operations of a step in one process, on average over the clips."""
        total = sum(self.clips.values())
        return sum(self.sizes[size].flops * count for size, count in self.clips.items()) / total

    @property
    def largest(self) -> StepForecast:
        """The pass that takes the most memory."""
        return max(self.sizes.values(), key=lambda one: one.memory)


def plan_training(
    model: Model, settings: Settings, clips: Sequence[Clip], dtype: torch.dtype, processes: int = 1
) -> Plan:
    """Predict a training. No weights are read.

    Args:
        model: from `find_model`. settings: of the training. clips: that it is trained on.
        dtype: that weights are stored in.
        processes: that share a step.

    Raises:
        NotImplementedError: a model that cannot be trained.
        ValueError: targets, sizes or a weighting of the loss that do not fit the model.
        OSError: the settings of the model cannot be read.
    """
    task = task_for(model.pipeline_class)
    settings.weighting.check(task)
    transformers = configured_transformers(model.name)
    if settings.transformer not in transformers:
        raise ValueError(
            f"transformer={settings.transformer!r} does not exist in {model.name}; it has {', '.join(transformers)}"
        )
    cls, config = transformers[settings.transformer]
    check_targets(without_weights(cls, config), settings.targets, settings.exclude)
    source = source_of(model.name)
    own = read_config(source, "scheduler/scheduler_config.json") or {}
    scheduler = getattr(diffusers, own.get("_class_name", "UniPCMultistepScheduler")).from_config(own)
    scheduler = build_scheduler(scheduler, settings.sampler, settings.flow_shift)
    boundary = (read_config(source, INDEX) or {}).get("boundary_ratio")
    bounds = (0.0, 1.0)
    if boundary is not None:
        bounds = (boundary, 1.0) if settings.transformer == "transformer" else (0.0, boundary)
    stride = vae_stride(read_config(source, "vae/config.json")) or adapter_of(cls).vae_stride
    counts = Counter(clip.bucket for clip in clips)
    sizes = {}
    for bucket in counts:
        patch = config.get("patch_size", (1, 2, 2))[-1]
        bucket.check(stride[0], stride[1] * patch)
        sizes[bucket] = forecast_step(
            cls,
            config,
            task,
            settings,
            bucket,
            pattern=by_noise(settings.pattern, scheduler, settings.inference_steps),
            shift=shift_of(scheduler),
            bounds=bounds,
            vae_stride=stride,
            words=model.default("max_sequence_length") or 512,
            dtype=dtype,
        )
    return Plan(dict(counts), sizes, settings.steps, settings.batch * processes)
