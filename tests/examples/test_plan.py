"""The training of `shapes` from its first command to its last, tiny: what it writes, and that it goes on."""

from __future__ import annotations

import importlib.util
import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import AUTOENCODER, STATISTICS, WEIGHTS, expert, load_autoencoder
from flow import LEVELS, Flow, kind
from latents import Pool, Statistics, crosses, encode, read_pool
from needs import needs_weights
from plan import PLANS
from quick_muon import quick_muon
from safetensors.torch import save_file
from transformer import Weights, build, file_of

from vidsparse.shapes.model import load_pipeline
from vidsparse.shapes.render import Trajectory, training_example
from vidsparse.shapes.scene import Scene, SceneObject

ROOM = Path(__file__).parents[2] / "examples/shapes_training"
muon = pytest.fixture(quick_muon)


@pytest.fixture
def command() -> Any:
    spec = importlib.util.spec_from_file_location("shapes_training", ROOM / "__main__.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@needs_weights
@pytest.mark.usefixtures("muon")
def test_a_dry_run_of_all_commands(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commands.WEIGHTS", tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    options = ["--out", str(tmp_path), "--plan", "tiny", "--device", "cpu"]
    small = ["--videos", "32", "--steps", "1", "--prompts", "1", "--sampling-steps", "2", "--threads", "1"]
    command(["all", *options, *small])
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if line["stage"] == "patch4" and "loss" in line] == [2]
    for phase, levels in (("patch4", LEVELS), ("high", LEVELS[:3]), ("low", LEVELS[3:])):
        (asked,) = (line for line in log if line["stage"] == phase and "pool" in line)
        kinds = ("all", "still", "bouncing", "crossing", "inside")
        assert {key for key in asked if key[-1].isdigit()} == {f"{kind}_{level}" for kind in kinds for level in levels}
    for phase, patch in (("high", 4), ("low", 2)):
        weights = Weights.read(tmp_path / file_of(phase))
        assert (weights.phase, weights.step, weights.patch, weights.plain) == (phase, 2, patch, True)
    assert (tmp_path / "strip.png").stat().st_size > 1000
    assert not list(tmp_path.rglob("*.tmp"))

    monkeypatch.setattr("commands.EXPORTED", tmp_path / "package")
    command(["export", *options])
    assert load_pipeline(model=tmp_path / "package").transformer.config.num_layers == 6

    # A machine that has the repository alone goes on from what was kept.
    command(["keep", *options])
    fresh = tmp_path / "fresh"
    command(["latents", "--out", str(fresh), *options[2:], *small])
    torch.testing.assert_close(read_pool(fresh / "latents").latents, read_pool(tmp_path / "latents").latents)
    command(["train", "--out", str(fresh), *options[2:]])
    assert not (fresh / "log.jsonl").exists()  # nothing was left to do


def test_phases_begin_with_coarser_tokens_and_end_at_rate_zero() -> None:
    for name, plan in PLANS.items():
        for phase in plan.phases:
            assert 1 >= phase.rate[0] > phase.rate[1], (name, phase.name)
            if phase.start:
                assert plan.phase(phase.start).patch >= phase.patch, (name, phase.name)
        high, low = map(plan.phase, plan.experts)
        assert high.plain and low.plain and high.rate[1] == low.rate[1] == 0, name
        assert (low.levels, high.levels) == ((0.0, plan.boundary), (plan.boundary, 1.0)), name
        assert len({phase.name for phase in plan.phases}) == len(plan.phases), name


def test_weights_come_back_with_their_place_in_the_plan(tmp_path: Path) -> None:
    state, reader = {"a": torch.randn(3, 4)}, {"layers.0.weight": torch.randn(5)}
    Weights(state, 2, reader, "patch2", 17, plain=True).write(tmp_path / "w.safetensors")
    found = Weights.read(tmp_path / "w.safetensors")
    assert (found.patch, found.phase, found.step, found.done, found.plain) == (2, "patch2", 17, False, True)
    torch.testing.assert_close(found.transformer, state, rtol=2**-11, atol=1e-6)
    torch.testing.assert_close(found.reader, reader, rtol=2**-11, atol=1e-6)


def test_statistics_make_latents_standard(tmp_path: Path) -> None:
    latents = torch.randn(4, 8, 3, 6, 6) * torch.arange(1, 9).view(8, 1, 1, 1) + 5
    Statistics.measure(latents).write(tmp_path / "s.json")
    standard = Statistics.read(tmp_path / "s.json").normalise(latents).transpose(0, 1).flatten(1)
    torch.testing.assert_close(standard.mean(dim=1), torch.zeros(8), rtol=0, atol=1e-5)
    torch.testing.assert_close(standard.std(dim=1), torch.ones(8), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("motion", "x", "expected"),
    [("right", 20.0, "inside"), ("right", 40.0, "crossing"), ("left", 40.0, "inside"), ("still", 40.0, "still")],
)
def test_videos_are_told_apart_by_motion_and_border(motion: str, x: float, expected: str) -> None:
    example = Scene((SceneObject("red", "circle", motion),), "blue"), (Trajectory(x, 32.0, 8.0, 0.8),)
    assert kind(example, 33) == expected
    assert crosses(example, 33) == (expected == "crossing")


def test_no_latents_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run the command `latents` first"):
        read_pool(tmp_path)
    assert len(Pool(torch.zeros(0), ())) == 0


class Stub(torch.nn.Module):
    """In the place of a transformer: it returns what it gets, and keeps the levels of noise."""

    config = SimpleNamespace(patch_size=(1, 4, 4))

    def __init__(self) -> None:
        super().__init__()
        self.levels: list[float] = []

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor) -> Any:
        self.levels += (timestep / 1000).tolist()
        return SimpleNamespace(sample=noisy)


def flow_of(stub: Stub) -> Flow:
    reader = SimpleNamespace(loss=lambda targets: targets.nanmean())
    prompts: Any = lambda texts, length: torch.zeros(len(texts), length, 64)  # noqa: E731
    return Flow(stub, reader, prompts, Statistics((0.0,) * 8, (1.0,) * 8), 8, 4, (0.0, 1.0), 5.0, "cpu")  # type: ignore[arg-type]


def pool_of(latent_frames: int) -> Pool:
    example = Scene((SceneObject("red", "cross", "up"),), "blue"), (Trajectory(9.0, 9.0, 8.0, 0.8),)
    generator = torch.Generator().manual_seed(0)
    return Pool(torch.randn(3, 8, 5, 8, 8, generator=generator)[:, :, :latent_frames].half(), (example,) * 3)


def test_parts_of_a_step_share_its_strata_of_noise() -> None:
    stub = Stub()
    flow, pool = flow_of(stub), pool_of(2)
    for part in range(4):
        loss, details = flow.loss(pool, random.Random(part), part)
        assert loss.isfinite() and details["flow"] > 0
    # Undone, the shift of 5 leaves one draw in each eighth of the range.
    drawn = sorted(level / (5 - 4 * level) for level in stub.levels)
    assert [int(8 * u) for u in drawn] == list(range(8))


def test_the_levels_of_an_expert_are_those_between_its_bounds() -> None:
    stub = Stub()
    flow = replace(flow_of(stub), levels=(0.5, 0.8))
    for part in range(4):
        flow.loss(pool_of(2), random.Random(part), part)
    low, high = 0.5 / (5 - 4 * 0.5), 0.8 / (5 - 4 * 0.8)
    drawn = sorted((level / (5 - 4 * level) - low) / (high - low) for level in stub.levels)
    assert [int(8 * u) for u in drawn] == list(range(8))


def test_a_short_step_is_a_step_on_shorter_clips() -> None:
    losses = []
    for pool, latent_frames in ((pool_of(5), 3), (pool_of(3), None)):
        torch.manual_seed(0)
        loss, details = flow_of(Stub()).loss(pool, random.Random(0), 0, latent_frames)
        assert ("flow" in details) == (latent_frames is None) == ("short_flow" not in details)
        losses.append(loss)
    torch.testing.assert_close(*losses, rtol=0, atol=0)


@needs_weights
def test_the_latents_of_a_short_clip_are_the_first_of_a_long_one() -> None:
    vae = load_pipeline().vae
    world = PLANS["tiny"].world
    example = training_example(random.Random(3), world.frames, world=world)
    long, short = (encode(vae, world, [example], frames).latents for frames in (13, 9))
    assert short.shape[2] == 3
    torch.testing.assert_close(long[:, :, :3], short, rtol=0, atol=2e-2)


def test_some_of_a_pool_are_evenly_spaced() -> None:
    examples = tuple((Scene((SceneObject("red", "circle", "up"),), b), ()) for b in ("black", "white", "gray", "blue"))
    some = Pool(torch.arange(4.0), examples).some(2)
    assert some.latents.tolist() == [0, 3] and [s.background for s, _ in some.examples] == ["black", "blue"]


@needs_weights
def test_the_weights_that_are_kept_load(tmp_path: Path) -> None:
    plan = PLANS["cpu"]
    for name in plan.experts:
        weights = expert(tmp_path, plan, name)
        assert weights.phase in {phase.name for phase in plan.phases} and weights.reader
        transformer, _ = build(weights, weights.patch, "cpu", weights.plain)
        assert transformer.config.patch_size == (1, weights.patch, weights.patch)
    shipped, kept = load_pipeline().vae, load_autoencoder(tmp_path)
    torch.testing.assert_close(kept.state_dict(), shipped.state_dict(), rtol=0, atol=0)
    changed = {name: (weight + 1).half().contiguous() for name, weight in shipped.state_dict().items()}
    save_file(changed, tmp_path / AUTOENCODER)
    taken = load_autoencoder(tmp_path).state_dict()
    torch.testing.assert_close(taken, {name: weight.float() for name, weight in changed.items()}, rtol=0, atol=0)
    assert min(Statistics.read(WEIGHTS / STATISTICS).std) > 0.5
