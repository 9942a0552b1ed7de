"""Every family's blocks in graphs of `torch.compile`: sparse blocks never break, and make no more graphs than dense."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from twins import ignores_warnings, twin

from vidsparse import Radial, sparsify
from vidsparse.runtime.registry import adapter_for
from vidsparse_pipelines import ADAPTERS

pytestmark = ignores_warnings
PACKED = ("Cosmos3OmniTransformer", "MiniMaxH3Transformer3DModel")  # one sample a call
BREAKS_DENSE = ("MochiTransformer3DModel",)  # its own processor picks the real text tokens by `nonzero`


def compile_blocks(transformer: Any, fullgraph: bool) -> list[int]:
    """Compile what diffusers repeats, or the blocks of a family for which it names none; returns an item a graph."""
    made: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        made.append(len(inputs))
        return graph

    if transformer._repeated_blocks:
        transformer.compile_repeated_blocks(backend=backend, fullgraph=fullgraph)
    else:
        names = {name.rpartition(".")[0] for name in adapter_for(transformer).self_attentions(transformer)}
        for name in names:
            transformer.get_submodule(name).compile(backend=backend, fullgraph=fullgraph)
    return made


@torch.no_grad()
@pytest.mark.parametrize("name", ADAPTERS)
def test_sparse_blocks_are_as_few_graphs_as_dense_ones(name: str) -> None:
    batch = 1 if name in PACKED else 2  # samples whose texts differ in length, where they may
    of, pattern = twin(name), Radial(density=0.5, tile=(1, 4, 4))
    model = of.build()
    with sparsify(model, pattern):
        expected = of.outputs(model, batch=batch)
    torch.compiler.reset()
    graphs = compile_blocks(dense := of.build(), fullgraph=name not in BREAKS_DENSE)
    of.outputs(dense, batch=batch)
    torch.compiler.reset()
    made = compile_blocks(model, fullgraph=True)
    with sparsify(model, pattern) as run:
        found = of.outputs(model, batch=batch)
    torch.compiler.reset()
    assert 0 < len(made) <= len(graphs)
    assert run.report().dense_calls == 0 and all(torch.equal(found[key], expected[key]) for key in expected)
