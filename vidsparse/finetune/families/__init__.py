"""What each model family is trained on and answers: one file a family."""

from __future__ import annotations

from vidsparse.finetune.families.registry import TASKS, task_class, task_for
from vidsparse.finetune.families.task import TrainingTask

__all__ = ["TASKS", "TrainingTask", "task_class", "task_for"]
