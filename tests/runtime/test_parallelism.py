"""Several processes share a video, and compute what one computes: patterns, corrections, families, refusals."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from diffusers import ContextParallelConfig
from gloo import on_ranks
from matrix import NO_ULYSSES
from tiny_wan import Pipeline, call, tiny, tokens_of

import vidsparse
from vidsparse import (
    Context,
    Dense,
    Gridded,
    GriddedHeads,
    HeadModes,
    MixtureOfBlocks,
    PerHead,
    PerLayer,
    PooledComplement,
    Radial,
    Rectified,
    Reshaped,
    Reuse,
    SpatialTemporal,
    StepSchedule,
    TopBlocks,
    sparsify,
)
from vidsparse.doctor.twin import Twin
from vidsparse.runtime.balance import planned_costs
from vidsparse.runtime.ranks import Ranks
from vidsparse_pipelines import ADAPTERS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

SIZES, TILE = (4, 8, 16), (1, 4, 4)  # latents; 4 x 4 x 8 tokens
MODES = (("full", "skip-mean", "stripe", "diagonal"), ("diagonal", "full", "skip-zero", "temporal"))
TOP_P = TopBlocks(top_p=0.5, tile=TILE)
SPARSE = Radial(density=0.3, tile=TILE)
# Pattern and correction.
CASES: dict[str, tuple[Any, Any]] = {
    "shapes": (SPARSE, None),
    "modes-of-heads": (HeadModes((MODES, MODES[::-1]), window=1, radius=2, tile=TILE, long_tile=(4, 2, 2)), None),
    "lines-of-heads": (GriddedHeads((Gridded(), Gridded((1, 2, 2)), Gridded(sink=2), Gridded())), None),
    "patterns-of-heads": (PerHead((SPARSE, TOP_P, Dense()), (1, 0, 2, 1)), None),
    "patterns-of-layers": (PerLayer((SPARSE, PerHead((Radial(density=0.5), SPARSE), (0, 1, 1, 0))), (1, 0)), None),
    "content": (TOP_P, None),
    "content-together": (TopBlocks(density=0.3, tile=TILE, shared_heads=True), None),
    "classes-of-heads": (SpatialTemporal(density=0.3), None),
    "heads-compete": (MixtureOfBlocks(threshold=0.3, scope="overall", tile=TILE), None),
    "kept": (Reuse(TOP_P, refresh_every=2), None),
    "kept-while-good": (Reuse(TOP_P, min_recall=0.6), None),
    "schedule": (StepSchedule(TOP_P, dense_steps=1, dense_layers=(-1,)), None),
    "pooled": (TOP_P, PooledComplement()),
    "rectified": (SPARSE, Rectified()),
    "reshaped": (Reuse(TOP_P), Reshaped()),
}

# Their products of matrices are for all heads at once: with fewer heads they may add in another order.
ROUNDED = ("pooled", "rectified")


class Found(NamedTuple):
    """What a process has computed alone and what it has with the others."""

    alone: list[torch.Tensor]
    shared: list[torch.Tensor]
    reports: tuple[Any, Any]
    heads: list[tuple[tuple[int, ...], ...]]


def steps(transformer: Any, batch: int) -> list[torch.Tensor]:
    with torch.no_grad():
        return [call(transformer, SIZES, batch=batch, timestep=time) for time in (900.0, 600.0, 300.0)]


def of_case(name: str, enabled_first: bool = False, batch: int = 1) -> Found:
    pattern, correction = CASES[name]
    transformer = tiny(num_attention_heads=4)
    with sparsify(transformer, pattern, correction=correction) as run:
        alone, before = steps(transformer, batch), run.report()
        if not enabled_first:
            vidsparse.enable_parallelism(transformer)
            run.reset()
            run.expect_another_video()
            shared, after = steps(transformer, batch), run.report()
            heads = heads_of_layers(transformer)
    if enabled_first:
        vidsparse.enable_parallelism(transformer)
        with sparsify(transformer, pattern, correction=correction) as run:
            shared, after = steps(transformer, batch), run.report()
            heads = heads_of_layers(transformer)
    return Found(alone, shared, (before, after), heads)


def heads_of_layers(transformer: Any) -> list[Any]:
    layers = [block.attn1.processor.layer for block in transformer.blocks]
    return [memory.heads for layer in layers for batches in layer.memories.values() for memory in batches.values()]


def all_cases(names: list[str]) -> dict[str, Found]:
    return {name: of_case(name) for name in names}


def assert_same(found: Found, rounded: bool = False) -> None:
    assert len(found.alone) == len(found.shared) == 3
    for alone, shared in zip(found.alone, found.shared, strict=True):
        # A rounding in each of the attention, projection, feed-forward and output of two layers.
        band = 8 * torch.finfo(torch.float32).eps * float(alone.abs().max()) if rounded else 0.0
        assert float((alone - shared).abs().max()) <= band
    before, after = found.reports
    assert before.sparse_calls == after.sparse_calls > 0
    assert before.dense_reasons == after.dense_reasons
    assert [c.tokens for c in after.calls] == [c.tokens for c in before.calls]
    # Means in another order, in float64.
    assert after.density == pytest.approx(before.density, rel=1e-12)
    assert after.flops_saved == pytest.approx(before.flops_saved, rel=1e-12)


@pytest.fixture(scope="module", params=[2, 4])
def found(request: pytest.FixtureRequest) -> list[dict[str, Found]]:
    return on_ranks(request.param, all_cases, list(CASES))


@pytest.mark.parametrize("name", CASES)
def test_several_processes_compute_bit_for_bit_what_one_does(found: list[dict[str, Found]], name: str) -> None:
    for of_rank in found:
        assert_same(of_rank[name], name in ROUNDED)
    for other in found[1:]:
        assert other[name].reports[1].density == found[0][name].reports[1].density


def test_heads_of_different_density_are_balanced(found: list[dict[str, Found]]) -> None:
    ranks = len(found)
    for name in ("modes-of-heads", "content", "classes-of-heads"):
        heads = [of_rank[name].heads for of_rank in found]
        assert all(other == heads[0] for other in heads)
        for shares in heads[0]:
            assert len(shares) == ranks
            assert sorted(head for share in shares for head in share) == [0, 1, 2, 3]
    # The last step, of noise 0.3, in the first layer.
    context = Context(layers=2, heads=4, sigma=0.3)
    costs = planned_costs(CASES["modes-of-heads"][0], tokens_of(SIZES), context)
    assert costs is not None
    loads = [sum(costs[head] for head in share) for share in found[0]["modes-of-heads"].heads[0]]
    blocks = [sum(costs[rank * 4 // ranks : (rank + 1) * 4 // ranks]) for rank in range(ranks)]
    assert max(loads) <= max(blocks)
    if ranks == 2:
        best = min(max(costs[0] + costs[other], sum(costs) - costs[0] - costs[other]) for other in (1, 2, 3))
        assert max(loads) == best < max(blocks)


def test_parallelism_before_sparsify_and_a_batch() -> None:
    for of_rank in on_ranks(2, partial(of_case, "content", enabled_first=True, batch=2)):
        assert_same(of_rank)


def of_three_heads() -> list[tuple[torch.Tensor, torch.Tensor]]:
    found = []
    for pattern in (Dense(), SPARSE, TOP_P):
        outputs = []
        for shared in (False, True):
            transformer = tiny(num_attention_heads=3)
            if shared:
                vidsparse.enable_parallelism(transformer, ulysses_anything=True)
            with sparsify(transformer, pattern), torch.no_grad():
                outputs.append(call(transformer, SIZES))
        found.append((outputs[0], outputs[1]))
    return found


def test_three_heads_on_two_processes() -> None:
    for of_rank in on_ranks(2, of_three_heads):
        assert all(torch.equal(alone, shared) for alone, shared in of_rank)


# Gradients


def gradients() -> dict[str, dict[str, torch.Tensor]]:
    found = {}
    for name in ("alone", "shared"):
        twin = Twin(diffusers.WanTransformer3DModel)
        transformer = twin.build()
        if name == "shared":
            vidsparse.enable_parallelism(transformer)
        with sparsify(transformer, SPARSE):
            found[name] = twin.gradients(transformer)
    twin = Twin(diffusers.WanTransformer3DModel)
    transformer = twin.build(torch.float64)
    with sparsify(transformer, SPARSE):
        found["exact"] = twin.gradients(transformer, dtype=torch.float64)
    return found


def test_the_sum_of_gradients_over_the_processes_is_the_gradient() -> None:
    ranks = on_ranks(2, gradients)
    exact, alone = ranks[0]["exact"], ranks[0]["alone"]
    errors = {"alone": 0.0, "shared": 0.0}
    for name, wanted in exact.items():
        total = torch.stack([rank["shared"][name] for rank in ranks]).sum(dim=0)
        size = float(wanted.abs().max())
        for key, value in (("alone", alone[name]), ("shared", total)):
            errors[key] = max(errors[key], float((value - wanted).abs().max()) / size)
    assert 0 < errors["shared"] <= 2 * errors["alone"] + torch.finfo(torch.float32).eps


# Families

FAMILIES = tuple(name for name in ADAPTERS if name not in NO_ULYSSES)


def of_families(names: list[str]) -> dict[str, list[Any]]:
    """For each family and pattern: outputs alone and shared, and why the shared calls were dense."""
    return {name: [of_family(name, pattern) for pattern in (Dense(), SPARSE, TOP_P)] for name in names}


def of_family(name: str, pattern: Any) -> tuple[Any, Any, dict[str, int]]:
    twin, outputs = Twin(getattr(diffusers, name)), []
    # MiniMax-H3 divides text and sound too: 11 tokens in this twin.
    view, batch = ((3, 5, 15), 1) if name.startswith("MiniMax") else ((3, 5, 8), 1 if "Framepack" in name else 2)
    for shared in (False, True):
        transformer = twin.build()
        if shared:
            vidsparse.enable_parallelism(transformer)
        with sparsify(transformer, pattern) as run:
            outputs.append(twin.outputs(transformer, view, batch))
    return outputs[0], outputs[1], run.report().dense_reasons


@pytest.fixture(scope="module")
def families() -> list[dict[str, list[Any]]]:
    known = [name for name in FAMILIES if hasattr(diffusers, name)]
    return on_ranks(2, of_families, known)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_the_same_on_several_processes(families: list[dict[str, list[Any]]], name: str) -> None:
    if not hasattr(diffusers, name):
        pytest.skip(f"this diffusers has no {name}")
    for of_rank in families:
        for alone, shared, dense in of_rank[name]:
            assert set(dense) <= {"the pattern asks for it"}
            for key, wanted in alone.items():
                # Matrix products of fewer rows may add in another order: three roundings of a layer, in two layers.
                band = 8 * torch.finfo(torch.float32).eps * float(wanted.abs().max())
                assert float((shared[key] - wanted).abs().max()) <= band
        assert of_rank[name][0][2]
        assert not of_rank[name][1][2]


@pytest.mark.parametrize("name", NO_ULYSSES)
def test_a_family_that_cannot_be_divided_says_why(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(diffusers, name):
        pytest.skip(f"this diffusers has no {name}")
    with_processes(monkeypatch, 2)
    with pytest.raises(NotImplementedError, match="diffusers"):
        vidsparse.enable_parallelism(Twin(getattr(diffusers, name)).build())


# Refusals


def with_processes(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: number)


def test_without_processes_there_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RuntimeError, match=r"torchrun --nproc-per-node 4, and call torch.distributed.init_process_gro"):
        vidsparse.enable_parallelism(tiny(), 4)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(
        RuntimeError, match=r"^several GPUs need a process each: call torch.distributed.init_process_gr"
    ):
        vidsparse.enable_parallelism(tiny())


def test_numbers_of_processes_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    with_processes(monkeypatch, 4)
    with pytest.raises(ValueError, match=r"does not divide the 6 heads of WanTransformer3DModel; these do: 2, 3, 6"):
        vidsparse.enable_parallelism(tiny(num_attention_heads=6))
    with pytest.raises(ValueError, match=r"ulysses_degree=2, but there are 4 processes"):
        vidsparse.enable_parallelism(tiny(), 2)
    with pytest.raises(TypeError, match="has no transformer"):
        vidsparse.enable_parallelism(Pipeline())
    with_processes(monkeypatch, 1)
    with pytest.raises(ValueError, match="there is 1 process"):
        vidsparse.enable_parallelism(tiny())


@pytest.mark.parametrize("ulysses", [1, 2])
def test_a_ring_is_refused_before_anything_runs(ulysses: int) -> None:
    config = ContextParallelConfig(ring_degree=2, ulysses_degree=ulysses)
    transformer = tiny()
    with sparsify(transformer, SPARSE):
        transformer._parallel_config = diffusers.ParallelConfig(context_parallel_config=config)
        with pytest.raises(NotImplementedError, match=r"ring_degree=2 .* use ulysses_degree alone"):
            call(transformer)
    with pytest.raises(NotImplementedError, match=r"ring_degree=2"):
        sparsify(transformer, SPARSE)


def test_tokens_that_cannot_be_divided_are_refused_unless_anything_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    with_processes(monkeypatch, 4)
    with pytest.raises(ValueError, match=r"385 tokens cannot be divided by 4 GPUs; .* or ulysses_anything=True"):
        Ranks(None).shares(385)
    assert Ranks(None, uneven=True).shares(385) == (97, 96, 96, 96)


def own_attention_and_restored() -> list[str]:
    """The errors of a family whose own attention exchanges no heads, and of a second call."""
    errors = []
    twin = Twin(diffusers.CogVideoXTransformer3DModel)
    transformer = twin.build()
    vidsparse.enable_parallelism(transformer)
    for attempt in (lambda: twin.outputs(transformer), lambda: vidsparse.enable_parallelism(transformer)):
        try:
            attempt()
        except RuntimeError as error:
            errors.append(str(error))
    return errors


def test_a_family_without_exchange_of_its_own_runs_only_sparsified() -> None:
    for errors in on_ranks(2, own_attention_and_restored):
        assert "only while it is sparsified" in errors[0]
        assert "already" in errors[1]
