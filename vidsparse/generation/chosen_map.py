"""The block map that a pattern chose in a real step of a real video."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from vidsparse.generation.sample import OnStep, sample
from vidsparse.patterns import Pattern
from vidsparse.patterns.schedule import bare
from vidsparse.runtime.chosen import ChosenMap
from vidsparse.runtime.run import Run


class _Chosen(Exception):
    """Ends the sampling once the map is known."""


def chosen_map(
    pipe: Any,
    pattern: Pattern,
    arguments: Mapping[str, Any],
    *,
    layer: int,
    step: int,
    seed: int = 0,
    on_step: OnStep = lambda done, steps: None,
) -> ChosenMap:
    """Sample a video up to a step, and return the map that the pattern chose in one of its layers.

    Steps before run under the pattern as well. Where guidance calls the transformer once for each prompt, the map is
    that of the first call.

    Args:
        pipe, arguments, seed, on_step: see `vidsparse.generation.sample.sample`.
        pattern: without a schedule.
        layer, step: indices.

    Raises:
        ValueError: a layer or a step that does not exist, or attention that ran dense there.
    """
    runs: list[Run] = []

    def begun(run: Run) -> None:
        run.record(layers=(layer,), steps=(step,))
        runs.append(run)

    def stepped(done: int, steps: int) -> None:
        on_step(done, steps)
        if done > step:
            raise _Chosen

    with suppress(_Chosen):
        sample(pipe, bare(pattern), {**arguments, "output_type": "latent"}, seed=seed, on_run=begun, on_step=stepped)
    (run,) = runs
    if run.maps:
        return run.maps[0]
    reasons = "; ".join(run.report().dense_reasons) or f"step {step} does not exist"
    raise ValueError(f"the pattern chose no map in layer {layer} of step {step}: {reasons}")
