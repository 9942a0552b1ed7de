"""Phases of a search: where they start, and that none has steps of two experts."""

from __future__ import annotations

from tiny_wan import wan_pipeline

from vidsparse import Context, PerPhase, Radial
from vidsparse.runtime.pipeline import transformers_of
from vidsparse.tuning.phases import Phases, is_middle, switch_of


def test_phases_follow_the_noise() -> None:
    levels = tuple(1 - step / 30 for step in range(30))
    found = Phases.of(levels)
    assert found.starts == (0, 3, 8, 15) and found.lengths == (3, 5, 7, 15)
    assert [found.phase(step) for step in (0, 2, 3, 14, 15, 29)] == [0, 0, 1, 2, 3, 3]
    middles = [step for step in range(30) if is_middle(step, 30)]
    assert [found.phase(step) for step in middles] == [0, 1, 2, 3]
    pattern = PerPhase(tuple(Radial(density=d) for d in (0.8, 0.6, 0.4, 0.2)), found.sigmas)
    chosen = [pattern.chosen(Context(sigma=level)) for level in levels]
    assert chosen == [pattern.patterns[found.phase(step)] for step in range(30)]
    assert Phases.of((1.0,)).starts == (0,) and Phases.of((1.0, 0.5)).starts == (0, 1)
    assert Phases.of((1.0, 1.0, 1.0, 0.2)).starts == (0,)  # no phase begins at the noise level of the one before


def test_no_phase_has_steps_of_two_experts() -> None:
    pipe = wan_pipeline(experts=2)
    assert switch_of(wan_pipeline(), 5) is None and switch_of(pipe, 1) is None
    switch = switch_of(pipe, 5)
    asked: list[str] = []
    handles = [
        t.register_forward_pre_hook(lambda m, a, n=name: asked.append(n)) for name, t in transformers_of(pipe).items()
    ]
    pipe(
        "a red circle",
        num_frames=9,
        height=64,
        width=64,
        num_inference_steps=5,
        guidance_scale=3.0,
        max_sequence_length=32,
        output_type="latent",
    )
    for handle in handles:
        handle.remove()
    assert switch is not None and asked == ["transformer"] * 2 * switch + ["transformer_2"] * 2 * (5 - switch)

    levels = tuple(1 - step / 20 for step in range(20))
    found = Phases.of(levels, 14)
    assert found.starts == (0, 2, 5, 10, 14) and found.sigmas[-1] == (levels[13] + levels[14]) / 2
    middles = [step for step in range(20) if is_middle(step, 20, 14)]
    assert [found.phase(step) for step in middles] == [0, 1, 2, 3, 4]
