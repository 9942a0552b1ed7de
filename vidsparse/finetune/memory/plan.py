"""What a training will do, from the settings of its model alone: steps, epochs, and what a pass of each size takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch

from vidsparse.finetune.checks import check_model
from vidsparse.finetune.data.clips import Bucket, Clip
from vidsparse.finetune.families import task_for
from vidsparse.finetune.memory.forecast import StepForecast, forecast_step
from vidsparse.finetune.noise import bounds_of, by_noise
from vidsparse.finetune.process.groups import Groups
from vidsparse.finetune.process.zero import Zero
from vidsparse.finetune.settings import Settings
from vidsparse.generation.config_files import INDEX, read_config
from vidsparse.generation.frames import vae_stride
from vidsparse.generation.models import Model, source_of
from vidsparse.generation.scheduler import build_scheduler
from vidsparse.generation.transformers import configured_transformers, defaults, without_weights
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
    model: Model,
    settings: Settings,
    clips: Sequence[Clip],
    dtype: torch.dtype,
    processes: int = 1,
    divided: bool = False,
    zero: Zero | None = None,
) -> Plan:
    """Predict a training. No weights are read.

    Args:
        model: from `find_model`. settings: of the training; what they leave open is as on a CPU, see `Settings.on`.
        clips: that it is trained on.
        dtype: that weights are stored in.
        processes: that share a step. divided: whether they divide the frozen weights, with FSDP. zero: what DeepSpeed
            divides among them, or None.

    Raises:
        NotImplementedError: a model that cannot be trained.
        ValueError: processes that cannot share clips; settings or sizes that do not fit the model: what
            `check_pipeline` refuses of the loaded one.
        OSError: the settings of the model cannot be read, or the initial LoRA does not exist.
        ImportError: a package that the family needs besides is missing.
    """
    task_for(model.pipeline_class)  # refuses first what cannot be trained at all
    transformers = configured_transformers(model.name)
    if settings.transformer not in transformers:
        raise ValueError(
            f"transformer={settings.transformer!r} does not exist in {model.name}; it has {', '.join(transformers)}"
        )
    cls, config = transformers[settings.transformer]
    source = source_of(model.name)
    own = read_config(source, "scheduler/scheduler_config.json") or {}
    scheduler = getattr(diffusers, own.get("_class_name", "UniPCMultistepScheduler")).from_config(own)
    stride = vae_stride(read_config(source, "vae/config.json")) or adapter_of(cls).vae_stride
    index = read_config(source, INDEX) or {}
    full = {**defaults(cls), **config}
    task = task_for(model.pipeline_class, config=full, pipeline=index, scheduler=scheduler, stride=stride)
    bounds = bounds_of(index, settings.transformer)
    settings = settings.of_family(task).on(torch.device("cpu"))
    counts = Counter(clip.bucket for clip in clips)
    transformer = without_weights(cls, config)
    # Where it would be loaded from: a LoRA to start from may be of another model that ships.
    transformer.register_to_config(_name_or_path=str(Path(source) / settings.transformer))
    check_model(task, transformer, settings, counts, scheduler, bounds)
    scheduler = build_scheduler(scheduler, settings.sampler, settings.flow_shift)
    sizes = {}
    for bucket in counts:
        view = task.view(bucket.frames, bucket.height, bucket.width)
        levels = task.levels(scheduler, settings.inference_steps, view)
        sizes[bucket] = forecast_step(
            cls,
            config,
            task,
            settings,
            bucket,
            pattern=by_noise(settings.pattern, scheduler, settings.inference_steps, levels),
            shift=task.shift(scheduler, view),
            bounds=bounds,
            vae_stride=stride,
            words=model.default("max_sequence_length") or 512,
            dtype=dtype,
            divided=processes if divided else 1,
            zero=zero,
            processes=processes,
        )
    groups = Groups(settings.context_parallel, world=processes)
    return Plan(dict(counts), sizes, settings.steps, settings.batch * groups.number)
