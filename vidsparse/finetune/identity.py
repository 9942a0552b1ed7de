"""What makes a training the same one: a checkpoint resumes only under the settings that decide its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path

from vidsparse.finetune.draws.levels import UNIFORM
from vidsparse.finetune.settings import FREE, Settings

ORDER = "each video once in an epoch"
NO_LONGER = ("gradient_checkpointing",)  # settings that an earlier version compared


def comparable(settings: Settings) -> dict[str, str]:
    """The settings that decide the result, as text for a checkpoint."""
    free = [*FREE, *([] if settings.rates.needs_steps else ["steps"])]
    return {f.name: repr(getattr(settings, f.name)) for f in fields(settings) if f.name not in free}


def check_same(before: Mapping[str, str], now: Mapping[str, str], folder: Path, say: Callable[[str], None]) -> None:
    """Refuse the checkpoints of another training.

    Settings that an earlier version did not have count as their defaults. That version also drew each video at random.

    Args:
        before: of the checkpoint. now: of this training.
        folder: of the run.
        say: called with a message if the checkpoint is of an earlier version.

    Raises:
        ValueError: with what has changed.
    """
    known = {**_defaults(), **before}
    if "order" not in before:
        say(f"the checkpoints in {folder} are of an earlier version, which drew videos in another order; now {ORDER}")
        known["order"] = now.get("order", "")
    names = dict.fromkeys(name for name in (*now, *before) if name not in NO_LONGER)
    changed = [f"{n} was {known.get(n)}, is {now.get(n)}" for n in names if known.get(n) != now.get(n)]
    if changed:
        raise ValueError(
            f"the checkpoints in {folder} are of another training ({'; '.join(changed)}); "
            "resume with its settings, or choose another folder"
        )


def _defaults() -> dict[str, str]:
    decide = [f for f in fields(Settings) if f.default is not MISSING and f.name not in (*FREE, "steps")]
    return {f.name: repr(f.default) for f in decide} | {"timestep_sampling": repr(UNIFORM.kind)}
