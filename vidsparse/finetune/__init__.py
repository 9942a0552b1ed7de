"""LoRAs for longer videos, trained with sparse attention: data, training and checkpoints."""

from __future__ import annotations

from vidsparse.finetune.checks import check_device, check_pipeline, training_device
from vidsparse.finetune.data.clips import Bucket, Clip, Skipped
from vidsparse.finetune.data.cutting import Cutting
from vidsparse.finetune.data.folder import folder_clips
from vidsparse.finetune.data.synthetic import drawn_clips
from vidsparse.finetune.job import finetune
from vidsparse.finetune.memory.base import quantization_of
from vidsparse.finetune.process.accelerator import check_launch
from vidsparse.finetune.process.stopping import Stopped
from vidsparse.finetune.record.validation import hold_out
from vidsparse.finetune.settings import Settings

__all__ = [
    "Bucket",
    "Clip",
    "Cutting",
    "Settings",
    "Skipped",
    "Stopped",
    "check_device",
    "check_launch",
    "check_pipeline",
    "drawn_clips",
    "finetune",
    "folder_clips",
    "hold_out",
    "quantization_of",
    "training_device",
]
