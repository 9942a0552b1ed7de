"""The model whose weights ship with the package: where it is, what it was trained on, and how it is sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vidsparse.shapes.scene import MAX_WORDS
from vidsparse.shapes.world import ENDLESS

DEFAULT = "shapes"
"""Its name, as `--model` takes it, and what commands take without `--model`."""

FOLDER = Path(__file__).parent / "weights"
WORLD = ENDLESS
LONGER_FRAMES = 65
"""Frames of the videos that a LoRA for longer ones learns."""

SAMPLING: dict[str, Any] = dict(
    height=WORLD.size,
    width=WORLD.size,
    num_frames=WORLD.frames,
    num_inference_steps=20,
    guidance_scale=2.0,
    max_sequence_length=MAX_WORDS,
)
"""Arguments of `pipe(...)` that are used unless others are given."""

PROFILE = "vidsparse_profile.json"
"""The name of a profile in a folder and on the Hub."""
