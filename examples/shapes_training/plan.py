"""The plans of the training: phases from coarse tokens to fine ones, under one fall of the learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from vidsparse.shapes.world import ENDLESS, World


@dataclass(frozen=True)
class Phase:
    """A part of the training with tokens of one size.

    Attributes:
        name: of the phase, its checkpoint and its lines in the log.
        patch: height and width of a token, in latents.
        steps: of the phase.
        batch: videos of a step.
        rate: factor of the learning rate at the first and at the last step.
        sparse: share of the steps of whole clips, or of their parts, with sparse attention.
        short: share of the steps, or of their parts, that see the first frames of their clips alone, with dense
            attention. An outline is a matter of single frames, and such a step costs a fifth of a whole one.
        short_frames: how many latent frames those are.
        parts: in which the videos of a step go through the transformer, to save memory.
        asked: held-out videos that each checkpoint is asked about, for the log.
        seconds: after which the phase ends even if steps are left; the rate falls accordingly.
    """

    name: str
    patch: int
    steps: int
    batch: int
    rate: tuple[float, float]
    sparse: float = 0.0
    short: float = 0.0
    short_frames: int = 3
    parts: int = 1
    asked: int = 32
    seconds: float = math.inf


@dataclass(frozen=True)
class Plan:
    """Phases in their order, and what they share.

    Attributes:
        phases: each goes on from the weights of the one before.
        world: what is drawn.
        learning_rate: of Muon; AdamW has half of it.
        shift: of the noise levels in training.
        density: of the sparse steps.
    """

    phases: tuple[Phase, ...]
    world: World = ENDLESS
    learning_rate: float = 3e-3
    shift: float = 5.0
    density: float = 0.2


PLANS = {
    # Some twelve hours of one CPU core.
    "cpu": Plan(
        (
            Phase("patch4", 4, 3000, 8, (1.0, 0.8)),
            Phase("patch2", 2, 1300, 8, (0.8, 0.3), short=0.6, asked=16),
            Phase("patch1", 1, 320, 8, (0.3, 0.0), sparse=0.9, short=0.85, short_frames=2, parts=4, asked=2),
        )
    ),
    # Eight minutes of a GPU with the autoencoder, the latents and a strip; no GPU has run it yet.
    "cuda": Plan(
        (
            Phase("patch4", 4, 4000, 64, (1.0, 0.8), seconds=90),
            Phase("patch2", 2, 4000, 32, (0.8, 0.3), seconds=120),
            Phase("patch1", 1, 2000, 16, (0.3, 0.0), sparse=0.5, short=0.5, seconds=150),
        )
    ),
    # A dry run.
    "tiny": Plan(
        (Phase("patch4", 4, 2, 2, (1.0, 0.5)), Phase("patch2", 2, 2, 2, (0.5, 0.0), sparse=1.0, short=0.5, parts=2)),
        replace(ENDLESS, size=32, frames=5),
    ),
}
