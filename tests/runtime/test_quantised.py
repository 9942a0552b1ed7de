"""Sparse attention in models with quantised weights, and in models whose projections are fused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_ltx import LTXVideoAttnProcessor
from quantised import QUANTISERS, as_loaded, needs
from twins import class_or_skip, ignores_warnings, twin

from vidsparse import Radial, SlidingTile, StepSchedule, sparsify
from vidsparse.doctor import Twin, masked
from vidsparse.doctor.agree import Results, agree, same
from vidsparse_pipelines import ADAPTERS

pytestmark = ignores_warnings
WAN, LTX = "WanTransformer3DModel", "LTXVideoTransformer3DModel"
COG, HUNYUAN = "CogVideoXTransformer3DModel", "HunyuanVideoTransformer3DModel"
CASES = [(name, quantiser) for name in (WAN, LTX, COG) for quantiser in QUANTISERS]
CASES += [(HUNYUAN, quantiser) for quantiser in ("torchao int8 weights", "gguf Q8_0", "bitsandbytes nf4")]
CASES += [(name, "torchao int8 weights") for name in ADAPTERS if name not in (WAN, LTX, COG, HUNYUAN)]
LOW = torch.bfloat16
SPARSE = Radial(density=0.3, tile=(1, 2, 4))
ALL = SlidingTile(window=(99, 99, 99))


def dequantised(it: Twin, model: Any) -> Any:
    """The twin in float64, with the numbers that the quantised weights stand for: what a layer makes of ones."""
    exact = it.build(torch.float64)
    with torch.no_grad():
        for name, linear in exact.named_modules():
            if isinstance(linear, torch.nn.Linear):
                quantised, dtype = model.get_submodule(name), next(model.get_submodule(name).parameters()).dtype
                ones = torch.eye(linear.in_features, dtype=dtype if dtype == torch.float32 else LOW)
                linear.weight.copy_((quantised(ones) - quantised(torch.zeros_like(ones))).T)
    return exact


@pytest.mark.parametrize(("name", "quantiser"), CASES)
def test_a_quantised_model_is_sparse_as_any_other(name: str, quantiser: str) -> None:
    class_or_skip(name)
    it = twin(name)
    model = as_loaded(it, quantiser)
    exact, own = dequantised(it, model), it.outputs(model, dtype=LOW)
    for pattern in (ALL, SPARSE):
        with masked(model, pattern, it.grid(), it.key_grid()):
            plain = it.outputs(model, dtype=LOW)
        with masked(exact, pattern, it.grid(), it.key_grid()):
            right = it.outputs(exact, dtype=torch.float64)
        with sparsify(model, pattern, strict=True) as run:
            agree(it.outputs(model, dtype=LOW), plain, right, LOW)
            assert run.report().sparse_calls == len(it.adapter.self_attentions(model))
        same(it.outputs(model, dtype=LOW), own)  # restored
    with pytest.raises(Exception, match="not what the model computes itself"):
        agree(plain, own, it.outputs(exact, dtype=torch.float64), LOW)  # the mask is no rounding


# Fused projections


@pytest.mark.parametrize("name", [WAN, COG])
@pytest.mark.parametrize("quantiser", QUANTISERS)
def test_fusing_what_is_quantised_fails_in_diffusers_or_stays_right(name: str, quantiser: str) -> None:
    it = twin(name)
    model = as_loaded(it, quantiser)
    own = it.outputs(model, dtype=LOW)
    if QUANTISERS[quantiser][0] == "optimum.quanto":  # its tensors are put together as plain ones
        with torch.no_grad():
            model.fuse_qkv_projections()
        exact = dequantised(it, as_loaded(it, quantiser))
        right = it.outputs(exact, dtype=torch.float64)
        with sparsify(model, ALL, strict=True):
            agree(it.outputs(model, dtype=LOW), own, right, LOW)
        return
    with pytest.raises((NotImplementedError, RuntimeError)), torch.no_grad():
        model.fuse_qkv_projections()
    with sparsify(model, ALL, strict=True) as run:
        found = it.outputs(model, dtype=LOW)
        assert run.report().sparse_calls == 2
    agree(found, own, it.outputs(dequantised(it, model), dtype=torch.float64), LOW)


def test_projections_that_are_fused_before_they_are_quantised() -> None:
    needs("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    it = twin(WAN)
    model = it.build(LOW)
    with torch.no_grad():
        model.fuse_qkv_projections()
    quantize_(model, Int8WeightOnlyConfig(), lambda module, name: ".attn1." in name and type(module) is torch.nn.Linear)
    for block in model.blocks:
        assert type(block.attn1.to_qkv.weight).__name__ == "Int8Tensor"
        del block.attn1.to_q, block.attn1.to_k, block.attn1.to_v
    own, before = it.outputs(model, dtype=LOW), [block.attn1.processor for block in model.blocks]
    full = it.outputs(it.build(LOW), dtype=LOW)
    with sparsify(model, ALL, strict=True) as run:
        found = it.outputs(model, dtype=LOW)
        assert run.report().sparse_calls == 2
    assert distance(found, own) < distance(own, full), "nearer to its own attention than quantising brought it"
    assert [block.attn1.processor for block in model.blocks] == before


def distance(found: Results, expected: Results) -> float:
    return float((found["output 0"].double() - expected["output 0"].double()).norm())


class Packed(torch.nn.Module):
    """Query, key and value in one module, as SVDQuant packs them: integers, and no weight that one could read."""

    def __init__(self, parts: list[torch.nn.Linear]):
        super().__init__()
        weight = torch.cat([part.weight for part in parts]).detach()
        scale = weight.abs().amax(dim=1) / 127
        self.qweight = torch.nn.Parameter((weight / scale[:, None]).round().to(torch.int8), requires_grad=False)
        self.register_buffer("wscales", scale)
        self.register_buffer("shift", torch.cat([part.bias for part in parts]).detach())

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(hidden, self.qweight * self.wscales[:, None], self.shift)


class PackedProcessor(LTXVideoAttnProcessor):
    """What a package of quantisation would set: it finds the parts in the output of the one module."""

    def __call__(self, attn: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        parts = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        attn.to_q, attn.to_k, attn.to_v = (lambda _, part=part: part for part in parts)
        try:
            return super().__call__(attn, hidden_states, *args, **kwargs)
        finally:
            del attn.to_q, attn.to_k, attn.to_v


def test_a_layer_whose_projections_are_fused_by_others_runs_dense_and_says_why() -> None:
    it = twin(LTX)
    model = it.build()
    attn = model.transformer_blocks[1].attn1
    attn.to_qkv = Packed([attn.to_q, attn.to_k, attn.to_v])
    attn.processor = PackedProcessor()
    del attn.to_q, attn.to_k, attn.to_v
    own = it.outputs(model)
    reason = "its projections are fused in to_qkv, and its processor is PackedProcessor, "
    reason += "not LTXVideoAttnProcessor of diffusers"
    with sparsify(model, ALL) as run:
        found, report = it.outputs(model), run.report()
    assert report.dense_reasons == {reason: 1} and report.sparse_calls == 1
    torch.testing.assert_close(found["output 0"], own["output 0"], rtol=1e-4, atol=1e-5)
    with sparsify(model, StepSchedule(SPARSE, dense_steps=1)):
        same(it.outputs(model), own)
    same(it.outputs(model), own)
    assert type(attn.processor) is PackedProcessor
    with pytest.raises(
        NotImplementedError, match=r"blocks\.1\.attn1 cannot be sparse: its processor is PackedProcessor"
    ):
        sparsify(model, SPARSE, strict=True)


def test_layers_of_svdquant_that_stand_for_single_projections_run_sparse() -> None:
    it = twin(LTX)
    model = it.build()
    for block in model.transformer_blocks:
        for part in ("to_q", "to_k", "to_v"):
            setattr(block.attn1, part, Packed([getattr(block.attn1, part)]))
    own = it.outputs(model)
    with sparsify(model, ALL, strict=True) as run:
        torch.testing.assert_close(it.outputs(model)["output 0"], own["output 0"], rtol=1e-4, atol=1e-5)
        assert run.report().sparse_calls == 2
