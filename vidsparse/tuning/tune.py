"""From a pipeline, prompts and a target to a profile."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal

import torch

import vidsparse
from vidsparse.generation.frames import pipeline_geometry
from vidsparse.generation.sample import OnStep
from vidsparse.grid import VideoGrid
from vidsparse.patterns import Pattern
from vidsparse.profiles import Expected, Profile
from vidsparse.runtime.model_settings import settings_of
from vidsparse.runtime.pipeline import transformers_of
from vidsparse.serialize import to_data
from vidsparse.tuning.candidates import default_candidates
from vidsparse.tuning.capture import Reference, capture
from vidsparse.tuning.measure import Measurement, Recorded, measure
from vidsparse.tuning.phases import Phases, is_middle, switch_of
from vidsparse.tuning.search import Held, OnStage, Search, Target, Trial
from vidsparse.tuning.store import Store

FORM = 2  # of what the folder of a search holds: one of another form cannot go on


@dataclass(frozen=True)
class Tuned:
    """What a search has found.

    Attributes:
        profile: the best there is. reached: whether it meets the target.
        trials: all patterns that were tried on held-out videos.
        dense_seconds: of denoising one of those, median.
    """

    profile: Profile
    reached: bool
    trials: tuple[Trial, ...]
    dense_seconds: float


def tune(
    pipe: Any,
    model: str,
    target: Target,
    arguments: Mapping[str, Any],
    prompts: Sequence[str],
    held_out: Sequence[str],
    folder: Path,
    *,
    candidates: tuple[Pattern, ...] | None = None,
    cost: Literal["seconds", "density"] = "seconds",
    seed: int = 0,
    on_stage: OnStage = lambda name, done, steps: None,
) -> Tuned:
    """Search a pattern for each head of each layer in each phase of noise that together meet a target.

    Every candidate is tried on the queries, keys and values of dense videos, and its error measured after the layer's
    output projection. What an error in a layer does to the transformer's output, and one in a phase to the video, is
    measured with one candidate. A Lagrangian gives each head the candidate with the least error for what it costs on
    this machine, under one budget for the whole video; trials on held-out prompts decide the budget.

    The idea of measuring heads by themselves is that of Sparse-vDiT (arXiv 2506.03065), that of one budget for all is
    MoA's (arXiv 2406.14909). Theirs choose among modes of one pattern, and windows; here any patterns compete, layers
    and phases are weighted by what they change in the video, and costs are seconds.

    Args:
        pipe: a diffusers pipeline of a supported family, without a sparsified transformer.
        model: its name, for the profile.
        target: what to reach.
        arguments: of `pipe(...)`, without the prompt; frames, height, width and steps decide what is tuned.
        prompts: two or more that the search may see. held_out: others, which decide.
        folder: keeps what was found, so that the same call goes on after a stop.
        candidates: patterns without a schedule, `Dense` first; by default `default_candidates` of the grid.
        cost: what a quality is reached with the least of: "seconds" of this machine, or "density", which makes the
            search the same everywhere.
        seed: of the noise of the first video; each has its own.
        on_stage: called with what is done, how much of it, and all.

    Raises:
        ValueError: no prompts; prompts that are in both lists; a folder that holds a search with other settings.
    """
    if not prompts or not held_out:
        raise ValueError(f"got {len(prompts)} prompts and {len(held_out)} held-out ones; give at least one of each")
    if shared := sorted({*prompts} & {*held_out}):
        raise ValueError(f"prompt {shared[0]!r} is also held out; the search must not see what decides")
    grid, size = _grid(pipe, arguments)
    candidates = candidates or default_candidates(grid)
    settings = {
        "form": FORM,
        "model": model,
        "arguments": {name: value for name, value in arguments.items() if isinstance(value, (int, float, str))},
        "prompts": list(prompts),
        "held_out": list(held_out),
        "candidates": [to_data(candidate) for candidate in candidates],
        "seed": seed,
    }
    store = Store(folder, settings)
    given = [{**arguments, "prompt": prompt} for prompt in prompts]
    measurement = Measurement.read(
        store.kept("measurement", lambda: _measured(pipe, given, seed, candidates, store, on_stage).plain())
    )
    held = Held(
        tuple({**arguments, "prompt": prompt} for prompt in held_out),
        tuple(seed + len(prompts) + number for number in range(len(held_out))),
    )
    search = Search(pipe, measurement, candidates, held, store, on_stage, cost)
    pattern, trial, reached = search.run(target)
    transformer = next(iter(transformers_of(pipe).values()))
    profile = Profile(
        model=model,
        transformer=type(transformer).__name__,
        config=settings_of(transformer),
        frames=size[0],
        height=size[1],
        width=size[2],
        steps=measurement.phases.steps,
        grid=grid.view,
        pattern=to_data(pattern),
        expected=Expected(
            psnr=mean(trial.psnr),
            ssim=mean(trial.ssim),
            speedup=search.dense_seconds / median(trial.seconds),
            density=trial.density,
            videos=len(held),
            device=str(pipe._execution_device),
        ),
        found={
            "target": str(target),
            "reached": reached,
            "cost": search.cost,
            **{key: value for key, value in settings.items() if key not in ("form", "model")},
            "versions": {"vidsparse": vidsparse.__version__, "torch": str(torch.__version__)},
        },
    )
    return Tuned(profile, reached, tuple(search.trials), search.dense_seconds)


def _measured(
    pipe: Any,
    given: list[dict[str, Any]],
    seed: int,
    candidates: tuple[Pattern, ...],
    store: Store,
    on_stage: OnStage,
) -> Measurement:
    """Capture dense videos of all prompts, and measure the candidates on them."""

    switch = functools.cache(lambda steps: switch_of(pipe, steps))

    def wanted(step: int, steps: int) -> bool:
        return is_middle(step, steps, switch(steps))

    def captured(number: int) -> Reference:
        def make() -> dict[str, Any]:
            told = _told(on_stage, f"dense video {number + 1} of {len(given)}")
            return capture(pipe, given[number], wanted, seed=seed + number, on_step=told).plain()

        return Reference.read(store.kept(f"captured-{number}", make))

    videos = [Recorded(arguments, seed + number, captured(number)) for number, arguments in enumerate(given)]
    sigmas = videos[0].reference.sigmas
    return measure(pipe, videos, Phases.of(sigmas, switch(len(sigmas))), candidates, on_stage)


def _grid(pipe: Any, arguments: Mapping[str, Any]) -> tuple[VideoGrid, tuple[int, int, int]]:
    """The grid of the videos, and their frames, height and width.

    Raises:
        ValueError: a size is missing.
    """
    missing = [name for name in ("num_frames", "height", "width") if not arguments.get(name)]
    if missing:
        raise ValueError(f"a profile is for videos of one size: arguments lack {', '.join(missing)}")
    size = arguments["num_frames"], arguments["height"], arguments["width"]
    grid = pipeline_geometry(pipe).grid(*size)
    return grid, size


def _told(on_stage: OnStage, name: str) -> OnStep:
    return lambda done, steps: on_stage(name, done, steps)
