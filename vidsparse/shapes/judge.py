"""The judge of `shapes` videos: recognises what a video shows without its prompt, and scores it against a scene.

A video is first resampled to 64x64, the frame in which render.py gives its radii and speeds. Colours are compared in
levels 0..255. Anything that is not clearly one of the names in scene.py is "unknown".
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from itertools import permutations

import torch
from torch.nn.functional import interpolate, max_pool2d

from vidsparse.shapes.render import SIZE
from vidsparse.shapes.scene import BACKGROUNDS, COLOURS, Scene, SceneObject
from vidsparse.shapes.track import UNKNOWN, follow, steepen

GROUND_REACH = 40.0  # levels: the two nearest backgrounds, black and blue, are 84 apart
SHADOW = 0.45  # fraction of its levels that the ground may lose in a shadow; drawn shadows take at most 0.4
COLOUR_REACH = 55.0  # levels: every object's colour is at least 109 from every background and other object
FLAT = 45.0  # levels between neighbouring pixels: less inside an object, even with noise, and more at its edge
CORE_AREA = 24  # pixels: the flat inside of the smallest object, when blurred, is larger
SMALLEST_PRESENCE = 0.1  # fraction of the frames; a colour seen in fewer is flicker, not an object
LASTING = 0.9  # permanence below which an object has no shape and no motion: it fell apart, jumped or disappeared


@dataclass(frozen=True)
class SeenObject:
    """One recognised object: names from scene.py or "unknown", and the fraction of frames in which it is plausible."""

    colour: str
    shape: str
    motion: str
    permanence: float


@dataclass(frozen=True)
class Sighting:
    """What a video shows; noise has no objects and no background."""

    objects: tuple[SeenObject, ...]
    background: str | None


@dataclass(frozen=True)
class Score:
    """How well a video matches a scene: for each attribute the fraction of the objects for which it is right."""

    colour: float
    shape: float
    motion: float
    background: float
    permanence: float

    @property
    def mean(self) -> float:
        return float(sum(astuple(self))) / 5


def look(video: torch.Tensor) -> Sighting:
    """Recognise what a video shows.

    Args:
        video: float [3, frames, height, width] in [-1, 1], at least two frames, of any size.

    Raises:
        ValueError: a tensor of another shape.
    """
    if video.ndim != 4 or video.shape[0] != 3 or video.shape[1] < 2:
        raise ValueError(f"expected a video [3, frames >= 2, height, width], got {list(video.shape)}")
    frames = interpolate(video.detach().float().cpu().transpose(0, 1), (SIZE, SIZE), mode="area")
    pixels = (frames.permute(0, 2, 3, 1) + 1) * 127.5  # [frames, 64, 64, 3]
    ground = pixels.flatten(0, 2).median(dim=0).values
    plain = (_unmix(pixels, ground, [])[1] < GROUND_REACH).float().mean(dim=(1, 2)) > 0.6
    if plain.float().mean() < 0.9:
        return Sighting((), None)
    distance, nearest = _distance(ground, _palette(BACKGROUNDS)).min(dim=-1)
    background = tuple(BACKGROUNDS)[int(nearest)] if distance < GROUND_REACH else None
    colours = _find_colours(pixels, ground)
    covers, _ = _unmix(pixels, ground, [*colours.values()])
    return Sighting(tuple(SeenObject(n, *follow(c)) for n, c in zip(colours, covers, strict=True)), background)


def count(video: torch.Tensor, native: int) -> list[int]:
    """Count the objects of each frame: areas of one colour, of which one colour can have several.

    `look` takes all that has one colour for one object. This finds objects that a model repeats in a video larger than
    those of its training.

    Args:
        video: as for `look`.
        native: height of the videos of its training, in pixels. An object as large as in them counts, however large the
            video is; parts that are smaller than the smallest object of a world do not.
    """
    scale = SIZE / native
    size = tuple(round(side * scale) for side in video.shape[2:])
    frames = interpolate(video.detach().float().cpu().transpose(0, 1), size, mode="area")
    pixels = (frames.permute(0, 2, 3, 1) + 1) * 127.5
    ground = pixels.flatten(0, 2).median(dim=0).values
    covers, _ = _unmix(pixels, ground, [*_find_colours(pixels, ground).values()])
    return [sum(_areas(cover[frame] > 0.5) for cover in covers) for frame in range(len(pixels))]


def _areas(mask: torch.Tensor) -> int:
    """The connected areas of a mask [height, width] that are large enough for an object."""
    labels = torch.arange(1.0, mask.numel() + 1).view(mask.shape) * mask
    while True:
        spread = max_pool2d(labels[None], 3, stride=1, padding=1)[0] * mask
        if torch.equal(spread, labels):
            break
        labels = spread
    return int((labels[mask].unique(return_counts=True)[1] >= CORE_AREA).sum())


def score(video: torch.Tensor, scene: Scene) -> Score:
    """Recognise what a video shows, and compare it with a scene.

    Extra and missing objects lower the score, an object that does not last has no shape and no motion, and an empty
    frame scores 0.
    """
    sighting = look(video)
    if not sighting.objects:
        return Score(0.0, 0.0, 0.0, 0.0, 0.0)
    count = max(len(scene.objects), len(sighting.objects))
    seen = [*sighting.objects, *[None] * (count - len(sighting.objects))]
    orders = permutations(seen, len(scene.objects))
    totals = [[sum(column) for column in zip(*map(_agreement, order, scene.objects), strict=True)] for order in orders]
    colour, shape, motion, permanence = (total / count for total in max(totals))
    return Score(colour, shape, motion, float(sighting.background == scene.background), permanence)


def _agreement(seen: SeenObject | None, asked: SceneObject) -> tuple[float, float, float, float]:
    if seen is None:
        return 0.0, 0.0, 0.0, 0.0
    lasts = seen.permanence >= LASTING
    right = seen.colour == asked.colour, lasts and seen.shape == asked.shape, lasts and seen.motion == asked.motion
    return float(right[0]), float(right[1]), float(right[2]), seen.permanence


def _palette(colours: dict[str, tuple[int, int, int]]) -> torch.Tensor:
    return torch.tensor(list(colours.values()), dtype=torch.float32)


def _distance(pixels: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
    """The distance in levels of pixels [..., 3] from colours [n, 3]: float32 [..., n]."""
    flat = torch.cdist(pixels.reshape(-1, 3), colours, compute_mode="donot_use_mm_for_euclid_dist")
    return flat.reshape(*pixels.shape[:-1], -1)


def _find_colours(pixels: torch.Tensor, ground: torch.Tensor) -> dict[str, torch.Tensor]:
    """Name the colours in front of the ground, and measure them: float32 [3] each."""
    # A blend of object and ground at an edge may resemble a third colour, so only flat areas count.
    slopes = [(pixels - pixels.roll(1, axis)).square().sum(dim=-1) for axis in (1, 2)]
    steepest = torch.stack([*slopes, slopes[0].roll(-1, 1), slopes[1].roll(-1, 2)]).amax(dim=0)
    core = (_unmix(pixels, ground, [])[1] > COLOUR_REACH) & (steepest < FLAT**2)
    distance, nearest = _distance(pixels, _palette(COLOURS)).min(dim=-1)
    masks = {name: core & (nearest == i) & (distance < COLOUR_REACH) for i, name in enumerate(COLOURS)}
    found = {name: pixels[mask].median(dim=0).values for name, mask in masks.items() if _lasts(mask)}
    rest = core & (_unmix(pixels, ground, [*found.values()])[1] > COLOUR_REACH)
    if _lasts(rest):
        found[UNKNOWN] = pixels[rest].median(dim=0).values
    return found


def _lasts(mask: torch.Tensor) -> bool:
    """Whether a mask [frames, 64, 64] is large enough for an object in enough frames."""
    return bool((mask.sum(dim=(1, 2)) >= CORE_AREA).float().mean() >= SMALLEST_PRESENCE)


def _unmix(
    pixels: torch.Tensor, ground: torch.Tensor, colours: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Explain each pixel as ground, ground in a shadow, or ground under one colour.

    Returns the cover of each colour, float32 [colours, frames, 64, 64], and the remaining distance [frames, 64, 64].
    """
    offset = pixels - ground
    spans = torch.stack([-SHADOW * ground, *(colour - ground for colour in colours)])
    along, length = offset @ spans.T, spans.square().sum(dim=-1)
    share = (along / length.clamp(min=1)).clamp(0, 1)
    residual = offset.square().sum(dim=-1, keepdim=True) - 2 * share * along + share.square() * length
    rest, best = residual.min(dim=-1)
    mine = best[..., None] == torch.arange(1, len(spans))
    return (steepen(share[..., 1:]) * mine).movedim(-1, 0), rest.clamp(min=0).sqrt()
