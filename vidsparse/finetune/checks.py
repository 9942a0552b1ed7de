"""Checks of a pipeline and its settings before a training computes anything."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from vidsparse.finetune.data.clips import Bucket
from vidsparse.finetune.data.encoders import check_bucket
from vidsparse.finetune.noise import bounds_of, by_noise, shift_of, sparse_levels
from vidsparse.finetune.settings import Settings
from vidsparse.finetune.start import start_weights
from vidsparse.finetune.task import task_for
from vidsparse.generation.scheduler import build_scheduler
from vidsparse.runtime.sparsify import sparsify


def check_pipeline(pipe: Any, settings: Settings, buckets: Iterable[Bucket] = ()) -> None:
    """Refuse what cannot be trained, before videos are read. The pipeline does not change.

    Args:
        pipe, settings: as `finetune` takes them.
        buckets: sizes of the clips.

    Raises:
        NotImplementedError: not a text-to-video pipeline of Wan's kind, or a scheduler of another kind.
        ValueError: a weighting of the loss that the model has no meaning for; the transformer does not exist or has a
            LoRA; targets do not exist; the initial LoRA has another shape; the pattern is for another model; the
            schedule is dense at all noise levels of this transformer; or the model does not take a size.
        OSError: the initial LoRA does not exist.
        ImportError: peft is missing.
    """
    import peft  # noqa: F401

    task = task_for(pipe)
    settings.weighting.check(task)
    transformer = getattr(pipe, settings.transformer, None)
    if not isinstance(transformer, torch.nn.Module):
        raise ValueError(f"transformer={settings.transformer!r} does not exist in the pipeline; use 'transformer'")
    if getattr(transformer, "peft_config", None):
        raise ValueError("the transformer already has a LoRA; remove it with pipe.unload_lora_weights()")
    for bucket in buckets:
        check_bucket(pipe, bucket)
    settings.check_targets(transformer)
    if settings.start is not None:
        start_weights(pipe, settings, settings.start)
    scheduler = build_scheduler(pipe.scheduler, settings.sampler, settings.flow_shift)
    shift_of(scheduler)
    pattern = by_noise(settings.pattern, scheduler, settings.inference_steps)
    sparsify(transformer, pattern, correction=settings.correction).restore()
    sparse, own = sparse_levels(pattern), bounds_of(pipe, settings.transformer)
    if not max(sparse[0], own[0]) < min(sparse[1], own[1]):
        raise ValueError(
            f"{settings.pattern} is sparse at noise levels from {sparse[0]:.2f} to {sparse[1]:.2f}, and "
            f"{settings.transformer} computes from {own[0]:.2f} to {own[1]:.2f}: it would train without sparse "
            "attention; use fewer dense steps"
        )
