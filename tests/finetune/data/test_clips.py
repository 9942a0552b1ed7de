"""The clips of a fine-tuning: their sizes, and those that are drawn."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from small_videos import SMALL

from vidsparse.finetune.data.clips import Bucket, choose_bucket
from vidsparse.finetune.data.synthetic import drawn_clips
from vidsparse.shapes.judge import score
from vidsparse.shapes.render import render, training_example
from vidsparse.shapes.scene import parse_prompt
from vidsparse.shapes.world import ENDLESS

# Buckets


@pytest.mark.parametrize(
    ("frames", "height", "width", "expected"),
    [
        (200, 1080, 1920, Bucket(129, 480, 832)),
        (128, 1920, 1080, Bucket(81, 832, 480)),
        (33, 700, 700, Bucket(33, 512, 512)),
        (81, 60, 64, Bucket(81, 256, 256)),
        (81, 400, 400, Bucket(81, 512, 512)),
    ],
)
def test_a_video_gets_the_longest_and_the_most_alike(frames: int, height: int, width: int, expected: Bucket) -> None:
    sizes = [(480, 832), (832, 480), (256, 256), (512, 512)]
    assert choose_bucket(frames, height, width, sizes, [33, 129, 81]) == expected


def test_a_short_video_has_no_bucket() -> None:
    with pytest.raises(ValueError, match="it has 32 frames, and the shortest clips have 33"):
        choose_bucket(32, 64, 64, [(64, 64)], [33, 81])


def test_a_bucket_fits_the_vae_or_says_what_does() -> None:
    Bucket(81, 480, 832).check(temporal=4, spatial=16)
    Bucket(1, 16, 16).check(temporal=4, spatial=16)
    with pytest.raises(ValueError, match=r"80 frames .* use 77 or 81"):
        Bucket(80, 480, 832).check(temporal=4, spatial=16)
    with pytest.raises(ValueError, match=r"width 840 .* multiple of 16"):
        Bucket(81, 480, 840).check(temporal=4, spatial=16)


# Drawn clips


def test_a_long_drawn_clip_is_what_its_caption_says_all_along() -> None:
    for clip in drawn_clips(3, Bucket(129, 64, 64), seed=3):
        video, scene = clip.read(), parse_prompt(clip.caption)
        for part in (video, video[:, 40:], video[:, 96:]):
            assert score(part, scene).mean > 0.97, clip.caption


def test_drawn_clips_are_those_of_their_seed() -> None:
    few, many = drawn_clips(3, SMALL, seed=1), drawn_clips(200, SMALL, seed=1)
    assert [c.key for c in few] == [c.key for c in many[:3]]
    assert torch.equal(few[0].read(), many[0].read())
    assert many[0].read().shape == (3, 5, 32, 32)
    others = [*drawn_clips(3, SMALL, seed=2), *drawn_clips(3, replace(SMALL, frames=9), seed=1)]
    assert len({c.key for c in (*many, *others)}) == 206
    assert not any(parse_prompt(c.caption).held_out for c in drawn_clips(2000, Bucket(1, 64, 64)))


def test_a_drawn_clip_is_of_the_world_of_shapes() -> None:
    (clip,) = drawn_clips(1, SMALL, seed=3)
    scene, paths = training_example(random.Random("3-0"), SMALL.frames, world=ENDLESS)
    assert clip.caption == scene.caption
    assert torch.equal(clip.read(), render(scene, paths, SMALL.frames, SMALL.height, SMALL.width, ENDLESS))
