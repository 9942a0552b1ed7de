"""The models whose weights ship with the package: where each is, what it was trained on, and how it is sampled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidsparse.shapes.scene import MAX_WORDS
from vidsparse.shapes.world import ENDLESS, FLAT, World

WEIGHTS = Path(__file__).parent / "weights"
DEFAULT = "shapes"
PROFILE = "vidsparse_profile.json"  # the name of a profile in a folder and on the Hub


@dataclass(frozen=True)
class ShippedModel:
    """A model that ships.

    Attributes:
        name: as `--model` takes it.
        folder: of its pipeline.
        world: what it was trained on, which also gives the size of its videos.
        steps, guidance: with which it is sampled by default.
        longer_frames: of the videos that a LoRA for longer ones learns.
    """

    name: str
    folder: Path
    world: World
    steps: int
    guidance: float
    longer_frames: int

    @property
    def profile(self) -> Path:
        """The file with the pattern that it was trained with, for models that have one."""
        return self.folder / PROFILE

    @property
    def sampling(self) -> dict[str, Any]:
        """Arguments of `pipe(...)` that are used unless others are given."""
        return dict(
            height=self.world.size,
            width=self.world.size,
            num_frames=self.world.frames,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            max_sequence_length=MAX_WORDS,
        )


SHIPPED = {
    known.name: known
    for known in (
        ShippedModel(DEFAULT, WEIGHTS / "128", ENDLESS, steps=20, guidance=2.0, longer_frames=65),
        # The settings with the best score of the judge.
        ShippedModel("shapes-64", WEIGHTS / "64", FLAT, steps=30, guidance=2.0, longer_frames=129),
    )
}


def shipped_at(folder: str | Path) -> ShippedModel | None:
    """The model that ships in a folder; None for any other."""
    place = Path(folder).resolve()
    return next((known for known in SHIPPED.values() if known.folder.resolve() == place), None)
