"""The endless world: windows into one motion, objects apart for ever, light from one side; the flat world as it was."""

from __future__ import annotations

import random

import pytest
import torch

from vidsparse.shapes.judge import score
from vidsparse.shapes.render import LONGEST, SIZE, draw_trajectories, render, training_video
from vidsparse.shapes.scene import BACKGROUNDS, COLOURS, MOTIONS, Scene, SceneObject, held_out_scenes, training_scene
from vidsparse.shapes.world import ENDLESS, FLAT, World


def one(motion: str, shape: str = "circle", colour: str = "red", background: str = "gray") -> Scene:
    return Scene((SceneObject(colour, shape, motion),), background)


def test_a_path_does_not_know_how_long_the_clip_is() -> None:
    rng = random.Random(0)
    for seed in range(20):
        scene = training_scene(rng, two_objects=0.5)
        short, long = (draw_trajectories(scene, random.Random(seed), frames, ENDLESS) for frames in (5, 129))
        assert short == long
        torch.testing.assert_close(
            render(scene, short, 5, 32, 32, ENDLESS), render(scene, long, 9, 32, 32, ENDLESS)[:, :5]
        )


def test_what_moves_starts_anywhere_along_its_path_and_stays_inside_across_it() -> None:
    for motion in MOTIONS:
        starts = torch.stack(
            [
                draw_trajectories(one(motion), random.Random(i), world=ENDLESS)[0].centres(motion, 1)[0]
                for i in range(300)
            ]
        )
        for axis, ways in ((0, ("left", "right")), (1, ("up", "down"))):
            counts = torch.histc(starts[:, axis], 8, 0, SIZE)
            if motion in ways:
                # 300 draws of 8 equal parts: 37.5 each, with a deviation of 5.7; four of them are 23.
                assert ((counts - 37.5).abs() < 23).all(), motion
            else:
                assert counts[0] == counts[-1] == 0, motion


@pytest.mark.parametrize("world, fastest", [(FLAT, 4.0), (ENDLESS, 2.7)])
def test_what_bounces_does_so_at_the_pace_of_its_world(world: World, fastest: float) -> None:
    for seed in range(40):
        path = draw_trajectories(one("bouncing"), random.Random(seed), world=world)[0]
        height = path.centres("bouncing", 4 * world.bounce)[:, 1]
        steps = ((height[1:] - height[:-1]) + SIZE / 2) % SIZE - SIZE / 2
        assert 1.5 < steps.abs().max() <= fastest
        torch.testing.assert_close(height[: -world.bounce], height[world.bounce :], rtol=0, atol=1e-3)


def test_two_objects_stay_apart_for_ever() -> None:
    rng = random.Random(0)
    for seed in range(40):
        scene = training_scene(rng, two_objects=1.0)
        paths = draw_trajectories(scene, random.Random(seed), world=ENDLESS)
        assert paths[0].speed == paths[1].speed
        # Four times as long as the frames that were looked at.
        a, b = (p.centres(o.motion, 4 * LONGEST) for p, o in zip(paths, scene.objects, strict=True))
        apart = (a - b).abs()
        assert torch.minimum(apart, SIZE - apart).norm(dim=-1).min() > sum(p.radius for p in paths), scene.caption


@pytest.mark.parametrize("shape", ["circle", "square", "triangle", "cross"])
def test_an_object_is_brighter_on_the_side_of_the_light_and_casts_a_shadow_on_the_other(shape: str) -> None:
    scene = one("still", shape, "blue")
    (path,) = draw_trajectories(scene, random.Random(0), world=ENDLESS)
    video = render(scene, (path,), 1, world=ENDLESS)[:, 0].mean(dim=0)
    bare = render(Scene((), "gray"), (), 1, world=ENDLESS)[:, 0].mean(dim=0)
    scale = ENDLESS.size / SIZE
    side = torch.arange(ENDLESS.size) + 0.5
    x, y = side - path.x * scale, side[:, None] - path.y * scale
    towards = -0.6 * x - 0.8 * y
    inside = torch.hypot(x, y) < 0.6 * path.radius * scale
    assert video[inside & (towards > 0)].mean() > video[inside & (towards < 0)].mean() + 0.05
    ground = torch.hypot(x, y) > 1.5 * path.radius * scale
    darker = (bare - video)[ground]
    assert darker.min() > -1e-6
    assert (bare - video)[ground & (towards < 0)].sum() > 4 * (bare - video)[ground & (towards > 0)].sum()


def test_colours_stay_near_their_names() -> None:
    rng = random.Random(3)
    for _ in range(10):
        scene, video = training_video(rng, 1, two_objects=0.0, world=ENDLESS)
        pixels = (video[:, 0].flatten(1).T + 1) * 127.5
        named = torch.tensor([COLOURS[scene.objects[0].colour], BACKGROUNDS[scene.background]]).float()
        near = torch.cdist(pixels, named).amin(dim=1) < 55  # the reach of the judge
        assert near.float().mean() > 0.85, scene.caption


def test_the_flat_world_has_two_colours_and_their_blends() -> None:
    video = render(one("still"), draw_trajectories(one("still"), random.Random(0)), 1)[:, 0].flatten(1).T
    assert video.shape == (FLAT.size**2, 3)
    ends = torch.tensor([COLOURS["red"], BACKGROUNDS["gray"]]) / 127.5 - 1
    share = (video - ends[1]) @ (ends[0] - ends[1]) / (ends[0] - ends[1]).square().sum()
    torch.testing.assert_close(video, ends[1] + share[:, None] * (ends[0] - ends[1]), rtol=0, atol=1e-6)
    assert ((share < 1e-6) | (share > 1 - 1e-6)).float().mean() > 0.9


@pytest.mark.parametrize(("frames", "size"), [(33, 128), (129, 64)])
def test_the_judge_reads_the_endless_world(frames: int, size: int) -> None:
    rng = random.Random(1)
    asked = [*held_out_scenes()[::8], *(training_scene(rng, two_objects=1.0) for _ in range(8))]
    for seed, scene in enumerate(asked):
        paths = draw_trajectories(scene, random.Random(seed), world=ENDLESS)
        found = score(render(scene, paths, frames, size, size, ENDLESS), scene)
        assert found.mean == 1, (scene.caption, found)
