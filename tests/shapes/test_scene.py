"""Scenes, their prompts, and the videos drawn of them."""

from __future__ import annotations

import hashlib
import itertools
import random

import pytest
import torch

from vidsparse.shapes.render import SIZE, Trajectory, draw_trajectories, render, training_video
from vidsparse.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    MOTIONS,
    SHAPES,
    WORDS,
    Scene,
    SceneObject,
    held_out_scenes,
    parse_prompt,
    training_scene,
)


def test_every_caption_is_read_back() -> None:
    for colour, shape, motion, background in itertools.product(COLOURS, SHAPES, MOTIONS, BACKGROUNDS):
        if colour == background:
            continue
        scene = Scene((SceneObject(colour, shape, motion),), background)
        assert parse_prompt(scene.caption) == scene
        assert set(scene.caption.split()) <= set(WORDS)


def test_captions_of_two_objects_are_read_back() -> None:
    rng = random.Random(0)
    for _ in range(300):
        scene = training_scene(rng, two_objects=1.0)
        assert len({o.colour for o in scene.objects}) == 2
        assert parse_prompt(scene.caption) == scene
        assert parse_prompt(f"  {scene.caption.upper()}. ") == scene


@pytest.mark.parametrize("prompt", ["", "  ", "."])
def test_empty_prompt_raises_with_an_example(prompt: str) -> None:
    with pytest.raises(ValueError, match="a red circle moving left on a blue background"):
        parse_prompt(prompt)


def test_unknown_word_raises_with_the_vocabulary() -> None:
    with pytest.raises(ValueError, match="does not know 'dog', 'park'") as error:
        parse_prompt("a red dog moving left on a park background")
    for word in (*COLOURS, *SHAPES, *MOTIONS.values(), *BACKGROUNDS):
        assert word in str(error.value)


@pytest.mark.parametrize(
    "prompt",
    [
        "a red circle",
        "red circle moving left on a black background",
        "a red circle moving left on a black",
        "a red circle moving left on a yellow background",
        "a circle red moving left on a black background",
        "a red circle left on a black background",
        "a red circle moving left and on a black background",
        " and ".join(["a red circle moving left"] * 3) + " on a black background",
    ],
)
def test_wrong_grammar_raises(prompt: str) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        parse_prompt(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        "a blue circle moving left on a blue background",
        "a red circle moving left and a red cross bouncing on a black background",
    ],
)
def test_two_things_of_one_colour_raise(prompt: str) -> None:
    with pytest.raises(ValueError, match="two have the same"):
        parse_prompt(prompt)


def test_held_out_combinations_are_fixed() -> None:
    assert len(HELD_OUT) == len(held_out_scenes()) == 64
    assert hashlib.sha256(repr(sorted(HELD_OUT)).encode()).hexdigest()[:12] == "c5db3eca2fd6"
    assert all(scene.held_out and scene.objects[0].colour != scene.background for scene in held_out_scenes())


def test_training_never_draws_a_held_out_combination() -> None:
    rng = random.Random(0)
    for _ in range(3000):
        scene = training_scene(rng)
        assert not {(o.colour, o.shape, o.motion, scene.background) for o in scene.objects} & HELD_OUT


@pytest.mark.parametrize("frames", [33, 129])
def test_objects_stay_apart(frames: int) -> None:
    rng = random.Random(0)
    for _ in range(40):
        scene = training_scene(rng, two_objects=1.0)
        paths = draw_trajectories(scene, rng, frames)
        a, b = (p.centres(o.motion, frames) for p, o in zip(paths, scene.objects, strict=True))
        apart = (a - b).abs()
        assert torch.minimum(apart, SIZE - apart).norm(dim=-1).min() > sum(p.radius for p in paths)


def test_objects_stay_inside_the_first_33_frames() -> None:
    for i, scene in enumerate(held_out_scenes()):
        video = render(scene, draw_trajectories(scene, random.Random(i)))
        ground = video[:, :1, :1, :1]
        border = torch.cat((video[..., 0], video[..., -1], video[..., 0, :], video[..., -1, :]), dim=-1)
        assert (border[..., None] == ground).all(), scene.caption


def test_shapes_have_nearly_one_area() -> None:
    def area(shape: str) -> float:
        video = render(Scene((SceneObject("red", shape, "still"),), "black"), (Trajectory(32, 32, 10, 1),), frames=1)
        return float((video[0] - video[0].min()).sum())

    areas = torch.tensor([area(shape) for shape in SHAPES])
    assert ((areas / areas.mean() - 1).abs() < 0.15).all()


def test_training_video() -> None:
    scene, video = training_video(random.Random(0), frames=9)
    assert not scene.held_out
    assert video.shape == (3, 9, SIZE, SIZE)
    assert video.dtype == torch.float32
    assert -1 <= video.min() < video.max() <= 1
