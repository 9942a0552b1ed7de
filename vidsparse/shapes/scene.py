"""The scenes of `shapes` videos: one or two objects with a colour, a shape and a motion, and the words for them."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (226, 40, 44),
    "green": (40, 176, 64),
    "blue": (52, 84, 236),
    "yellow": (246, 218, 44),
    "purple": (158, 48, 196),
    "cyan": (44, 212, 222),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross")
MOTIONS: dict[str, str] = {
    "left": "moving left",
    "right": "moving right",
    "up": "moving up",
    "down": "moving down",
    "bouncing": "bouncing",
    "still": "standing still",
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (12, 12, 14),
    "white": (240, 240, 236),
    "gray": (124, 126, 128),
    "blue": (18, 30, 96),
}
OBJECT_PATTERN = re.compile(
    rf"^an? (?P<colour>{'|'.join(COLOURS)}) (?P<shape>{'|'.join(SHAPES)}) (?P<motion>{'|'.join(MOTIONS.values())})$"
)
WORDS: tuple[str, ...] = tuple(
    sorted({"a", "an", "and", "on", "background", *COLOURS, *SHAPES, *BACKGROUNDS, *" ".join(MOTIONS.values()).split()})
)
MAX_WORDS = 32  # a prompt with two objects has at most 16 words and an end token


@dataclass(frozen=True)
class SceneObject:
    """One object: names from `COLOURS`, `SHAPES` and `MOTIONS`."""

    colour: str
    shape: str
    motion: str

    @property
    def caption(self) -> str:
        return f"a {self.colour} {self.shape} {MOTIONS[self.motion]}"


@dataclass(frozen=True)
class Scene:
    """One or two objects on a background, as a prompt describes them; `Trajectory` in render.py says where they are."""

    objects: tuple[SceneObject, ...]
    background: str

    @property
    def caption(self) -> str:
        return f"{' and '.join(o.caption for o in self.objects)} on a {self.background} background"

    @property
    def held_out(self) -> bool:
        """Whether training never sees the combination of one of the objects with the background."""
        return any((o.colour, o.shape, o.motion, self.background) in HELD_OUT for o in self.objects)


def _all_combinations() -> list[tuple[str, str, str, str]]:
    # An object in the background's colour would be invisible.
    return [(c, s, m, b) for c in COLOURS for s in SHAPES for m in MOTIONS for b in BACKGROUNDS if c != b]


# Training has every colour, shape, motion and background many times, and lacks only these 64 combinations.
HELD_OUT: frozenset[tuple[str, str, str, str]] = frozenset(random.Random(0).sample(_all_combinations(), 64))


def held_out_scenes() -> list[Scene]:
    """The 64 one-object scenes that training never sees, in a fixed order, to evaluate the model."""
    return [Scene((SceneObject(c, s, m),), b) for c, s, m, b in sorted(HELD_OUT)]


def training_scene(rng: random.Random, two_objects: float = 0.25) -> Scene:
    """Draw a scene for training; `two_objects` is the probability of a second object, of another colour."""
    while True:
        background = rng.choice(tuple(BACKGROUNDS))
        count = 2 if rng.random() < two_objects else 1
        colours = rng.sample([c for c in COLOURS if c != background], count)
        scene = Scene(
            tuple(SceneObject(c, rng.choice(SHAPES), rng.choice(tuple(MOTIONS))) for c in colours), background
        )
        if not scene.held_out:
            return scene


def parse_prompt(prompt: str) -> Scene:
    """Read a prompt such as "a red circle moving left and a yellow cross bouncing on a black background".

    Raises:
        ValueError: an empty prompt, an unknown word or another kind of sentence; lists what the model knows.
    """
    text = " ".join(prompt.lower().replace(",", " ").rstrip(" .!").split())
    if not text:
        raise ValueError(f"the prompt is empty; try {Scene((SceneObject('red', 'circle', 'left'),), 'blue').caption!r}")
    unknown = [word for word in text.split() if word not in WORDS]
    if unknown:
        raise ValueError(f"shapes does not know {', '.join(map(repr, unknown))} in {prompt!r}. {vocabulary()}")
    body, _, tail = text.partition(" on a ")
    background = tail.removesuffix(" background")
    found = [OBJECT_PATTERN.match(part) for part in body.split(" and ")]
    if background not in BACKGROUNDS or tail == background or not 1 <= len(found) <= 2 or not all(found):
        raise ValueError(f"shapes cannot read {prompt!r}. {vocabulary()}")
    objects = tuple(
        SceneObject(m["colour"], m["shape"], next(k for k, words in MOTIONS.items() if words == m["motion"]))
        for m in found
        if m
    )
    colours = [o.colour for o in objects] + [background]
    if len(set(colours)) < len(colours):
        raise ValueError(f"shapes distinguishes things by colour, but in {prompt!r} two have the same. {vocabulary()}")
    return Scene(objects, background)


def vocabulary() -> str:
    """One sentence that lists every prompt the model understands."""
    return (
        "Say 'a COLOUR SHAPE MOTION on a BACKGROUND background' (or two objects joined by 'and') with colours "
        f"{', '.join(COLOURS)}; shapes {', '.join(SHAPES)}; motions {', '.join(MOTIONS.values())}; "
        f"backgrounds {', '.join(BACKGROUNDS)}"
    )
