"""The families that can be trained, by the pipelines of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vidsparse.finetune.families.cogvideox import CogVideoXImageTask, CogVideoXTask
from vidsparse.finetune.families.framepack import FramepackTask
from vidsparse.finetune.families.hunyuan_video import HunyuanVideo15ImageTask, HunyuanVideo15Task, HunyuanVideoTask
from vidsparse.finetune.families.hunyuan_video_image import HunyuanVideoImageTask
from vidsparse.finetune.families.kandinsky5 import Kandinsky5ImageTask, Kandinsky5Task
from vidsparse.finetune.families.ltx import LTXImageTask, LTXTask
from vidsparse.finetune.families.ltx2 import LTX2ImageTask, LTX2Task
from vidsparse.finetune.families.mochi import MochiTask
from vidsparse.finetune.families.skyreels_v2 import SkyReelsV2ForcingTask, SkyReelsV2ImageTask, SkyReelsV2Task
from vidsparse.finetune.families.task import TrainingTask
from vidsparse.finetune.families.wan import WanImageTask, WanTask

TASKS: tuple[type[TrainingTask], ...] = (
    *(WanTask, WanImageTask, HunyuanVideoTask, HunyuanVideoImageTask, HunyuanVideo15Task, HunyuanVideo15ImageTask),
    *(FramepackTask, LTXTask, LTXImageTask, LTX2Task, LTX2ImageTask),
    *(CogVideoXTask, CogVideoXImageTask, MochiTask, Kandinsky5Task, Kandinsky5ImageTask),
    *(SkyReelsV2Task, SkyReelsV2ImageTask, SkyReelsV2ForcingTask),
)

# Attributes of pipelines that say how many frames, and how many pixels in height and width, a latent covers.
FRAME_STRIDES = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor")
PIXEL_STRIDES = ("vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_spatial_scale_factor")


def task_for(pipe: Any, **facts: Any) -> TrainingTask:
    """The task of a pipeline, or of a class of pipelines.

    Args:
        pipe: a pipeline or its class.
        facts: of a class, the fields of `TrainingTask`.

    Raises:
        NotImplementedError: a pipeline that cannot be trained, with those that can.
    """
    is_class = isinstance(pipe, type)
    cls = pipe if is_class else type(pipe)
    found = task_class(cls)
    if found is None:
        raise NotImplementedError(f"{cls.__name__} cannot be trained; finetune trains {', '.join(trained())}")
    task = found(**(facts if is_class else _facts(pipe)))
    if (reason := task.refusal()) is not None:
        raise NotImplementedError(
            f"this {cls.__name__} cannot be trained: {reason}; finetune trains {', '.join(trained())}"
        )
    return task


def task_class(pipeline: type[Any]) -> type[TrainingTask] | None:
    """The task of a class of pipelines; None where it cannot be trained."""
    names = [kind.__name__ for kind in pipeline.__mro__]
    return next((task for name in names for task in TASKS if name in task.pipelines), None)


def trained() -> list[str]:
    """The names of all pipelines that can be trained."""
    return [name for task in TASKS for name in task.pipelines]


def _facts(pipe: Any) -> Mapping[str, Any]:
    transformer = getattr(pipe, "transformer", None) or getattr(pipe, "transformer_2", None)
    strides = (
        next(int(value) for name in names if (value := getattr(pipe, name, None)) is not None)
        for names in (FRAME_STRIDES, PIXEL_STRIDES)
    )
    return {
        "config": {} if transformer is None else dict(transformer.config),
        "pipeline": dict(pipe.config),
        "scheduler": pipe.scheduler,
        "stride": tuple(strides),
    }
