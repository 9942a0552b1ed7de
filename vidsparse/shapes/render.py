"""Scenes drawn as videos: anti-aliased shapes on a frame whose borders wrap, so that an object never disappears."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch

from vidsparse.shapes.scene import BACKGROUNDS, COLOURS, Scene, SceneObject, training_scene
from vidsparse.shapes.world import FLAT, LIGHT, World, towards_light

SIZE = 64  # pixels: the height and width of the frame in which radii and speeds are given
BOUNCE_HEIGHT = 16  # pixels at a speed of 1
LONGEST = 1024  # frames for which two objects of an endless world are checked to stay apart
SHADOW_REACH, SHADOW_BLUR = 0.35, 1.4  # offset of a shadow from its object, in radii; its softness, in pixels
RIM = 1.6  # pixels from the outline at which the light on the rim has faded to 1 / e


@dataclass(frozen=True)
class Trajectory:
    """The path of one object, in pixels of a 64x64 frame: centre at frame 0, radius, and speed per frame.

    For a bouncing object `y` is the height at which it touches the ground, `phase` the fraction of a bounce at frame 0,
    and `bounce` the frames of a bounce.
    """

    x: float
    y: float
    radius: float
    speed: float
    phase: float = 0.0
    bounce: int = 16

    def centres(self, motion: str, frames: int) -> torch.Tensor:
        """The centre in each frame, float32 [frames, 2] as (x, y), modulo the frame size."""
        time = torch.arange(frames, dtype=torch.float32)
        dx, dy = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}.get(motion, (0, 0))
        x, y = self.x + dx * self.speed * time, self.y + dy * self.speed * time
        if motion == "bouncing":
            fall = (time / self.bounce + self.phase) % 1.0
            y = y - 4 * fall * (1 - fall) * self.speed * BOUNCE_HEIGHT
        return torch.stack((x, y), dim=-1) % SIZE


def draw_trajectories(
    scene: Scene, rng: random.Random, frames: int = 33, world: World = FLAT
) -> tuple[Trajectory, ...]:
    """Draw the paths of a scene's objects, which never overlap.

    Args:
        scene: one or two objects.
        rng: the source of all random numbers.
        frames: of the video. Paths of an endless world do not depend on it.
        world: gives the radii, and how long moving objects stay inside the frame.

    Raises:
        RuntimeError: a thousand draws have no two paths that stay apart.
    """
    span = min(frames, world.inside) - 1
    for _ in range(1000):
        shared = rng.uniform(0.8, 1.0) if not world.inside else 0.0
        radii = world.radii[len(scene.objects) - 1]
        paths = [_start(o, rng.uniform(*radii), rng, shared, span, world.bounce) for o in scene.objects]
        if len(paths) == 1:
            return tuple(paths)
        a, b = (
            p.centres(o.motion, frames if world.inside else LONGEST) for p, o in zip(paths, scene.objects, strict=True)
        )
        apart = (a - b).abs()
        if torch.minimum(apart, SIZE - apart).norm(dim=-1).min() > paths[0].radius + paths[1].radius + 2:
            return tuple(paths)
    raise RuntimeError(f"no free paths for {scene.caption!r} in {frames} frames")


def _start(o: SceneObject, radius: float, rng: random.Random, shared: float, span: int, bounce: int) -> Trajectory:
    """Draw an object's start: inside for `span` frames, or anywhere along its path at the `shared` speed."""
    low, high = 1.45 * radius, SIZE - 1.45 * radius
    x, y = rng.uniform(low, high), rng.uniform(low, high)
    # Two objects whose ways cross stay apart for ever only at equal speeds.
    speed = shared or min(rng.uniform(0.8, 1.0), (high - low) / span if span else 1.0)
    phase, reach = rng.random(), speed * span
    if o.motion in ("left", "right"):
        x = rng.uniform(low + reach, high) if o.motion == "left" else rng.uniform(low, high - reach)
        x = rng.uniform(0, SIZE) if shared else x
    elif o.motion in ("up", "down"):
        y = rng.uniform(low + reach, high) if o.motion == "up" else rng.uniform(low, high - reach)
        y = rng.uniform(0, SIZE) if shared else y
    elif o.motion == "bouncing":
        y = rng.uniform(low + speed * BOUNCE_HEIGHT, high)
    return Trajectory(x, y, radius, speed, phase, bounce)


def signed_distance(shape: str, x: torch.Tensor, y: torch.Tensor, radius: float | torch.Tensor) -> torch.Tensor:
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
    scene: Scene,
    paths: tuple[Trajectory, ...],
    frames: int = 33,
    height: int | None = None,
    width: int | None = None,
    world: World = FLAT,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Draw the video of a scene on a device: float32 [3, frames, height, width] in [-1, 1].

    Args:
        scene: the objects and the background.
        paths: of the objects.
        frames: of the video.
        height, width: in pixels; by default those of the world.
        world: how the video looks.
        device: of the video.
    """
    height, width = height or world.size, width or world.size
    rows = (torch.arange(height, device=device) + 0.5) * (SIZE / height)
    columns = (torch.arange(width, device=device) + 0.5) * (SIZE / width)
    ground = _colour(BACKGROUNDS[scene.background], device)
    if world.glow:
        ground = ground + world.glow * towards_light(columns / SIZE - 0.5, rows[:, None] / SIZE - 0.5)
    video = ground.expand(3, frames, height, width)
    offsets = []
    for o, path in zip(scene.objects, paths, strict=True):
        centre = path.centres(o.motion, frames).to(device)
        offsets.append((columns[None, None] - centre[:, 0, None, None], rows[None, :, None] - centre[:, 1, None, None]))
    if world.shadow:
        for o, path, (x, y) in zip(scene.objects, paths, offsets, strict=True):
            away = SHADOW_REACH * path.radius
            distance = signed_distance(o.shape, _wrap(x + away * LIGHT[0]), _wrap(y + away * LIGHT[1]), path.radius)
            video = video * (1 - world.shadow * torch.sigmoid(-distance / SHADOW_BLUR))
    for o, path, (x, y) in zip(scene.objects, paths, offsets, strict=True):
        x, y = _wrap(x), _wrap(y)
        distance = signed_distance(o.shape, x, y, path.radius)
        cover = (0.5 - distance * (height / SIZE)).clamp(0, 1)
        colour = _colour(COLOURS[o.colour], device)
        if world.shading or world.bevel:
            # The slope of the distance towards the light is the cosine between outline and light.
            rim = signed_distance(o.shape, x + LIGHT[0], y + LIGHT[1], path.radius) - distance
            light = world.shading * towards_light(x, y) / path.radius + world.bevel * rim * (distance / RIM).exp()
            colour = torch.lerp(colour, torch.where(light > 0, 255.0, 0.0), light.abs().clamp(max=1))
        video = torch.lerp(video, colour, cover)
    return video.clamp(0, 255) / 127.5 - 1


def _colour(levels: tuple[int, int, int], device: torch.device | str) -> torch.Tensor:
    return torch.tensor(levels, dtype=torch.float32, device=device)[:, None, None, None]


def _wrap(offset: torch.Tensor) -> torch.Tensor:
    return (offset + SIZE / 2) % SIZE - SIZE / 2


def training_example(
    rng: random.Random, frames: int = 33, two_objects: float = 0.25, world: World = FLAT
) -> tuple[Scene, tuple[Trajectory, ...]]:
    """Draw one training example: a scene that is not held out, and the paths of its objects."""
    scene = training_scene(rng, two_objects)
    return scene, draw_trajectories(scene, rng, frames, world)


def training_video(
    rng: random.Random, frames: int = 33, two_objects: float = 0.25, world: World = FLAT
) -> tuple[Scene, torch.Tensor]:
    """Draw one training example as a video: float32 [3, frames, height, width] in the world's size."""
    scene, paths = training_example(rng, frames, two_objects, world)
    return scene, render(scene, paths, frames, world=world)
