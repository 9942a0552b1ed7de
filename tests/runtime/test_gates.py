"""Gates in models that are offloaded or quantised; test_video_sparse.py has what they compute, and their sources."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers.hooks.group_offloading import GroupOffloadingType
from quantised import QUANTISERS, as_loaded
from streams import offload_with_streams
from twins import ignores_warnings, twin

from vidsparse import Dense, GatedCoarse, Radial, load_gates, sparsify
from vidsparse.doctor.agree import Results, same

pytestmark = ignores_warnings
CPU = torch.device("cpu")
WAN = "WanTransformer3DModel"
SPARSE = Radial(density=0.3, tile=(1, 2, 4))


def random_gates(bias: bool = True) -> dict[str, torch.Tensor]:
    """Gates for the twin, as FastVideo saves them."""
    width = 2 * 128
    gates = {f"blocks.{i}.to_gate_compress.weight": torch.randn(width, width) / width**0.5 for i in range(2)}
    return gates | ({f"blocks.{i}.to_gate_compress.bias": torch.randn(width) for i in range(2)} if bias else {})


def gated_outputs(model: Any, dtype: torch.dtype = torch.float32) -> Results:
    with sparsify(model, SPARSE, correction=GatedCoarse(), strict=True):
        return twin(WAN).outputs(model, dtype=dtype)


def sequential(model: Any) -> None:
    accelerate.cpu_offload(model, execution_device=CPU)


def sequential_beside_another_hook(model: Any) -> None:
    for block in model.blocks:
        add_hook_to_module(block.attn1.to_q, ModelHook())
    sequential(model)


def whole(model: Any) -> None:
    accelerate.cpu_offload_with_hook(model, execution_device=CPU)


@pytest.mark.parametrize("offload", [sequential, sequential_beside_another_hook, whole])
@pytest.mark.parametrize("gates_first", [True, False], ids=["gates first", "gates last"])
def test_gates_and_offloading_in_both_orders(offload: Callable[[Any], None], gates_first: bool) -> None:
    gates, model = random_gates(), twin(WAN).build()
    load_gates(model, gates)
    expected = gated_outputs(model)
    model = twin(WAN).build()
    if gates_first:
        load_gates(model, gates)
        offload(model)
    else:
        offload(model)
        load_gates(model, gates)
    gate, query = model.blocks[1].attn1.to_gate_compress, model.blocks[1].attn1.to_q
    assert gate.weight.is_meta == query.weight.is_meta == (offload is not whole)
    for _ in range(2):
        same(gated_outputs(model), expected)
    remove_hook_from_module(model, recurse=True)
    assert torch.equal(gate.weight, gates["blocks.1.to_gate_compress.weight"])


def test_gates_come_before_group_offloading() -> None:
    model = twin(WAN).build()
    model.enable_group_offload(CPU, CPU, "block_level", num_blocks_per_group=1)
    with pytest.raises(ValueError, match="group offloading, which takes no more modules: load the gates before it"):
        load_gates(model, random_gates())


def test_under_layerwise_casting_gates_have_the_dtype_that_computes() -> None:
    gates, found = random_gates(), []
    for gates_first in (True, False):
        model = twin(WAN).build(torch.bfloat16)
        if gates_first:
            load_gates(model, gates)
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
        if not gates_first:
            load_gates(model, gates)
        gate = model.blocks[0].attn1.to_gate_compress
        assert gate.weight.dtype == (torch.float8_e4m3fn if gates_first else torch.bfloat16)
        found.append(gated_outputs(model, torch.bfloat16)["output 0"].float())
    # A gate that is stored in float8 has another value: by up to half of its last of four binary digits.
    assert 0 < (found[0] - found[1]).norm() / found[1].norm() < 2**-4


@pytest.mark.parametrize("name", QUANTISERS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_gates_of_a_quantised_model(name: str, bias: bool) -> None:
    quantised = as_loaded(twin(WAN), name)
    if not bias:
        for block in quantised.blocks:
            block.attn1.to_q.bias = None
    load_gates(quantised, random_gates(bias))
    gate = quantised.blocks[0].attn1.to_gate_compress
    assert type(gate) is torch.nn.Linear and gate.weight.dtype == torch.bfloat16 and not gate.weight.requires_grad
    assert gated_outputs(quantised, torch.bfloat16)["output 0"].isfinite().all()


@pytest.mark.parametrize("kind", GroupOffloadingType)
def test_gates_run_in_each_call_where_offloading_follows_an_order(
    kind: GroupOffloadingType, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = twin(WAN)
    model = it.build()
    load_gates(model, random_gates())
    own, expected, ran = it.outputs(model), gated_outputs(model), list[int]()
    for number, block in enumerate(model.blocks):
        block.attn1.to_gate_compress.register_forward_hook(lambda *_, number=number: ran.append(number))
    with sparsify(model, Dense()):
        same(it.outputs(model), own)
    assert not ran, "nothing needs them"
    offload_with_streams(model, monkeypatch, kind)
    with sparsify(model, Dense()):
        for _ in range(2):  # the first call notes the order
            same(it.outputs(model), own)
    assert ran == ([0, 1, 0, 1] if kind == GroupOffloadingType.LEAF_LEVEL else [])
    for _ in range(2):
        same(gated_outputs(model), expected)
