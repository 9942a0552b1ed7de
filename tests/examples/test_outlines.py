"""The auxiliary task of the training: what tokens are asked about the outlines is what the renderer drew."""

from __future__ import annotations

import random

import pytest
import torch
from outlines import FEATURES, OutlineReader, outlines

from vidsparse.shapes.render import draw_trajectories, render
from vidsparse.shapes.scene import MOTIONS, Scene, SceneObject


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("shape", ["circle", "triangle", "cross"])
def test_the_sign_of_the_distance_tells_object_from_ground(shape: str, motion: str) -> None:
    scene = Scene((SceneObject("yellow", shape, motion),), "black")
    paths = draw_trajectories(scene, random.Random(3))
    # Asked at every pixel, so that a token's centre is a pixel's.
    target = outlines([(scene, paths)], 9, 64, 64)[0, ..., :2]
    bright = render(scene, paths)[0] > 0  # [frames, 64, 64]; halfway from black to yellow
    for place, frames in ((0, [0, *range(1, 33, 4)]), (1, range(0, 33, 4))):
        wrong = (target[..., place] < 0) != bright[list(frames)]
        assert wrong.float().mean() < 0.003  # pixels that an outline halves


def test_the_offset_points_at_the_centre_and_a_missing_object_is_not_asked_for() -> None:
    scene = Scene((SceneObject("red", "square", "right"),), "white")
    paths = draw_trajectories(scene, random.Random(5))
    target = outlines([(scene, paths)], 9, 16, 16)[0]
    assert target.shape == (9, 16, 16, 2 * FEATURES)
    assert target[..., FEATURES:].isnan().all() and not target[..., :FEATURES].isnan().any()
    x = (torch.arange(16) + 0.5) * 4
    centre = paths[0].centres("right", 33)[::4, 0]
    found = torch.atan2(target[..., 2], target[..., 4])[:, 0] * 64 / (2 * torch.pi)
    expected = (x - centre[:, None] + 32) % 64 - 32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_the_reader_learns_from_the_middle_of_a_network() -> None:
    torch.manual_seed(0)
    blocks = torch.nn.ModuleList(torch.nn.Linear(24, 24) for _ in range(3))
    reader = OutlineReader(blocks, 24)
    scene = Scene((SceneObject("red", "circle", "up"),), "white")
    target = outlines([(scene, draw_trajectories(scene, random.Random(1)))], 3, 8, 8)
    x = torch.randn(1, 3 * 8 * 8, 24)

    def loss() -> torch.Tensor:
        hidden = x
        for block in blocks:
            hidden = block(hidden)
        return reader.loss(target)

    optimizer = torch.optim.Adam([*blocks.parameters(), *reader.parameters()], lr=1e-2)
    first = loss().item()
    for _ in range(60):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.5 * first
    assert blocks[1].weight.grad is not None and blocks[2].weight.grad is None  # after two thirds of the blocks
