"""The track of one object through a clip, on a frame whose borders wrap: its shape, motion and permanence.

All sizes are pixels of a 64x64 frame, in which render.py gives its radii and speeds. An object is given by its cover:
for every frame, the fraction of each pixel that it covers.
"""

from __future__ import annotations

import math
from functools import cache

import torch

from vidsparse.shapes.render import SIZE, signed_distance
from vidsparse.shapes.scene import SHAPES

UNKNOWN = "unknown"
SMALLEST_AREA, LARGEST_AREA = 60.0, 700.0  # drawn objects have 132 to 560
JUMP = 6.0  # pixels in one frame; a bouncing object moves at most 3.75
LAG = 4  # frames over which a velocity, and a mask, is measured
AGREE = 0.8  # fraction of the clip that must show the same shape, or the same velocity
STEADY = 2.0  # pixels: the apparent movement that is allowed for an object that stands still
MASK = 21  # pixels from an object's centre to the border of its mask
# Frames of a bounce: those of FLAT and of ENDLESS, up to an eighth more or less.
BOUNCE = (torch.tensor([16.0, 24.0])[:, None] * torch.arange(0.875, 1.125, 0.0125)).flatten()
BLURS = 0.3, 1.3, 2.6  # standard deviations, in pixels, of the blur that a small autoencoder leaves
# Drawn videos blurred to 22 dB reach 0.88 and, in 95 % of their masks, a margin of 0.018; at 28 dB the margin is 0.044.
SHAPE_IOU, SHAPE_MARGIN = 0.8, 0.02


def follow(cover: torch.Tensor) -> tuple[str, str, float]:
    """The shape and motion of a cover [frames, 64, 64], and the fraction of frames in which it is plausible."""
    area = cover.sum(dim=(1, 2))
    centres = torch.stack((_circular_mean(cover.sum(dim=1)), _circular_mean(cover.sum(dim=2))), dim=-1)
    masks = _masks(cover, centres)
    usual = area[area > SMALLEST_AREA].median()
    whole = masks.sum(dim=(1, 2)) > 0.85 * area
    there = (area > 0.65 * usual) & (area < 1.5 * usual) & (area < LARGEST_AREA) & whole
    seen = there.nonzero().flatten()
    shape, motion = _name_shape(masks[there]), _name_motion(centres[there], seen)
    return shape, motion, _longest(centres[there], seen) / len(cover)


def _longest(centres: torch.Tensor, frame: torch.Tensor) -> int:
    """Frames of the longest part of a path [seen, 2] without a jump: after a jump it is another object."""
    if not len(frame):
        return 0
    steps = _circular_difference(centres[1:], centres[:-1]).norm(dim=-1)
    parts = (steps > JUMP * frame.diff()).cumsum(dim=0)
    return int(torch.bincount(torch.cat((parts.new_zeros(1), parts))).max())


def steepen(share: torch.Tensor) -> torch.Tensor:
    """Steepen soft edges: below 0.2 may be noise of the ground, above 0.8 noise of the object."""
    return ((share - 0.2) / 0.6).clamp(0, 1)


def _circular_mean(weight: torch.Tensor) -> torch.Tensor:
    """Mean position on the torus, in pixels, of weights [frames, 64]: float32 [frames]."""
    angle = (torch.arange(SIZE) + 0.5) * (2 * math.pi / SIZE)
    mean = torch.atan2((weight * angle.sin()).sum(dim=-1), (weight * angle.cos()).sum(dim=-1))
    return (mean * SIZE / (2 * math.pi)) % SIZE


def _circular_difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b + SIZE / 2) % SIZE - SIZE / 2


def _masks(cover: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Crop an object from every frame, with its centre in the middle of a pixel: float32 [frames, 43, 43]."""
    place = centres[..., None] + torch.arange(-MASK, MASK + 1)  # [frames, 2, 43]
    weight = (1 - _circular_difference(place[..., None], torch.arange(SIZE) + 0.5).abs()).clamp(min=0)
    return weight[:, 1] @ cover @ weight[:, 0].transpose(1, 2)


@cache
def _templates() -> torch.Tensor:
    """Masks of each shape in radii of 6 to 13.5 pixels, sharp and blurred: float32 [shapes, radii * blurs, 43 * 43]."""
    side = torch.arange(-MASK, MASK + 1).float()
    y, x = torch.meshgrid(side, side, indexing="ij")
    sharp = torch.stack([(0.5 - signed_distance(s, x, y, r / 4)).clamp(0, 1) for s in SHAPES for r in range(24, 55)])
    gauss = [torch.exp(-0.5 * ((side[:, None] - side) / blur) ** 2) for blur in BLURS]
    blurred = torch.stack([(g / g.sum(0)) @ sharp @ (g / g.sum(0)).T for g in gauss], dim=1)
    return steepen(blurred).reshape(len(SHAPES), -1, len(side) ** 2)


def _name_shape(masks: torch.Tensor) -> str:
    """Name the shape that the masks [frames, 43, 43] show throughout the clip, from the mean of every four frames."""
    if not len(masks):
        return UNKNOWN
    mean = torch.stack([part.mean(dim=0).flatten() for part in masks.split(LAG)])[:, None, None]
    shared = torch.minimum(mean, _templates()).sum(dim=-1)
    iou = (shared / (mean.sum(dim=-1) + _templates().sum(dim=-1) - shared)).amax(dim=-1)  # [parts, shapes]
    (first, second), best = iou.topk(2).values.unbind(dim=-1), iou.argmax(dim=-1)
    clear = (first > SHAPE_IOU) & (first - second > SHAPE_MARGIN)
    votes = torch.bincount(best[clear], minlength=len(SHAPES)) / len(best)
    return SHAPES[int(votes.argmax())] if votes.max() >= AGREE else UNKNOWN


def _name_motion(centres: torch.Tensor, frame: torch.Tensor) -> str:
    """Name the motion of an object from its centres [seen, 2] and the indices [seen] of their frames."""
    if len(frame) < 2:
        return UNKNOWN
    steps = _circular_difference(centres[1:], centres[:-1])
    path = torch.cat((torch.zeros(1, 2), steps.cumsum(dim=0)))
    stray = (path - path.median(dim=0).values).abs().quantile(0.95, dim=0)
    if (stray < min(STEADY, 0.2 * float(frame[-1] - frame[0]))).all():
        return "still"
    if stray[0] < STEADY and _bounces(path[:, 1], frame):
        return "bouncing"
    lag = min(LAG, len(frame) - 1)
    velocity = (path[lag:] - path[:-lag]) / (frame[lag:] - frame[:-lag])[:, None]
    for word, axis, sign in (("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)):
        along, across = sign * velocity[:, axis], velocity[:, 1 - axis].abs()
        if ((along > 0.5) & (along < 1.3) & (across < 0.25)).float().mean() >= AGREE:
            return word
    return UNKNOWN


def _bounces(y: torch.Tensor, frame: torch.Tensor) -> bool:
    """Whether heights y [seen] follow parabolas of about the period and height of drawn bounces."""
    longest = 1.125 * (frame[-1] - frame[0])
    period = BOUNCE[BOUNCE.le(longest), None, None]
    if not len(period):
        return False  # less than one bounce looks the same as a throw
    phase = torch.arange(0, 1, 1 / 32)[:, None]
    fall = (frame / period + phase) % 1.0
    curve = -4 * fall * (1 - fall)  # [periods, phases, frames]
    curve, y = curve - curve.mean(dim=-1, keepdim=True), y - y.mean()
    fit = (curve @ y) / (curve.norm(dim=-1) * y.norm())
    best = int(fit.argmax())
    height = (fit / curve.norm(dim=-1) * y.norm()).flatten()[best]
    return bool(fit.max() > 0.93) and 8 < height < 22
