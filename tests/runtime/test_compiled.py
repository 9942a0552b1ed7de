"""How many graphs `torch.compile` makes of a sparse Wan model, how often they break, and what the report says of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny_wan import SPARSE, Pipeline, call, tiny
from torch._dynamo.utils import counters

from vidsparse import Dense, Pattern, Reshaped, StepSchedule, sparsify

SCHEDULED = StepSchedule(SPARSE, dense_steps=1)
# Of the whole model and of its two blocks alone. While processors called back into layers they were, with the same
# calls, of the blocks 5 graphs with 4 breaks (sparse), 3 with 3 (dense), 5 with 4 (both); of the model 8 with 5,
# 6 with 4, 8 with 5.
EXPECTED = [
    ("blocks", SPARSE, 4, 3),
    ("blocks", Dense(), 1, 0),
    ("blocks", SCHEDULED, 5, 3),
    ("model", SPARSE, 7, 4),
    ("model", Dense(), 1, 1),
    ("model", SCHEDULED, 8, 4),
]


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@torch.no_grad()
@pytest.mark.parametrize(
    ("what", "pattern", "graphs", "breaks"), EXPECTED, ids=[f"{e[0]}{i}" for i, e in enumerate(EXPECTED)]
)
def test_graphs_and_breaks(what: str, pattern: Pattern, graphs: int, breaks: int) -> None:
    made = 0

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> torch.fx.GraphModule:
        nonlocal made
        made += 1
        return graph

    transformer: Any = tiny()
    expected = []
    with sparsify(transformer, pattern) as run:
        for timestep in (900.0, 500.0, 100.0):
            expected.append(call(transformer, timestep=timestep))
        eager = run.report()
    with sparsify(transformer, pattern) as run:
        if what == "blocks":
            for block in transformer.blocks:
                block.compile(backend=backend)
        else:
            transformer = torch.compile(transformer, backend=backend)
        found = [call(transformer, timestep=timestep) for timestep in (900.0, 500.0, 100.0)]
        compiled = run.report()
    assert all(map(torch.equal, found, expected))
    assert made <= graphs and sum(counters["graph_break"].values()) <= breaks, counters["graph_break"]
    ways = [[(c.layer, c.step, c.reason, c.density, c.flops, c.calls) for c in r.calls] for r in (eager, compiled)]
    assert ways[0] == ways[1]
    assert all(c.seconds > 0 for c in compiled.sparse) and all(c.seconds == 0 for c in compiled.calls if c.reason)


@torch.no_grad()
def test_memory_is_freed_and_counted_in_graphs_too() -> None:
    transformer: Any = tiny()
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(3)
    pipe = Pipeline(transformer=transformer, scheduler=scheduler)
    with sparsify(pipe, SPARSE, correction=Reshaped()) as run:
        compiled = torch.compile(transformer, backend="eager")
        kept = []
        for timestep in scheduler.timesteps:
            call(compiled, timestep=float(timestep))
            kept.append([len(block.attn1.processor.layer.memories) for block in transformer.blocks])
    assert kept == [[1, 1], [1, 1], [0, 0]]
    assert len(run.report().calls) == 6 and all(c.kept_bytes > 0 for c in run.report().calls)
