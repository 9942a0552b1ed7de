"""The worlds that `shapes` can draw: their size, how objects start, and how they look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LIGHT = (-0.6, -0.8)  # unit vector (x, y) towards the light, y pointing down: upper left


@dataclass(frozen=True)
class World:
    """Size, motion and look of a video. Lengths are pixels of a 64x64 frame if not stated otherwise.

    Attributes:
        size: height and width of a video in pixels of the video.
        frames: default length of a video.
        radii: smallest and largest radius of a single object, and of each of two objects.
        inside: frames that a moving object stays inside the frame. With 0 the motion is endless: it starts anywhere
            along its path, and a clip of any length is a window into it.
        bounce: frames from one touch of the ground to the next.
        shading: how much an object brightens towards the light, as a fraction of its colour; 0 is flat.
        bevel: how much its rim brightens towards the light.
        shadow: how much an object darkens the ground beside it, 0 to 1.
        glow: levels (0 to 255) by which the ground brightens towards the light.
    """

    size: int
    frames: int
    radii: tuple[tuple[float, float], tuple[float, float]]
    inside: int = 0
    bounce: int = 16
    shading: float = 0.0
    bevel: float = 0.0
    shadow: float = 0.0
    glow: float = 0.0


FLAT = World(64, 33, ((8.5, 11.0), (7.0, 8.5)), inside=33)
# A bounce of 16 frames would reach 8 pixels a frame, which the autoencoder blurs.
ENDLESS = World(128, 33, ((10.0, 13.0), (8.0, 9.5)), bounce=24, shading=0.12, bevel=0.25, shadow=0.4, glow=14.0)


def towards_light(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The component of points (x, y) in the direction of the light, in their unit."""
    return x * LIGHT[0] + y * LIGHT[1]
