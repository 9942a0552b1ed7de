"""Tensors made of tensors: their bytes, and copies."""

from __future__ import annotations

import torch
from quantised import needs

from vidsparse.finetune.memory.live import LiveBytes
from vidsparse.finetune.memory.wrapped import bytes_of, inner_tensors, rebuilt


def test_a_plain_tensor_is_made_of_itself() -> None:
    tensor = torch.randn(3, 5, dtype=torch.bfloat16)
    assert next(inner_tensors(tensor)) is tensor and bytes_of(tensor) == 30
    copy = rebuilt(tensor, torch.clone)
    assert torch.equal(copy, tensor) and copy.data_ptr() != tensor.data_ptr()


def test_a_quantised_weight_is_its_numbers_and_their_scales() -> None:
    needs("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layer = torch.nn.Linear(64, 32, bias=False)
    quantize_(layer, Int8WeightOnlyConfig())
    weight = layer.weight.detach()
    scales = bytes_of(weight) - 64 * 32
    assert 4 * 32 <= scales <= 8 * 32, "a scale for each row, and where torchao has it a zero"
    copy = rebuilt(weight, torch.clone)
    assert type(copy) is type(weight) and torch.equal(copy.dequantize(), weight.dequantize())
    live = LiveBytes()
    with live:
        again = rebuilt(weight, torch.clone)
    assert live.now == bytes_of(again) == bytes_of(weight), "counted as what they are made of"
    places = [{inner.data_ptr() for inner in inner_tensors(tensor)} for tensor in (weight, copy)]
    assert not places[0] & places[1]
