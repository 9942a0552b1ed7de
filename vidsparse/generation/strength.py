"""Video to video at a strength below 1: the first denoising steps are left out."""

from __future__ import annotations

from typing import Any

from vidsparse.generation.pipeline_inputs import parameters


def takes_strength(cls: Any) -> bool:
    """Whether a strength says how much of a video is changed, so that the first steps are left out."""
    return "strength" in parameters(cls) and "conditions" not in parameters(cls)


def steps_run(cls: Any, steps: int, strength: float | None = None) -> int:
    """The denoising steps that `pipe(...)` runs: with a strength below 1, the last ones of those that it is asked for.

    Args:
        cls: the class of the pipeline.
        steps: that it is asked for.
        strength: None: the default of the pipeline.
    """
    if not takes_strength(cls):
        return steps
    share: float = parameters(cls)["strength"].default if strength is None else strength
    return min(int(steps * share), steps)


def steps_asked(cls: Any, wanted: int, strength: float | None = None) -> int:
    """The fewest steps to ask a pipeline for, so that it runs those that are wanted. See `steps_run`."""
    steps = wanted
    while steps_run(cls, steps, strength) < wanted:
        steps += 1
    return steps


def check_strength(cls: Any, strength: float | None, steps: int) -> None:
    """Refuse a strength that a pipeline does not take, or that leaves no step.

    Args:
        cls, steps, strength: see `steps_run`.

    Raises:
        ValueError: says which pipeline, or how many steps there are.
    """
    if strength is not None and not takes_strength(cls):
        raise ValueError(f"--strength says how much of a --video changes, and {cls.__name__} takes none; leave it out")
    if steps_run(cls, steps, strength) == 0:
        raise ValueError(f"--strength {strength} of {steps} steps leaves no step; give a higher one, or more --steps")
