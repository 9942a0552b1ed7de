"""The search for a profile on a small random pipeline: what it measures, how it goes on, what it finds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from tiny_wan import wan_pipeline

from vidsparse import Context, Dense, Pattern, PerHead, PerLayer, PerPhase, Radial, TopBlocks, VideoGrid, sparsify
from vidsparse.generation.sample import sample
from vidsparse.patterns.base import patterns_in
from vidsparse.profiles import load_profile
from vidsparse.runtime.pipeline import transformers_of
from vidsparse.shapes.model import build_transformer
from vidsparse.tuning import tune as tune_module
from vidsparse.tuning.allocate import allocate
from vidsparse.tuning.candidates import default_candidates
from vidsparse.tuning.capture import Reference, capture
from vidsparse.tuning.measure import Measurement, Recorded, build, measure
from vidsparse.tuning.phases import Phases, is_middle, switch_of
from vidsparse.tuning.probe import probe
from vidsparse.tuning.search import Target, Trial
from vidsparse.tuning.store import Store
from vidsparse.tuning.tune import Tuned, tune

ARGUMENTS: dict[str, Any] = {
    "num_frames": 9,
    "height": 64,
    "width": 64,
    "num_inference_steps": 5,
    "guidance_scale": 3.0,
    "max_sequence_length": 32,
}
PROMPTS, HELD_OUT = ("a red circle", "a blue square"), ("a green cross", "a white circle")
TILE = (1, 4, 4)
CANDIDATES = (Dense(TILE), Radial(density=0.1, tile=TILE), Radial(density=0.5, tile=TILE), TopBlocks(0.2, tile=TILE))


def run(folder: Path, target: Target, **changes: Any) -> Tuned:
    given: dict[str, Any] = {"candidates": CANDIDATES, "seed": 3, "cost": "density"} | changes
    return tune(wan_pipeline(), "tiny", target, ARGUMENTS, PROMPTS, HELD_OUT, folder, **given)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tuned]:
    folder = tmp_path_factory.mktemp("tuned")
    return folder, run(folder, Target(density=0.5))


def test_captured_calls_repeat_what_the_video_computed() -> None:
    pipe = wan_pipeline(experts=2)
    seen: dict[tuple[str, int], torch.Tensor] = {}
    handles = [
        t.register_forward_hook(lambda m, a, k, out, n=name: seen.setdefault((n, len(seen)), out[0]), with_kwargs=True)
        for name, t in transformers_of(pipe).items()
    ]
    found = capture(pipe, {**ARGUMENTS, "prompt": PROMPTS[0]}, lambda step, steps: step in (0, 4), seed=1)
    for handle in handles:
        handle.remove()
    assert [(c.transformer, c.step) for c in found.calls] == [("transformer", 0), ("transformer_2", 4)]
    assert len(found.sigmas) == 5 and list(found.sigmas) == sorted(found.sigmas, reverse=True)
    assert found.branches == 2 and found.seconds > 0
    outputs = list(seen.values())
    for call, expected in zip(found.calls, (outputs[0], outputs[8]), strict=True):  # two branches a step
        transformer = transformers_of(pipe)[call.transformer]
        torch.testing.assert_close(call.repeat(transformer, torch.device("cpu")), expected)
        assert not transformer._forward_hooks
    again = Reference.read(found.plain())
    assert again.sigmas == found.sigmas and again.calls[1].step == 4
    torch.testing.assert_close(dict(again.calls[0].arguments), dict(found.calls[0].arguments))


def test_a_probe_measures_the_change_after_the_output_projection() -> None:
    pipe = wan_pipeline()
    call = capture(pipe, {**ARGUMENTS, "prompt": PROMPTS[0]}, lambda step, steps: step == 2, seed=1).calls[0]
    transformer, cpu = pipe.transformer, torch.device("cpu")
    expected = call.repeat(transformer, cpu)
    outputs: list[torch.Tensor] = []

    def repeated() -> None:
        torch.testing.assert_close(call.repeat(transformer, cpu), expected)

    tally = probe(transformer, repeated, CANDIDATES, Context(step=2, steps=5))
    handle = transformer.blocks[0].attn1.register_forward_hook(lambda m, a, out: outputs.append(out))
    for index, candidate in enumerate(CANDIDATES):
        outputs.clear()
        call.repeat(transformer, cpu)
        with sparsify(transformer, candidate):
            call.repeat(transformer, cpu)
        wanted = (outputs[1] - outputs[0]).double().square().mean()
        # One head: its error is all of the layer's.
        torch.testing.assert_close(tally.errors[0][0, index], wanted, rtol=1e-3, atol=1e-10)
        assert len(tally.turns.ratios[index]) >= 2 and min(tally.turns.ratios[index]) > 0
    handle.remove()
    assert tally.densities[0][0, 0] == 1 > tally.densities[0][0, 2] > tally.densities[0][0, 1]


def test_a_profile_keeps_to_the_density_and_runs(tuned: tuple[Path, Tuned]) -> None:
    folder, found = tuned
    assert found.reached and len(found.trials) == 1
    assert found.profile.expected is not None and found.profile.expected.density <= 0.51
    pipe = wan_pipeline()
    pattern = found.profile.pattern_for(pipe)
    assert {type(p) for p in patterns_in(pattern)} & {PerHead, PerLayer, PerPhase, Radial, TopBlocks}
    arguments = {**ARGUMENTS, "prompt": HELD_OUT[0]}
    done = sample(pipe, pattern, arguments, seed=5)
    flops = sum(c.flops for c in done.report.calls) / sum(c.dense_flops for c in done.report.calls)
    assert flops == pytest.approx(found.profile.expected.density, abs=0.02)  # content decides some of it
    found.profile.save(folder / "profile.json")
    assert load_profile(folder / "profile.json") == found.profile


def test_it_beats_each_candidate_at_the_same_density(tuned: tuple[Path, Tuned]) -> None:
    folder, _ = tuned
    store = Store(folder, json.loads((folder / "settings.json").read_text()))
    measurement = Measurement.read(store.kept("measurement", lambda: pytest.fail("it is there")))
    errors, costs = measurement.errors.sum(dim=(0, 1, 2)), measurement.costs("density").sum(dim=(0, 1, 2))
    for index in range(1, len(CANDIDATES)):
        budget = float(costs[index] / costs[0])
        search_error = _error(measurement, folder, budget)
        assert search_error <= float(errors[index]) * (1 + 1e-9), CANDIDATES[index]


def _error(measurement: Measurement, folder: Path, budget: float) -> float:
    errors, costs = measurement.errors.flatten(0, 2), measurement.costs("density").flatten(0, 2)
    choice = allocate(errors, costs, budget * float(costs[:, 0].sum()))
    return float(errors.gather(1, choice[:, None]).sum())


def test_it_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[str] = []

    def stop_at(name: str, done: int, steps: int) -> None:
        stages.append(name)
        if name == "trying layers":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Target(density=0.4), on_stage=stop_at)
    assert {"dense video 1 of 2", "dense video 2 of 2", "trying candidates"} <= {*stages}
    stages.clear()
    monkeypatch.setattr(tune_module, "capture", lambda *a, **k: pytest.fail("captured again"))
    first = run(tmp_path, Target(density=0.4), on_stage=lambda name, done, steps: stages.append(name))
    assert "trying layers" in stages
    stages.clear()
    second = run(tmp_path, Target(density=0.4), on_stage=lambda name, done, steps: stages.append(name))
    assert stages == [] and second.profile == first.profile
    assert not list(tmp_path.glob(".*"))


def test_a_quality_is_reached_at_the_least_budget(tuned: tuple[Path, Tuned]) -> None:
    folder, _ = tuned
    easy = run(folder, Target(psnr=1.0))
    assert easy.reached and easy.profile.expected is not None
    hard = run(folder, Target(psnr=99.0))  # nothing but dense attention is that close
    assert not hard.reached and hard.profile.expected is not None
    assert hard.profile.expected.density > easy.profile.expected.density
    assert len(hard.trials) > 1


def test_the_closest_is_kept_where_nothing_reaches_the_target(tuned: tuple[Path, Tuned]) -> None:
    found = run(tuned[0], Target(speedup=50.0))
    assert not found.reached and found.profile.found["reached"] is False
    assert found.profile.expected is not None and found.profile.found["cost"] == "seconds"
    best = max(found.dense_seconds / median(trial.seconds) for trial in found.trials)
    assert found.profile.expected.speedup == pytest.approx(best) and best < 50


def test_bad_requests(tmp_path: Path, tuned: tuple[Path, Tuned]) -> None:
    for given, message in (
        ({}, "give one target of psnr, ssim, speedup and density, not none"),
        ({"psnr": 30.0, "density": 0.5}, "not psnr and density"),
        ({"ssim": 1.5}, "target ssim=1.5 must be between 0 and 1"),
        ({"speedup": 1.0}, "target speedup=1.0 must be between 1 and 100"),
        ({"psnr": float("nan")}, "target psnr=nan"),
    ):
        with pytest.raises(ValueError, match=message):
            Target(**given)
    with pytest.raises(ValueError, match="got 2 prompts and 0 held-out ones"):
        tune(wan_pipeline(), "tiny", Target(density=0.5), ARGUMENTS, PROMPTS, (), tmp_path)
    with pytest.raises(ValueError, match="'a red circle' is also held out"):
        tune(wan_pipeline(), "tiny", Target(density=0.5), ARGUMENTS, PROMPTS, PROMPTS[:1], tmp_path)
    with pytest.raises(ValueError, match="arguments lack num_frames"):
        less = {k: v for k, v in ARGUMENTS.items() if k != "num_frames"}
        tune(wan_pipeline(), "tiny", Target(density=0.5), less, PROMPTS, HELD_OUT, tmp_path)
    with pytest.raises(ValueError, match=r"holds a search with other settings \(seed differ\)"):
        run(tuned[0], Target(density=0.5), seed=4)


def test_each_expert_has_its_own_costs() -> None:
    pipe = wan_pipeline(experts=2)
    torch.manual_seed(4)
    pipe.transformer = build_transformer(2, num_layers=2, num_attention_heads=1).eval()  # a quarter of the tokens
    arguments = {**ARGUMENTS, "prompt": PROMPTS[0]}
    switch = switch_of(pipe, 5)
    assert switch is not None
    reference = capture(pipe, arguments, lambda step, steps: is_middle(step, steps, switch), seed=1)
    phases = Phases.of(reference.sigmas, switch)
    found = measure(pipe, [Recorded(arguments, 1, reference)], phases, CANDIDATES, lambda name, done, steps: None)
    first = phases.starts.index(switch)
    assert found.pairs.tolist() == [1 / 16] * first + [1.0] * (len(phases.starts) - first)
    assert found.seconds.shape == (len(phases.starts), len(CANDIDATES))
    for own in (found.seconds[:first], found.seconds[first:]):
        assert (own == own[0]).all() and (own > 0).all()
    assert not torch.equal(found.seconds[0], found.seconds[-1])
    by_pairs, by_seconds = found.costs("density"), found.costs("seconds")
    assert by_pairs[..., 0].amax(dim=(1, 2)).tolist() == [
        n * p for n, p in zip(phases.lengths, found.pairs.tolist(), strict=True)
    ]
    torch.testing.assert_close(by_seconds[-1, 1, 0], found.seconds[-1] * phases.lengths[-1])
    again = Measurement.read(found.plain())
    assert again.phases == phases and torch.equal(again.costs("seconds"), by_seconds)


def test_a_choice_becomes_the_smallest_pattern() -> None:
    phases = Phases(4, (0, 2), (0.7,))
    a, b = CANDIDATES[1], CANDIDATES[2]
    same = torch.ones(2, 3, 2, dtype=torch.long)
    assert build(same, CANDIDATES, phases) == a
    layers = same.clone()
    layers[:, 1] = 2
    assert build(layers, CANDIDATES, phases) == PerLayer((a, b), (0, 1, 0))
    mixed = same.clone()
    mixed[1, 2, 1] = 0
    found = build(mixed, CANDIDATES, phases)
    assert found == PerPhase((a, PerLayer((a, PerHead((a, CANDIDATES[0]), (0, 1))), (0, 0, 1))), phases.sigmas)


def test_a_trial_counts_a_standard_error_below_its_mean() -> None:
    trial = Trial(0.5, (30.0, 34.0), (0.9, 0.9), (2.0, 4.0, 3.0), 0.4)
    assert trial.value("psnr", 9.0) == pytest.approx(32 - 2)
    assert trial.value("ssim", 9.0) == pytest.approx(0.9)
    assert trial.value("speedup", 9.0) == 3 and trial.value("density", 9.0) == 0.4


@pytest.mark.parametrize("grid", [VideoGrid(9, 16, 16), VideoGrid(21, 45, 80), VideoGrid(1, 3, 5)], ids=str)
def test_candidates_have_tiles_of_one_shape(grid: VideoGrid) -> None:
    candidates = default_candidates(grid)
    assert isinstance(candidates[0], Dense) and len({*candidates}) == len(candidates) >= 10
    tiles: set[Any] = {getattr(candidate, "tile") for candidate in candidates}  # noqa: B009
    assert len(tiles) == 1


def test_candidates_that_no_profile_can_name_are_refused_at_once(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Foreign(Pattern):  # of no module, so that no file can name it
        def plan(self, grid: VideoGrid, context: Context | None = None) -> Any:
            return Dense().plan(grid, context)

    with pytest.raises(TypeError, match="Foreign is not a pattern or correction of vidsparse"):
        run(tmp_path, Target(density=0.5), candidates=(Dense(), Foreign()))
