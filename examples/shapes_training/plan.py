"""The plans of the training: phases from coarse tokens to fine ones, and the two experts that they end with."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from vidsparse.shapes.world import ENDLESS, World


@dataclass(frozen=True)
class Phase:
    """A part of the training with tokens of one size.

    Attributes:
        name: of the phase, its checkpoint, its weights and its lines in the log.
        patch: height and width of a token, in latents.
        steps: of the phase.
        batch: videos of a step.
        rate: factor of the learning rate at the first and at the last step.
        start: the phase whose weights it begins with; "" is the expert for low noise of `shapes`.
        levels: of noise that it learns, from 0 to 1.
        plain: whether positions are counted in tokens, as diffusers counts them, and not in latents.
        sparse: share of the steps of whole clips, or of their parts, with sparse attention.
        density: of the sparse attention.
        searched: whether it is the pattern that the command `pattern` has found, where there is one; else `Radial`.
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
    start: str = ""
    levels: tuple[float, float] = (0.0, 1.0)
    plain: bool = False
    sparse: float = 0.0
    density: float = 0.2
    searched: bool = False
    short: float = 0.0
    short_frames: int = 3
    parts: int = 1
    asked: int = 32
    seconds: float = math.inf


BOUNDARY = 0.8  # with a shift of 6, 13 of 20 steps are in the first expert


@dataclass(frozen=True)
class Plan:
    """Phases in their order, and what they share.

    Attributes:
        phases: in their order.
        experts: the phases whose weights are the model: that of high noise, which lays out, and that of low noise.
        boundary: level of noise from which on the first of them is asked.
        world: what is drawn.
        learning_rate: of Muon; AdamW has half of it.
        shift: of the noise levels in training.
    """

    phases: tuple[Phase, ...]
    experts: tuple[str, str] = ("high3", "low")
    boundary: float = BOUNDARY
    world: World = ENDLESS
    learning_rate: float = 3e-3
    shift: float = 5.0

    def phase(self, name: str) -> Phase:
        """The phase of a name."""
        return next(phase for phase in self.phases if phase.name == name)


PLANS = {
    # Some twelve hours of one CPU core.
    "cpu": Plan(
        (
            Phase("patch4", 4, 3000, 8, (1.0, 0.8)),
            Phase("patch2", 2, 1300, 8, (0.8, 0.3), "patch4", short=0.6, asked=16),
            Phase("patch1", 1, 320, 8, (0.3, 0.0), "patch2", sparse=0.9, short=0.85, short_frames=2, parts=4, asked=2),
            Phase("high", 2, 400, 8, (0.5, 0.0), "patch2", (BOUNDARY, 1.0), plain=True, short=0.3, asked=16),
            Phase("high2", 2, 440, 8, (0.4, 0.0), "high", (BOUNDARY, 1.0), plain=True, short=0.2, asked=16),
            Phase("high3", 2, 480, 8, (0.3, 0.0), "high2", (BOUNDARY, 1.0), plain=True, short=0.1, asked=16),
            Phase(
                "low",
                1,
                170,
                8,
                (0.3, 0.0),
                "patch1",
                (0.0, BOUNDARY),
                plain=True,
                sparse=0.95,
                density=0.15,
                searched=True,
                short=0.7,
                short_frames=2,
                parts=4,
                asked=4,
            ),
        )
    ),
    # Eight minutes of a GPU with the autoencoder, the latents and a strip; no GPU has run it yet.
    "cuda": Plan(
        (
            Phase("patch4", 4, 4000, 64, (1.0, 0.8), seconds=90),
            Phase("patch2", 2, 4000, 32, (0.8, 0.6), "patch4", plain=True, seconds=60),
            Phase("high", 2, 4000, 32, (0.6, 0.0), "patch2", (BOUNDARY, 1.0), plain=True, seconds=100),
            Phase("low", 1, 2000, 16, (0.6, 0.0), "patch2", (0.0, BOUNDARY), True, sparse=0.5, short=0.5, seconds=110),
        ),
        experts=("high", "low"),
    ),
    # A dry run.
    "tiny": Plan(
        (
            Phase("patch4", 4, 2, 2, (1.0, 0.5), asked=8),
            Phase("high", 4, 2, 2, (0.5, 0.0), "patch4", (BOUNDARY, 1.0), plain=True, asked=8),
            Phase(
                "low", 2, 2, 2, (0.5, 0.0), "patch4", (0.0, BOUNDARY), True, 1.0, 0.5, True, short=0.5, parts=2, asked=8
            ),
        ),
        experts=("high", "low"),
        world=replace(ENDLESS, size=32, frames=5),
    ),
}
