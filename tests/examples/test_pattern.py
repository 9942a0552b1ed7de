"""The pattern that the second expert is trained with: searched at a density, used in training, shipped as a profile."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformer as module
from commands import COMMANDS, WEIGHTS, load_autoencoder
from latents import Statistics, encode
from needs import needs_weights
from pattern import PATTERN, find_pattern, read_pattern, write_pattern
from plan import PLANS
from quick_muon import quick_muon
from transformer import Training, start_weights

import vidsparse
from vidsparse import Dense, PerHead, PerLayer, Radial, load_profile
from vidsparse.patterns.base import patterns_in
from vidsparse.patterns.schedule import bare
from vidsparse.shapes.model import load_pipeline
from vidsparse.shapes.render import training_example
from vidsparse.shapes.world import ENDLESS

pytestmark = needs_weights
muon = pytest.fixture(quick_muon)


def test_a_pattern_for_each_head_at_a_density(tmp_path: Path) -> None:
    """On the weights that ship: less error in the output than `Radial` has at the same density."""
    plan, vae = PLANS["cpu"], load_autoencoder(tmp_path)
    world = replace(ENDLESS, size=64)
    video = encode(vae, world, [training_example(random.Random(3), 9, world=world)], 9)
    statistics = Statistics.measure(video.latents)
    training = Training(plan, load_pipeline(), statistics, tmp_path, WEIGHTS, video, "cpu")
    flow = training.flow(plan.phase("low"), start_weights())
    found = find_pattern(flow, video, 0.3)
    assert {type(p) for p in patterns_in(found)} & {PerHead, PerLayer}
    latent = statistics.normalise(video.latents)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
    given = latent, noise, torch.tensor([0.5]), flow.prompts([video.examples[0][0].caption])
    errors, densities = [], []
    with torch.no_grad():
        exact = flow.predict(*given)
        for pattern in (found, Radial(density=0.3)):
            with vidsparse.sparsify(flow.transformer, pattern) as run:
                errors.append(float((flow.predict(*given) - exact).square().mean()))
            densities.append(run.report().density)
    assert densities[0] < 0.33 and errors[0] < errors[1]
    write_pattern(found, tmp_path / PATTERN)
    assert read_pattern(tmp_path / "nowhere", tmp_path) == found and read_pattern(tmp_path / "nowhere") is None


@pytest.mark.usefixtures("muon")
def test_it_is_trained_with_and_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, package = tmp_path / "kept", tmp_path / "package"
    kept.mkdir()
    monkeypatch.setattr("commands.WEIGHTS", kept)
    monkeypatch.setattr("commands.EXPORTED", package)
    used: list[Any] = []
    sparsify = vidsparse.sparsify

    def noting(model: Any, pattern: Any) -> Any:
        used.append(pattern)
        return sparsify(model, pattern)

    monkeypatch.setattr(module.vidsparse, "sparsify", noting)
    given: Any = SimpleNamespace(
        plan=PLANS["tiny"], out=tmp_path, device="cpu", until=float("inf"), videos=32, phase=None
    )
    for command in ("latents", "train"):
        COMMANDS[command](given)
    assert used and all(isinstance(pattern, Radial) for pattern in used), "before one is searched"
    COMMANDS["pattern"](given)
    found = read_pattern(tmp_path)
    (tmp_path / "low.safetensors").unlink()
    (tmp_path / "low.pt").unlink()
    used.clear()
    COMMANDS["train"](given)
    assert used and all(pattern == found for pattern in used)

    COMMANDS["export"](given)
    profile = load_profile(package)
    pattern = profile.pattern_for(load_pipeline(model=package))
    assert bare(pattern) == found and pattern.is_dense(vidsparse.Context(sigma=0.9))
    assert not pattern.is_dense(vidsparse.Context(sigma=0.5)) or isinstance(found, Dense)
    COMMANDS["keep"](given)
    assert read_pattern(kept) == found


def test_the_pattern_that_ships_is_the_one_that_is_kept() -> None:
    found = read_pattern(WEIGHTS)
    assert found is not None and bare(vidsparse.preset("shapes").pattern) == vidsparse.SlidingClip(found, frames=9)
