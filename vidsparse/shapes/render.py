"""Draws scenes as videos: anti-aliased shapes on a frame whose borders wrap, so that an object never disappears."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch

from vidsparse.shapes.scene import BACKGROUNDS, COLOURS, Scene, training_scene

SIZE = 64  # pixels: the height and width in which radii and speeds are written
BOUNCE_PERIOD = 16  # frames from one touch of the ground to the next


@dataclass(frozen=True)
class Trajectory:
    """Where one object is: centre in pixels of a 64x64 frame at frame 0, radius in pixels, speed in pixels per frame.

    For a bouncing object `y` is the height at which it touches the ground and `phase` the part of a bounce at frame 0.
    """

    x: float
    y: float
    radius: float
    speed: float
    phase: float = 0.0

    def centres(self, motion: str, frames: int) -> torch.Tensor:
        """Centre of every frame, float32 [frames, 2] as (x, y), modulo the frame size."""
        time = torch.arange(frames, dtype=torch.float32)
        dx, dy = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}.get(motion, (0, 0))
        x, y = self.x + dx * self.speed * time, self.y + dy * self.speed * time
        if motion == "bouncing":
            fall = (time / BOUNCE_PERIOD + self.phase) % 1.0
            y = y - 4 * fall * (1 - fall) * self.speed * BOUNCE_PERIOD
        return torch.stack((x, y), dim=-1) % SIZE


def draw_trajectories(scene: Scene, rng: random.Random, frames: int = 33) -> tuple[Trajectory, ...]:
    """Draw where a scene's objects are: inside the frame for the first 33 frames, and never over each other."""
    span = min(frames, 33) - 1
    for _ in range(1000):
        paths = []
        for o in scene.objects:
            radius = rng.uniform(8.5, 11.0) if len(scene.objects) == 1 else rng.uniform(7.0, 8.5)
            low, high = 1.45 * radius, SIZE - 1.45 * radius
            x, y = rng.uniform(low, high), rng.uniform(low, high)
            speed, phase = min(rng.uniform(0.8, 1.0), (high - low) / span if span else 1.0), rng.random()
            reach = speed * span
            if o.motion in ("left", "right"):
                x = rng.uniform(low + reach, high) if o.motion == "left" else rng.uniform(low, high - reach)
            elif o.motion in ("up", "down"):
                y = rng.uniform(low + reach, high) if o.motion == "up" else rng.uniform(low, high - reach)
            elif o.motion == "bouncing":
                y = rng.uniform(low + speed * BOUNCE_PERIOD, high)
            paths.append(Trajectory(x, y, radius, speed, phase))
        if len(paths) == 1:
            return tuple(paths)
        a, b = (p.centres(o.motion, frames) for p, o in zip(paths, scene.objects, strict=True))
        apart = (a - b).abs()
        if torch.minimum(apart, SIZE - apart).norm(dim=-1).min() > paths[0].radius + paths[1].radius + 2:
            return tuple(paths)
    raise RuntimeError(f"no free paths for {scene.caption!r} in {frames} frames")


def signed_distance(shape: str, x: torch.Tensor, y: torch.Tensor, radius: float) -> torch.Tensor:
    """Distance in pixels from the outline, negative inside. Radii are set so that all shapes have nearly one area."""
    if shape == "circle":
        return torch.hypot(x, y) - radius
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.89 * radius
    if shape == "triangle":
        slope = math.sqrt(3) / 2
        return torch.maximum(slope * x.abs() - 0.5 * y - 0.72 * radius, y - 0.72 * radius)
    arm, width = 1.18 * radius, 0.42 * radius
    return torch.minimum(torch.maximum(x.abs() - arm, y.abs() - width), torch.maximum(x.abs() - width, y.abs() - arm))


def render(
    scene: Scene, paths: tuple[Trajectory, ...], frames: int = 33, height: int = SIZE, width: int = SIZE
) -> torch.Tensor:
    """Draw the video of a scene: float32 [3, frames, height, width] in [-1, 1]."""
    rows = (torch.arange(height) + 0.5) * (SIZE / height)
    columns = (torch.arange(width) + 0.5) * (SIZE / width)
    video = torch.tensor(BACKGROUNDS[scene.background], dtype=torch.float32)[:, None, None, None].expand(
        3, frames, height, width
    )
    for o, path in zip(scene.objects, paths, strict=True):
        centre = path.centres(o.motion, frames)
        x = (columns[None, None] - centre[:, 0, None, None] + SIZE / 2) % SIZE - SIZE / 2
        y = (rows[None, :, None] - centre[:, 1, None, None] + SIZE / 2) % SIZE - SIZE / 2
        cover = (0.5 - signed_distance(o.shape, x, y, path.radius) * (height / SIZE)).clamp(0, 1)
        video = torch.lerp(video, torch.tensor(COLOURS[o.colour], dtype=torch.float32)[:, None, None, None], cover)
    return video / 127.5 - 1


def training_example(
    rng: random.Random, frames: int = 33, two_objects: float = 0.25
) -> tuple[Scene, tuple[Trajectory, ...]]:
    """Draw one training example: a scene that is not held out, and the paths of its objects."""
    scene = training_scene(rng, two_objects)
    return scene, draw_trajectories(scene, rng, frames)


def training_video(rng: random.Random, frames: int = 33, two_objects: float = 0.25) -> tuple[Scene, torch.Tensor]:
    """Draw one training example as a video: float32 [3, frames, 64, 64]."""
    scene, paths = training_example(rng, frames, two_objects)
    return scene, render(scene, paths, frames)
