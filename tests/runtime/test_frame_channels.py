"""The bias between frames as extra channels, against explicit logits in float64, alone and in a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from against_float64 import Attention, Case, assert_close, run
from tiny_wan import SIZES, Pipeline, call, generate, tiny, tokens_of, wan_pipeline

from vidsparse import (
    BlockMap,
    Context,
    Correction,
    Dense,
    PooledComplement,
    Radial,
    StepSchedule,
    TemporalBias,
    TopBlocks,
    VideoGrid,
    sparse_attention,
    sparsify,
)
from vidsparse.corrections import GatedCoarse, Rectified, Reshaped
from vidsparse.patterns.temporal_bias import frame_bias
from vidsparse.runtime.call import Call, Memory, SparsityOptions
from vidsparse.runtime.frame_channels import KERNEL_CHANNELS, features, widen, widened
from vidsparse.runtime.heads import Operands

BIAS = TemporalBias(Dense(), strength=1.7, width=1.3)
CASES = {
    "ragged": Case(VideoGrid(5, 7, 6)),
    "one-frame": Case(VideoGrid(1, 9, 5), query_tile=(1, 4, 4)),
    "text": Case(VideoGrid(3, 5, 7, prefix=3, suffix=6), batch=2, extra_valid=(4, 9)),
    "empty-rows": Case(VideoGrid(7, 3, 5), empty=(1,), head_dim=12),
    "later-frames": Case(VideoGrid(2, 5, 4, suffix=2), key_grid=VideoGrid(5, 5, 4, suffix=2)),
}


def bias_of_tokens(bias: TemporalBias, queries: VideoGrid, keys: VideoGrid) -> torch.Tensor:
    """What is added to each logit, from a loop over the frames: float64 [query tokens, key tokens]."""
    added = torch.zeros(queries.tokens, keys.tokens, dtype=torch.float64)
    first, matrix = keys.frames - queries.frames, bias.matrix(keys.frames)
    area = queries.height * queries.width
    for i in range(queries.frames):
        for j in range(keys.frames):
            rows = slice(queries.prefix + i * area, queries.prefix + (i + 1) * area)
            columns = slice(keys.prefix + j * area, keys.prefix + (j + 1) * area)
            added[rows, columns] = matrix[first + i, j]
    return added


def explicit(mask: torch.Tensor, added: torch.Tensor) -> Attention:
    """Attention with its logits written out, weights in the dtype of the values."""

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        wide = torch.promote_types(q.dtype, torch.float32)
        dead = ~mask.any(dim=-1, keepdim=True)
        logits = q.transpose(1, 2).to(wide) @ k.transpose(1, 2).to(wide).mT * q.shape[-1] ** -0.5 + added.to(wide)
        logits = logits.masked_fill(~mask & ~dead, float("-inf"))
        weights = logits.softmax(dim=-1).masked_fill(dead, 0.0).to(v.dtype)
        lse = logits.logsumexp(dim=-1).masked_fill(dead.squeeze(-1), float("-inf"))
        return (weights @ v.transpose(1, 2)).transpose(1, 2), lse

    return attention


def as_channels(case: Case, block_map: BlockMap, impl: str) -> Attention:
    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        wide = widen(Operands(q, k, v, case.valid), BIAS, case.grid, case.key_grid)
        out, lse = sparse_attention(*wide[:3], block_map, extra_valid=case.valid, impl=impl, return_lse=True)
        assert not out[..., q.shape[-1] :].any()
        return out[..., : q.shape[-1]], lse

    return attention


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["f64", "f32", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_every_kernel_adds_the_bias(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    case = CASES[name]
    block_map = case.block_map()
    tensors = [x.to(dtype) for x in case.tensors(4)]
    mask, added = block_map.token_mask(case.valid), bias_of_tokens(BIAS, case.grid, case.keys)
    exact = run(explicit(mask, added), tensors, torch.float64)
    bound = run(explicit(mask, added), tensors, dtype)
    for impl in ("cpu", "reference"):
        found = run(as_channels(case, block_map, impl), tensors, dtype)
        if dtype == torch.bfloat16:  # the lse is that of rounded features and of queries rounded once more
            rounding = torch.finfo(dtype).eps * (BIAS.strength + tensors[0].abs().max().item())
            alive = exact["lse"].isfinite()
            assert ((found["lse"] - exact["lse"])[alive].abs() <= rounding).all()
            found["lse"] = exact["lse"]
        assert_close(found, exact, bound, dtype)


@pytest.mark.parametrize(("frames", "width"), [(1, 1.0), (5, 0.05), (21, 4.0), (33, 8.0), (33, 1000.0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["f64", "f32", "bf16"])
def test_features_are_as_few_as_the_dtype_needs(frames: int, width: float, dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    phi, wanted = features(2.5, width, frames, eps), frame_bias(2.5, width, frames)
    off = (phi @ phi.T - wanted).abs().max().item()
    assert off <= 2.5 * (eps / 4 + frames * torch.finfo(torch.float64).eps)
    most = torch.linalg.matrix_rank(wanted, atol=2.5 * eps / 4, rtol=0.0, hermitian=True).item()
    assert phi.shape[1] <= most if dtype == torch.float64 else phi.shape[1] == most


def test_channels_on_a_gpu_are_those_that_kernels_take() -> None:
    gpu = torch.device("cuda")
    assert [widened(64, rank, gpu) for rank in (1, 32, 33, 65)] == [96, 96, 128, 144]
    assert widened(128, 5, gpu) == 144 and widened(128, 5, torch.device("cpu")) == 133
    primitives = pytest.importorskip("vidsparse_kernels.gpu.primitives")
    assert tuple(primitives.HEADS) == KERNEL_CHANNELS


def attended(pattern: Any, tensors: list[torch.Tensor], grid: VideoGrid, correction: Any = None) -> torch.Tensor:
    options = SparsityOptions(pattern, correction)
    out: torch.Tensor = Call(options, Context(layers=1), grid, {}).attend(*tensors)
    return out


def test_tiles_are_chosen_without_the_bias() -> None:
    torch.manual_seed(1)
    grid, pattern = VideoGrid(5, 6, 7, suffix=3), TopBlocks(density=0.3, tile=(1, 4, 4))
    tensors = [torch.randn(1, grid.tokens, 2, 12) for _ in range(3)]
    block_map = pattern.select(*tensors[:2], grid, Context(heads=2, memory={}))
    assert isinstance(block_map, BlockMap)
    added = bias_of_tokens(BIAS, grid, grid)
    expected, _ = explicit(block_map.token_mask(), added)(*(x.double() for x in tensors))
    found = attended(TemporalBias(pattern, 1.7, 1.3), tensors, grid)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("correction", [PooledComplement(), Rectified(), Reshaped()], ids=lambda x: type(x).__name__)
def test_corrections_that_have_nothing_to_add_leave_the_bias(correction: Correction) -> None:
    torch.manual_seed(2)
    grid = VideoGrid(3, 6, 7, suffix=3)
    tensors = [torch.randn(1, grid.tokens, 2, 12) for _ in range(3)]
    full = Radial(density=1.0, tile=(1, 4, 4))
    expected = attended(TemporalBias(full), tensors, grid)
    torch.testing.assert_close(attended(TemporalBias(full), tensors, grid, correction), expected, atol=1e-5, rtol=1e-5)


def test_a_gate_of_the_model_has_the_extra_channels_too() -> None:
    grid = VideoGrid(3, 6, 7)
    tensors = [torch.randn(1, grid.tokens, 2, 12) for _ in range(4)]
    query, key, value, gate = tensors
    options = SparsityOptions(TemporalBias(Radial(density=0.3, tile=(1, 4, 4))), GatedCoarse())
    out = Call(options, Context(), grid, {}).attend(query, key, value, gate=gate)
    assert out.shape == query.shape and out.isfinite().all()


def test_corrections_forget_where_the_bias_ends() -> None:
    """Reshaped keeps outputs from step to step; those of biased calls have more channels."""
    torch.manual_seed(3)
    grid, memories = VideoGrid(3, 6, 7), dict[int, Memory]()
    tensors = [torch.randn(1, grid.tokens, 2, 12) for _ in range(3)]
    options = SparsityOptions(TemporalBias(Radial(density=0.3, tile=(1, 4, 4))), Reshaped())
    for step, sigma in enumerate((1.0, 0.8, 0.4, 0.2)):
        out = Call(options, Context(step=step, steps=4, sigma=sigma), grid, memories).attend(*tensors)
        assert out.shape == tensors[0].shape
    alone, memories = SparsityOptions(Radial(density=0.3, tile=(1, 4, 4)), Reshaped()), {}
    for step, sigma in ((2, 0.4), (3, 0.2)):
        expected = Call(alone, Context(step=step, steps=4, sigma=sigma), grid, memories).attend(*tensors)
    assert torch.equal(out, expected)


class Explicit:
    """The oracle: a tiny Wan whose own self-attention has the bias as its mask."""

    def __init__(self, transformer: Any, added: torch.Tensor, layers: tuple[int, ...]):
        self.originals = [block.attn1.processor for block in transformer.blocks]
        for index in layers:
            original = self.originals[index]
            transformer.blocks[index].attn1.processor = lambda attn, hidden, text, no_mask, rotary, original=original: (
                original(attn, hidden, text, added.to(hidden.dtype), rotary)
            )


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_a_dense_model_has_the_bias_in_its_layers(size: str) -> None:
    sizes, transformer, oracle = SIZES[size], tiny(), tiny()
    bias = TemporalBias(Dense(), 2.0, 1.5, layers=(-1,))
    grid = tokens_of(sizes)
    Explicit(oracle, bias_of_tokens(bias, grid, grid), (1,))
    with sparsify(transformer, bias) as run:
        found = call(transformer, sizes, timestep=900.0)
        report = run.report()
    torch.testing.assert_close(found, call(oracle, sizes, timestep=900.0), atol=2e-5, rtol=1e-5)
    assert (report.biased_calls, report.sparse_calls, report.dense_calls) == (1, 1, 1)
    assert "temporal bias: 1 calls" in str(report) and report.to_dict()["biased_calls"] == 1


@torch.no_grad()
def test_no_strength_and_no_noise_change_no_bit() -> None:
    sparse, transformer = Radial(density=0.3, tile=(1, 4, 4)), tiny()
    with sparsify(transformer, sparse):
        expected = call(transformer, timestep=200.0)
    for bias in (TemporalBias(sparse, 0), TemporalBias(sparse, 2.0), TemporalBias(sparse, 2.0, layers=())):
        with sparsify(transformer, bias) as run:
            assert torch.equal(call(transformer, timestep=200.0), expected)
            assert run.report().biased_calls == 0 and "temporal bias" not in str(run.report())
    with sparsify(transformer, TemporalBias(Dense(), 0)) as run:
        found = call(transformer)
        assert run.report().sparse_calls == 0
    assert torch.equal(found, call(transformer))


@torch.no_grad()
def test_a_pipeline_runs_with_the_bias_where_it_is_noisy() -> None:
    pipe = wan_pipeline()
    pattern = StepSchedule(Radial(density=0.5, tile=(1, 2, 2)), dense_steps=1)
    with sparsify(pipe, pattern):
        alone = generate(pipe)
    with sparsify(pipe, TemporalBias(pattern, 3.0, 0.7)) as run:
        biased = generate(pipe)
        report = run.report()
    noisy = {step for step, sigma in enumerate(pipe.scheduler.timesteps / 1000) if sigma >= 0.5}
    assert 0 < len(noisy) < 4 and {c.step for c in report.calls if c.biased} == noisy
    assert report.sparse_calls == sum(c.calls for c in report.calls), "the dense step has a map of all tiles"
    assert biased.isfinite().all() and not torch.allclose(biased, alone, atol=1e-3)
    with sparsify(pipe, TemporalBias(pattern, 0.0)):
        assert torch.equal(generate(pipe), alone)


def test_gradients_reach_the_model() -> None:
    transformer, oracle = tiny(), tiny()
    bias, grid = TemporalBias(Dense(), 2.0, 1.5), tokens_of(SIZES["5x7x11"])
    Explicit(oracle, bias_of_tokens(bias, grid, grid), (0, 1))
    with sparsify(transformer, bias):
        call(transformer, timestep=900.0).square().sum().backward()
    call(oracle, timestep=900.0).square().sum().backward()
    for (name, found), expected in zip(transformer.named_parameters(), oracle.parameters(), strict=True):
        if found.grad is not None and expected.grad is not None:
            scale = expected.grad.abs().max().item()
            torch.testing.assert_close(
                found.grad, expected.grad, atol=1e-4 * scale + 1e-6, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_it_must_be_outermost() -> None:
    pipe = Pipeline(transformer=tiny())
    with pytest.raises(ValueError, match="StepSchedule holds a TemporalBias, which must be outermost: put the StepSch"):
        sparsify(pipe, StepSchedule(TemporalBias(Radial(density=0.3))))
    with pytest.raises(ValueError, match=r"layers \[7\] do not exist"):
        sparsify(pipe, TemporalBias(Radial(density=0.3), layers=(7,)))


@torch.no_grad()
def test_compiled_calls_have_the_bias() -> None:
    transformer = tiny()
    with sparsify(transformer, TemporalBias(Radial(density=0.3, tile=(1, 4, 4)), 2.0)) as run:
        expected = call(transformer, timestep=900.0)
        torch.testing.assert_close(call(torch.compile(transformer, backend="eager"), timestep=900.0), expected)
        assert run.report().biased_calls == 4
