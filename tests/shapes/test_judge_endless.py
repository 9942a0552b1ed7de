"""The judge on the endless world: what is wrong costs, also where objects cross the border and cast shadows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from vidsparse.shapes.judge import Score, look, score
from vidsparse.shapes.render import SIZE, Trajectory, draw_trajectories, render
from vidsparse.shapes.scene import COLOURS, SHAPES, Scene, SceneObject, held_out_scenes
from vidsparse.shapes.world import ENDLESS

RIGHT = Score(1, 1, 1, 1, 1)


def drawn(every: int = 8, first: int = 0) -> Iterator[tuple[Scene, tuple[Trajectory, ...], torch.Tensor]]:
    """Held-out scenes, their paths, and their videos in the resolution of the judge."""
    for i, scene in enumerate(held_out_scenes()[first::every]):
        paths = draw_trajectories(scene, random.Random(i), world=ENDLESS)
        yield scene, paths, show(scene, paths)


def show(scene: Scene, paths: tuple[Trajectory, ...]) -> torch.Tensor:
    return render(scene, paths, height=SIZE, width=SIZE, world=ENDLESS)


@pytest.mark.parametrize("sigma", [0.15, 2.0])
def test_noise_over_a_lit_ground_shows_nothing(sigma: float) -> None:
    ground = render(Scene((), "blue"), (), height=SIZE, width=SIZE, world=ENDLESS)
    noise = sigma * torch.randn(ground.shape, generator=torch.Generator().manual_seed(0))
    assert look((ground + noise).clamp(-1, 1)).objects == ()
    assert score(ground, held_out_scenes()[0]) == Score(0, 0, 0, 0, 0)


def test_a_frozen_video_does_not_move() -> None:
    for scene, _, video in drawn(first=1):
        still = scene.objects[0].motion == "still"
        assert score(video[:, 7:8].expand_as(video), scene) == replace(RIGHT, motion=float(still)), scene.caption


def test_one_wrong_word_costs_one_attribute() -> None:
    for scene, _, video in drawn(first=2):
        (asked,) = scene.objects
        colour = next(c for c in COLOURS if c not in (asked.colour, scene.background))
        shape = next(s for s in SHAPES if s != asked.shape)
        motion = "still" if asked.motion != "still" else "up"
        for attribute, word in (("colour", colour), ("shape", shape), ("motion", motion)):
            wrong = replace(scene, objects=(replace(asked, **{attribute: word}),))
            assert score(video, wrong) == replace(RIGHT, **{attribute: 0.0}), wrong.caption
        ground = "gray" if scene.background != "gray" else "black"
        assert score(video, replace(scene, background=ground)) == replace(RIGHT, background=0.0)


def test_a_second_object_is_an_error() -> None:
    for scene, paths, _ in drawn(first=3):
        (asked,) = scene.objects
        colour = next(c for c in COLOURS if c not in (asked.colour, scene.background))
        twin = replace(paths[0], x=(paths[0].x + 32) % SIZE, y=(paths[0].y + 32) % SIZE)
        two = replace(scene, objects=(asked, SceneObject(colour, asked.shape, asked.motion)))
        found = score(show(two, (*paths, twin)), scene)
        assert found == Score(0.5, 0.5, 0.5, 1, 0.5), scene.caption
        same = replace(scene, objects=(asked, asked))
        found = score(show(same, (*paths, twin)), scene)
        assert (found.shape, found.motion, found.permanence) == (0, 0, 0), scene.caption


def test_an_object_that_comes_back_in_the_wrong_place_is_another_one() -> None:
    scene = Scene((SceneObject("red", "circle", "right"),), "gray")
    path = Trajectory(50.0, 32.0, 11.0, 0.9)
    video = show(scene, (path,))
    assert score(video, scene) == RIGHT
    crossed = path.centres("right", 33)[:, 0] < 50
    video[:, crossed] = video[:, crossed].roll(20, 2)
    found = score(video, scene)
    assert found.permanence < 0.6 and (found.shape, found.motion) == (0, 0)


def test_an_object_that_is_cut_by_the_border_does_not_last() -> None:
    scene = Scene((SceneObject("yellow", "square", "left"),), "black")
    video = show(scene, (Trajectory(8.0, 32.0, 11.0, 0.9),))
    assert score(video, scene) == RIGHT
    video[..., 40:] = render(Scene((), "black"), (), height=SIZE, width=SIZE, world=ENDLESS)[..., 40:]
    found = score(video, scene)
    assert found.permanence < 0.9 and (found.shape, found.motion) == (0, 0)


def test_an_object_that_comes_apart_has_no_shape() -> None:
    for shape in SHAPES:
        scene = Scene((SceneObject("cyan", shape, "still"),), "blue")
        paths = (Trajectory(32.0, 32.0, 12.0, 0.9),)
        video = show(scene, paths)
        assert score(video, scene) == RIGHT
        for frame in range(33):
            left, right = video[:, frame, :, :32].clone(), video[:, frame, :, 32:].clone()
            gap = frame // 3
            video[:, frame, :, :32] = left.roll(-gap, -1)
            video[:, frame, :, 32:] = right.roll(gap, -1)
            video[:, frame, :, 32 - gap : 32 + gap] = video[:, frame, :1, :1]
        assert score(video, scene).shape == 0, shape
