"""Checks of a model, its settings and the device before a training computes anything."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from vidsparse.corrections.proxy_tokens import averaged
from vidsparse.finetune.data.clips import Bucket
from vidsparse.finetune.families import TrainingTask, task_for
from vidsparse.finetune.memory.base import check_base_on, check_loaded
from vidsparse.finetune.memory.sharding import check_shardable, check_sharded
from vidsparse.finetune.memory.swap import check_blocks
from vidsparse.finetune.noise import bounds_of, by_noise, sparse_levels
from vidsparse.finetune.optim.optimizers import check_optimizer_on
from vidsparse.finetune.process.accelerator import check_placed, processes, shards_base
from vidsparse.finetune.process.groups import Groups, check_sharing
from vidsparse.finetune.process.zero import check_zero, zero_of
from vidsparse.finetune.settings import Settings
from vidsparse.finetune.start import start_weights
from vidsparse.generation.positions import check_positions
from vidsparse.generation.scheduler import build_scheduler
from vidsparse.runtime.sparsify import sparsify

ANY = Bucket(33, 256, 256)  # a size for what depends on one where none is known


def training_device(cpu: bool = False) -> torch.device:
    """The device of a training: an accelerator if there is one, unless the CPU is asked for."""
    found = None if cpu else torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if found is None else found


def check_device(settings: Settings, cpu: bool = False, planned: bool = False) -> None:
    """Refuse what the device of a training does not compute, before a model is loaded.

    Args:
        settings: of the training.
        cpu: train on the CPU even if there is a GPU.
        planned: nothing will be loaded: what needs a GPU or a package may be planned for without it.

    Raises:
        ValueError: fp16 on a CPU; nf4 without CUDA; a number of processes that `context_parallel` does not divide.
        ImportError: no installed package has the optimizer for this device, or the base; or DeepSpeed is missing.
        NotImplementedError: accelerate's settings ask for FSDP or DeepSpeed, see `check_sharded` and `check_zero`.
    """
    device = training_device(cpu)
    if not planned:
        Groups(settings.context_parallel, world=processes())
    if shards_base():
        check_sharded(settings)
    if zero_of() is not None and (planned or processes() > 1):
        check_zero(settings, None if planned else device)
    if not planned:
        check_base_on(settings.base, device)
    if settings.precision == "fp16" and device.type == "cpu":
        raise ValueError("precision='fp16' needs a GPU; use 'bf16' on a CPU")
    check_optimizer_on(settings.optimizer, device)


def check_pipeline(pipe: Any, settings: Settings, buckets: Iterable[Bucket] = ()) -> None:
    """Refuse what cannot be trained, before videos are read. The pipeline does not change.

    Args:
        pipe, settings: as `finetune` takes them.
        buckets: sizes of the clips.

    Raises:
        NotImplementedError: see `check_model`; FSDP of weights that it cannot divide.
        ValueError: the transformer does not exist, has a LoRA, does not rest as `Settings.base` says, or is on the GPU
            of another process; or see `check_model`.
        OSError: the initial LoRA does not exist.
        ImportError: peft is missing; or see `check_model`.
    """
    import peft  # noqa: F401

    task = task_for(pipe)
    transformer = getattr(pipe, settings.transformer, None)
    if not isinstance(transformer, torch.nn.Module):
        raise ValueError(f"transformer={settings.transformer!r} does not exist in the pipeline; use 'transformer'")
    if getattr(transformer, "peft_config", None):
        raise ValueError("the transformer already has a LoRA; remove it with pipe.unload_lora_weights()")
    check_loaded(settings.base, transformer)
    check_placed(transformer)
    if shards_base():
        check_shardable(transformer)
    bounds = bounds_of(pipe.config, settings.transformer)
    check_model(task, transformer, settings.of_family(task), buckets, pipe.scheduler, bounds)


def check_model(
    task: TrainingTask,
    transformer: torch.nn.Module,
    settings: Settings,
    buckets: Iterable[Bucket],
    scheduler: Any,
    bounds: tuple[float, float],
) -> None:
    """Refuse what a transformer, with weights or without, cannot be trained for. It does not change.

    Args:
        task: of the model's family.
        transformer: that is trained.
        settings: of the training, see `Settings.of_family`.
        buckets: sizes of the clips.
        scheduler: of the pipeline.
        bounds: noise levels of the transformer, see `bounds_of`.

    Raises:
        NotImplementedError: positions or blocks that the model does not have, a scheduler of another kind, or a model
            that processes cannot share.
        ValueError: a weighting of the loss that the model has no meaning for; targets do not exist; the initial LoRA
            has another shape; the pattern is for another model; the schedule is dense at all noise levels of this
            transformer; or the model, or processes that share a clip, do not take a size.
        OSError: the initial LoRA does not exist.
        ImportError: a package that the family needs besides is missing.
    """
    buckets = list(buckets)
    task.check_packages()
    settings.weighting.check(task)
    for bucket in buckets:
        bucket.check_for(task)
    settings.check_targets(transformer, task.untrained)
    check_positions(transformer, settings.positions)
    if settings.offload_base:
        check_blocks(transformer)
    if settings.start is not None:
        start_weights(transformer, settings, settings.start)
    scheduler = build_scheduler(scheduler, settings.sampler, settings.flow_shift)
    largest = max(buckets, key=lambda bucket: (bucket.frames, bucket.height * bucket.width), default=ANY)
    view = task.view(largest.frames, largest.height, largest.width)
    task.shift(scheduler, view)
    levels = task.levels(scheduler, settings.inference_steps, view)
    pattern = by_noise(settings.pattern, scheduler, settings.inference_steps, levels)
    if settings.context_parallel > 1:
        check_sharing(task, transformer, settings, buckets)
    sparsify(transformer, pattern, correction=averaged(settings.correction)).restore()
    sparse = sparse_levels(pattern)
    if not max(sparse[0], bounds[0]) < min(sparse[1], bounds[1]):
        raise ValueError(
            f"{settings.pattern} is sparse at noise levels from {sparse[0]:.2f} to {sparse[1]:.2f}, and "
            f"{settings.transformer} computes from {bounds[0]:.2f} to {bounds[1]:.2f}: it would train without sparse "
            "attention; use fewer dense steps"
        )
