"""The judge names what drawn videos show, also when they are blurred and noisy, and nothing that they do not show."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import conv2d, interpolate, pad

from vidsparse.shapes.judge import Score, Sighting, count, look, score
from vidsparse.shapes.render import draw_trajectories, render
from vidsparse.shapes.scene import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, Scene, held_out_scenes, training_scene

ATTRIBUTES = ("colour", "shape", "motion", "background", "permanence")


def scenes() -> list[Scene]:
    rng = random.Random(1)
    return [*held_out_scenes(), *(training_scene(rng, two_objects=0.5) for _ in range(60))]


def draw(scene: Scene, seed: int = 0, frames: int = 33, height: int = 64, width: int = 64) -> torch.Tensor:
    return render(scene, draw_trajectories(scene, random.Random(seed), frames), frames, height, width)


def degrade(video: torch.Tensor, taps: int, seed: int = 0) -> torch.Tensor:
    """Blur at half the resolution and add noise: 28 dB on average with 3 taps, 26 dB with 5, 22 dB at worst."""
    small = interpolate(video.transpose(0, 1), scale_factor=0.5, mode="area")
    bell = torch.exp(-0.5 * (torch.linspace(-1, 1, taps) * 2 * (taps - 1) / taps) ** 2)
    kernel = (bell[:, None] * bell / bell.sum() ** 2).repeat(3, 1, 1, 1)
    soft = conv2d(pad(small, (taps // 2,) * 4, mode="circular"), kernel, groups=3)
    large = interpolate(soft, video.shape[-2:], mode="bilinear").transpose(0, 1)
    return (large + 0.05 * torch.randn(video.shape, generator=torch.Generator().manual_seed(seed))).clamp(-1, 1)


def moving(scene: Scene) -> int:
    return sum(o.motion != "still" for o in scene.objects)


def mean_scores(videos: Callable[[int, Scene], torch.Tensor], asked: list[Scene]) -> dict[str, float]:
    found = [score(videos(i, scene), scene) for i, scene in enumerate(asked)]
    return {name: sum(getattr(s, name) for s in found) / len(found) for name in ATTRIBUTES}


def test_drawn_videos_are_read_right() -> None:
    for name, value in mean_scores(lambda i, scene: draw(scene, i), scenes()).items():
        assert value >= 0.99, name


@pytest.mark.parametrize(("taps", "first"), [(3, 0), (5, 1)])
def test_blurred_and_noisy_videos_are_read_right(taps: int, first: int) -> None:
    for name, value in mean_scores(lambda i, s: degrade(draw(s, i), taps, i), scenes()[first::2]).items():
        assert value >= 0.97, name


@pytest.mark.parametrize(("frames", "height", "width"), [(129, 64, 64), (17, 64, 64), (33, 96, 128), (33, 48, 40)])
def test_other_sizes_are_read_right(frames: int, height: int, width: int) -> None:
    for name, value in mean_scores(lambda i, s: draw(s, i, frames, height, width), scenes()[3::15]).items():
        assert value == 1, name


def test_short_clips_do_not_hide_motion() -> None:
    for scene in held_out_scenes()[::6]:
        if scene.objects[0].motion != "bouncing":
            assert score(draw(scene, frames=5), scene).motion == 1


@pytest.mark.parametrize("sigma", [0.05, 0.15, 0.5, 2.0])
def test_noise_shows_nothing(sigma: float) -> None:
    noise = (sigma * torch.randn(3, 33, 64, 64, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    assert look(noise).objects == ()
    assert all(score(noise, scene) == Score(0, 0, 0, 0, 0) for scene in held_out_scenes()[:4])


def test_empty_and_broken_videos_earn_nothing() -> None:
    black = torch.full((3, 33, 64, 64), -1.0)
    assert look(black) == Sighting((), "black")
    assert look(black * torch.nan) == Sighting((), None)
    for scene in held_out_scenes():
        assert score(black, scene).mean == 0


def test_frozen_frame_stands_still() -> None:
    for i, scene in enumerate(scenes()[::4]):
        found = score(draw(scene, i)[:, 15:16].expand(-1, 33, -1, -1), scene)
        assert found.motion == 1 - moving(scene) / len(scene.objects), scene.caption
        assert found.colour == found.shape == found.permanence == 1


def test_order_of_frames_counts() -> None:
    for i, scene in enumerate(scenes()[::5]):
        video = draw(scene, i)
        still = 1 - moving(scene) / len(scene.objects)
        shuffled = video[:, torch.randperm(33, generator=torch.Generator().manual_seed(i))]
        assert score(shuffled, scene).motion <= still, scene.caption
        assert score(video[:, torch.arange(33) // 3], scene).motion <= still, f"{scene.caption}, three times too slow"
        symmetric = sum(o.motion in ("still", "bouncing") for o in scene.objects) / len(scene.objects)
        assert score(video.flip(1), scene).motion == symmetric, f"{scene.caption}, backwards"


@pytest.mark.parametrize("attribute", ["colour", "shape", "motion", "background"])
def test_one_wrong_word_costs_one_attribute(attribute: str) -> None:
    words = {"colour": COLOURS, "shape": SHAPES, "motion": MOTIONS, "background": BACKGROUNDS}[attribute]
    rng = random.Random(2)
    for i, scene in enumerate(scenes()[::9]):
        first, *others = scene.objects
        used = {scene.background, *(getattr(o, attribute, "") for o in scene.objects)}
        word = rng.choice([w for w in words if w not in used])
        if attribute == "background":
            wrong, right = replace(scene, background=word), 0.0
        else:
            wrong = replace(scene, objects=(replace(first, **{attribute: word}), *others))
            right = len(others) / len(scene.objects)
        assert score(draw(scene, i), wrong) == replace(Score(1, 1, 1, 1, 1), **{attribute: right}), wrong.caption


def test_missing_and_extra_objects_cost() -> None:
    for scene in [s for s in scenes() if len(s.objects) == 2][:10]:
        alone = replace(scene, objects=scene.objects[:1])
        half = Score(0.5, 0.5, 0.5, 1, 0.5)
        assert score(draw(scene), alone) == half
        assert score(draw(alone), scene) == half


def test_object_that_vanishes_is_not_permanent() -> None:
    for i, scene in enumerate(scenes()[::9]):
        video = draw(scene, i)
        video[:, 17:] = torch.tensor(BACKGROUNDS[scene.background])[:, None, None, None] / 127.5 - 1
        assert score(video, scene).permanence <= 0.6, scene.caption


def test_shape_that_changes_is_no_shape() -> None:
    for i, scene in enumerate(scenes()[::9]):
        following = dict(zip(SHAPES, SHAPES[1:] + SHAPES[:1], strict=True))
        other = replace(scene, objects=tuple(replace(o, shape=following[o.shape]) for o in scene.objects))
        paths = draw_trajectories(scene, random.Random(i))
        before, after = render(scene, paths), render(other, paths)
        morph = before.lerp(after, torch.linspace(0, 1, 33)[:, None, None])
        switch = torch.cat((before[:, :20], after[:, 20:]), dim=1)
        for video in (morph, switch):
            assert score(video, scene).shape == score(video, other).shape == 0, scene.caption


def test_two_things_of_one_colour_are_not_one_object() -> None:
    scene = held_out_scenes()[0]
    video = draw(replace(scene, objects=(replace(scene.objects[0], motion="still"),)))
    (twins,) = look(
        torch.minimum(video, video.roll(32, -1)) if scene.background == "white" else video.maximum(video.roll(32, -1))
    ).objects
    assert (twins.shape, twins.motion, twins.permanence) == ("unknown", "unknown", 0)


def test_colours_that_have_no_name_are_unknown() -> None:
    scene = replace(held_out_scenes()[0], background="black")
    cover = (draw(scene) - draw(scene)[:, :1, :1, :1]).abs().amax(dim=0) > 0.5
    orange, brown = (torch.tensor(c)[:, None, None, None] / 127.5 - 1 for c in ((250, 140, 20), (110, 70, 30)))
    (seen,) = look(torch.where(cover, orange, draw(scene))).objects
    assert (seen.colour, seen.shape) == ("unknown", scene.objects[0].shape)
    assert look(torch.where(cover, draw(scene), brown)).background is None


@pytest.mark.parametrize("shape", [(3, 33, 64), (1, 33, 64, 64), (3, 1, 64, 64), (1, 3, 33, 64, 64)])
def test_wrong_tensors_raise(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected a video"):
        look(torch.zeros(shape))


@pytest.mark.parametrize("copies", [(1, 1), (2, 1), (2, 2)], ids=str)
def test_repeated_objects_are_counted_where_the_video_is_larger(copies: tuple[int, int]) -> None:
    for index, scene in enumerate(held_out_scenes()[:16]):
        if len(scene.objects) > 1:
            continue  # two may touch, and one may cut the other in two
        video = draw(scene, index, frames=5, height=128, width=128)
        tiled = video.repeat(1, 1, *copies)
        assert count(tiled, native=128) == [copies[0] * copies[1]] * 5
        assert len(look(tiled).objects) == 1


def test_a_larger_video_of_one_large_object_has_one() -> None:
    scene = next(scene for scene in held_out_scenes() if len(scene.objects) == 1)
    assert count(draw(scene, frames=5, height=256, width=256), native=128) == [1] * 5


def test_an_empty_video_has_no_object() -> None:
    assert count(torch.full((3, 2, 64, 64), -1.0), native=64) == [0, 0]
