"""Graphs that `torch.compile` makes of a sparse Wan model: how many, what they compute, and what the report says."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from tiny_wan import SIZES, SPARSE, WITHOUT_PROMPT, Pipeline, call, tiny
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.utils import counters

from vidsparse import (
    Correction,
    Dense,
    GatedCoarse,
    Pattern,
    PooledComplement,
    Report,
    Reshaped,
    Reuse,
    SparseCall,
    StepSchedule,
    TopBlocks,
    VideoSparse,
    sparsify,
)
from vidsparse.runtime import compiled

TILE = (1, 4, 4)
CONTENT = TopBlocks(density=0.3, tile=TILE)
EVERYTHING = StepSchedule(Reuse(CONTENT, refresh_every=2), dense_steps=1, dense_layers=(1,))
# Pattern, correction, and how many graphs all blocks, steps and branches share.
EXPECTED: dict[str, tuple[Pattern, Correction | None, int]] = {
    "shapes": (SPARSE, None, 1),
    "dense": (Dense(), None, 1),
    "schedule": (StepSchedule(SPARSE, dense_steps=1, dense_layers=(0,)), None, 2),
    "content": (CONTENT, PooledComplement(), 1),
    "memory": (SPARSE, Reshaped(refresh_every=2), 1),
    "everything": (EVERYTHING, None, 2),
}


class Backend:
    """Counts the graphs that it is given."""

    def __init__(self, name: str = "eager"):
        self.made, self.compile = 0, lookup_backend(name)

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        self.made += 1
        return self.compile(graph, inputs)


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def video(transformer: Any) -> list[torch.Tensor]:
    """Four steps with guidance."""
    found = []
    for timestep in (900.0, 700.0, 500.0, 100.0):
        found += [call(transformer, timestep=timestep), call(transformer, timestep=timestep, **WITHOUT_PROMPT)]
    return found


def ways(report: Report) -> list[tuple[Any, ...]]:
    return sorted(
        (c.layer, c.step, c.tokens, c.impl, c.tiles, c.reason or "", c.density, c.token_density, c.flops, c.calls)
        for c in report.calls
    )


@torch.no_grad()
@pytest.mark.parametrize("name", EXPECTED)
def test_blocks_share_graphs_that_never_break(name: str) -> None:
    pattern, correction, graphs = EXPECTED[name]
    transformer, backend = tiny(num_layers=3), Backend()
    with sparsify(transformer, pattern, correction=correction) as run:
        expected, eager = video(transformer), run.report()
    transformer.compile_repeated_blocks(fullgraph=True, backend=backend)
    for _ in range(2):  # another run finds the graphs of the first
        with sparsify(transformer, pattern, correction=correction) as run:
            assert all(map(torch.equal, video(transformer), expected))
            report = run.report()
        assert ways(report) == ways(eager) and report.kept_bytes == eager.kept_bytes
        assert all(c.seconds > 0 for c in report.sparse) and all(c.seconds == 0 for c in report.calls if c.reason)
    assert backend.made == graphs


@torch.no_grad()
def test_a_whole_transformer_is_one_graph_if_it_is_compiled_first() -> None:
    pattern, correction, graphs = EXPECTED["everything"]
    scheduler, backend = FlowMatchEulerDiscreteScheduler(), Backend()
    pipe = Pipeline(transformer=tiny(), scheduler=scheduler)
    scheduler.set_timesteps(3)

    def generate() -> list[torch.Tensor]:
        return [call(pipe.transformer, timestep=float(timestep)) for timestep in scheduler.timesteps]

    with sparsify(pipe, pattern, correction=correction) as run:
        expected, eager = generate(), run.report()
    inner, pipe.transformer = pipe.transformer, torch.compile(pipe.transformer, fullgraph=True, backend=backend)
    with sparsify(pipe, pattern, correction=correction) as run:
        assert all(map(torch.equal, generate(), expected))
        assert ways(run.report()) == ways(eager) and run.report().lost == ()
        assert not any(block.attn1.processor.layer.memories for block in inner.blocks)  # freed after the last step
        with pytest.raises(RuntimeError):
            call(pipe.transformer, encoder_hidden_states=torch.zeros(1, 7, 15))  # text of another width
        assert torch.equal(call(inner, timestep=float(scheduler.timesteps[0])), expected[0])  # beside the graph
    assert backend.made == graphs
    assert not pipe.transformer._forward_pre_hooks and not pipe.transformer._forward_hooks


@torch.no_grad()
def test_a_whole_transformer_that_is_compiled_later_breaks_at_the_hook_alone() -> None:
    transformer, backend = tiny(), Backend()
    with sparsify(transformer, SPARSE) as run:
        expected = call(transformer)
        assert torch.equal(call(torch.compile(transformer, backend=backend)), expected)
        assert backend.made == 1 and sum(counters["graph_break"].values()) == 1
        torch.compiler.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported, match="compile the transformer before sparsify"):
            call(torch.compile(transformer, backend=backend, fullgraph=True))
        assert run.report().dense_calls == 0


@torch.no_grad()
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler")
def test_inductor_makes_two_graphs() -> None:
    pattern, transformer = StepSchedule(CONTENT, dense_steps=1), tiny()
    with sparsify(transformer, pattern) as run:
        expected, eager = video(transformer), run.report()
    transformer.compile_repeated_blocks(fullgraph=True)
    with sparsify(transformer, pattern) as run:
        found, report = video(transformer), run.report()
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]
    torch.testing.assert_close(found, expected)
    assert [w[:6] for w in ways(report)] == [w[:6] for w in ways(eager)]


def gradients(transformer: Any, **changes: Any) -> dict[str, torch.Tensor]:
    transformer.zero_grad()
    call(transformer, **changes).square().mean().backward()
    return {name: p.grad.clone() for name, p in transformer.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("pattern", "correction"),
    [(SPARSE, None), (CONTENT, PooledComplement()), (VideoSparse(density=0.3, tile=TILE), GatedCoarse())],
    ids=["shapes", "content", "gate"],
)
def test_gradients_are_those_of_eager(pattern: Pattern, correction: Correction | None) -> None:
    transformer: Any = tiny(num_layers=1)
    if isinstance(correction, GatedCoarse):
        transformer.blocks[0].attn1.to_gate_compress = torch.nn.Linear(24, 24)
    transformer.blocks[0].attn1.to_v.requires_grad_(False)
    with sparsify(transformer, pattern, correction=correction):
        expected = gradients(transformer)
    compiled_model: Any = torch.compile(transformer, backend="aot_eager", fullgraph=True)
    with sparsify(compiled_model, pattern, correction=correction):
        call(compiled_model, timestep=900.0)  # its backward never comes
        kept = call(compiled_model, timestep=700.0)
        found = gradients(compiled_model)
        kept.sum().backward()
    found = {name.removeprefix("_orig_mod."): gradient for name, gradient in found.items()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    del kept
    assert not compiled._recorded  # nothing is left of calls whose backward is over, or never comes


def test_gradients_with_checkpointing_are_those_of_eager() -> None:
    transformer: Any = tiny().train()
    transformer.enable_gradient_checkpointing()
    pattern = StepSchedule(CONTENT, dense_layers=(0,))
    with sparsify(transformer, pattern):
        expected = gradients(transformer)
    transformer.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    with sparsify(transformer, pattern) as run:
        found = gradients(transformer)
    # aot_eager sums gradients of shared inputs in another order, in dense blocks as well.
    torch.testing.assert_close(found, expected)
    assert run.report().sparse_calls == 2 and not compiled._recorded


def test_gradients_whose_ticket_was_copied_are_refused() -> None:
    transformer: Any = tiny(num_layers=1)
    transformer.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    hook = torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda x: x)
    with sparsify(transformer, SPARSE), hook:
        out = call(transformer).sum()
        with pytest.raises(RuntimeError, match="train without this hook"):
            out.backward()


@torch.no_grad()
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_autocast_is_that_of_the_graph(backend: str) -> None:
    transformer: Any = tiny()
    with sparsify(transformer, CONTENT), torch.autocast("cpu", torch.bfloat16):
        expected = call(transformer)
    transformer.compile_repeated_blocks(fullgraph=True, backend=backend)
    with sparsify(transformer, CONTENT), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(call(transformer), expected)
    with sparsify(transformer, CONTENT):
        assert not torch.equal(call(transformer), expected)


def test_inference_mode_and_then_training() -> None:
    sizes, transformer = (2, 10, 26), tiny(num_layers=1)
    transformer.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    with sparsify(transformer, CONTENT):
        with torch.inference_mode():
            expected = call(transformer, sizes)
        out = call(transformer, sizes)
        assert torch.equal(out, expected)
        out.sum().backward()


class Masked(WanAttnProcessor):  # type: ignore[misc]
    """A processor that no adapter knows."""


@torch.no_grad()
def test_what_a_processor_cannot_run_is_dense_in_the_graph_and_reported() -> None:
    transformer, backend = tiny(num_layers=3), Backend()
    for block in [*transformer.blocks][1:]:
        block.attn1.processor = Masked()
    with sparsify(transformer, SPARSE) as run:
        expected, eager = call(transformer), run.report()
    transformer.compile_repeated_blocks(fullgraph=True, backend=backend)
    with sparsify(transformer, SPARSE) as run:
        assert torch.equal(call(transformer), expected)
    assert ways(run.report()) == ways(eager) and backend.made == 2
    (reason,) = run.report().dense_reasons
    assert "its processor is Masked" in reason


@torch.no_grad()
def test_strict_refuses_in_a_graph_too(monkeypatch: pytest.MonkeyPatch) -> None:
    transformer: Any = tiny()
    transformer.compile_repeated_blocks(backend="eager")
    with sparsify(transformer, SPARSE, strict=True):
        processor = type(transformer.blocks[0].attn1.processor)
        monkeypatch.setattr(processor, "unsupported", lambda self, mask=None: "the moon is full")
        with pytest.raises(NotImplementedError, match=r"the moon is full \(strict=True\)"):
            call(transformer)


@torch.no_grad()
def test_a_copy_in_a_graph_attends_in_its_own_layers() -> None:
    transformer: Any = tiny()
    with sparsify(transformer, SPARSE) as run:
        expected = call(transformer)
        twin = copy.deepcopy(transformer)
        twin.compile_repeated_blocks(fullgraph=True, backend="eager")
        before = run.report().sparse_calls
        assert torch.equal(call(twin), expected)
        assert run.report().sparse_calls == before
        layers = [block.attn1.processor.layer for model in (transformer, twin) for block in model.blocks]
        assert len({int(layer.handle) for layer in layers}) == 4


class Returning(Correction):
    """Returns what it was given: memory that is not its own."""

    def correct(self, call: SparseCall) -> torch.Tensor:
        return call.query


@torch.no_grad()
def test_operators_return_memory_of_their_own() -> None:
    transformer: Any = tiny()
    with sparsify(transformer, SPARSE, correction=Returning()):
        call(transformer)
        layer = transformer.blocks[0].attn1.processor.layer
        tokens = layer.grid.tokens
        inputs = [torch.randn(1, tokens, 2, 12) for _ in range(3)]
        out = torch.ops.vidsparse.attend(layer.handle, inputs, None, torch.float32)
        assert torch.equal(out, inputs[0]) and out.data_ptr() != inputs[0].data_ptr()
        torch.library.opcheck(torch.ops.vidsparse.attend.default, (layer.handle, inputs, None, torch.float32))


def test_a_graph_whose_layer_is_gone_says_so() -> None:
    inputs = [torch.randn(1, 4, 2, 12) for _ in range(3)]
    with pytest.raises(RuntimeError, match="compile the transformer again"):
        torch.ops.vidsparse.attend(torch.tensor(-1), inputs, None, torch.float32)


@torch.no_grad()
def test_attention_outside_of_the_forward_pass_says_so() -> None:
    transformer: Any = tiny()
    with sparsify(transformer, SPARSE):
        layer = transformer.blocks[0].attn1.processor.layer
        inputs = [torch.randn(1, SIZES["5x7x11"][0], 2, 12) for _ in range(3)]
        with pytest.raises(RuntimeError, match="outside the transformer's forward"):
            torch.ops.vidsparse.attend(layer.handle, inputs, None, torch.float32)
