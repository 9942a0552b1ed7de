"""The run that is at work in a pipeline or transformer, found through what it has put in there."""

from __future__ import annotations

import weakref

import torch

from vidsparse.runtime.clock import Clock
from vidsparse.runtime.layer import Layer
from vidsparse.runtime.pipeline import transformers_of
from vidsparse.runtime.report import Report
from vidsparse.runtime.run import Replaced, Run


def restore(pipe_or_transformer: object) -> bool:
    """Put back the processors that a pipeline or transformer had before `sparsify` or `attn_processors`.

    This is `run.restore()` without the run. A run in several transformers of a pipeline ends in all of
    them, whichever is given.

    Args:
        pipe_or_transformer: a diffusers pipeline or a transformer.

    Returns:
        Whether there was anything to put back.

    Raises:
        TypeError: something that has no transformer.
    """
    runs = active_runs(pipe_or_transformer)
    for run in runs:
        run.restore()
    return bool(runs)


def report(pipe_or_transformer: object) -> Report:
    """Report what has run in a pipeline or transformer: `run.report()` without the run.

    Args:
        pipe_or_transformer: a diffusers pipeline or a transformer.

    Raises:
        ValueError: it is not sparsified, or several runs are at work in its transformers.
        TypeError: something that has no transformer.
    """
    runs = active_runs(pipe_or_transformer)
    if not runs:
        name = type(pipe_or_transformer).__name__
        raise ValueError(f"this {name} is not sparsified, so there is nothing to report; call vidsparse.sparsify first")
    if len(runs) > 1:
        names = " and ".join(name for run in runs for name in run.transformers)
        raise ValueError(f"{names} were sparsified each by itself; pass one of them, such as pipe.transformer")
    return runs[0].report()


def active_runs(pipe_or_transformer: object) -> list[Run]:
    """The runs at work in the transformers of a pipeline, each once; a run that nobody has kept is put together anew.

    Raises:
        TypeError: something that has no transformer.
    """
    found: dict[int, Run] = {}  # by their logs, which the layers of a run share
    for name, transformer in transformers_of(pipe_or_transformer).items():
        clock = Clock.of(transformer)
        if clock is None:
            continue
        run = None if clock.run is None else clock.run()
        if run is not None:
            found[id(run.log)] = run
        elif replaced := _replaced(transformer, clock):
            layer: Layer = replaced[0].ours.layer
            run = found.setdefault(id(layer.log), Run(layer.options, clock.pipeline, layer.log))
            run.replaced += replaced
            run.clocks[name], run.transformers[name] = clock, weakref.ref(transformer)
    return list(found.values())


def _replaced(transformer: torch.nn.Module, clock: Clock) -> list[Replaced]:
    """The attention modules of a transformer whose processors are ours, under this clock."""
    processors = ((module, getattr(module, "processor", None)) for module in transformer.modules())
    return [
        Replaced(module, layer.original, ours)
        for module, ours in processors
        if isinstance(layer := getattr(ours, "layer", None), Layer) and layer.clock is clock
    ]
