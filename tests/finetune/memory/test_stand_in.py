"""What stands for layers in fewer bits, beside the layers that really rest so."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch
from quantised import needs
from tiny_training import pipeline

from vidsparse.finetune import quantization_of
from vidsparse.finetune.memory.base import cast_layers
from vidsparse.finetune.memory.stand_in import _Dequantised, let_rest, resting_layers
from vidsparse.finetune.memory.wrapped import bytes_of


def test_the_layers_are_those_that_rest_in_a_real_model(tmp_path: Path) -> None:
    plain = pipeline().transformer
    assert resting_layers("none", pipeline().transformer) == []
    low = pipeline().transformer
    cast_layers(low, torch.float32)
    changed = [name for name, module in low.named_modules() if "float8" in str(getattr(module, "weight", 0.0)).lower()]
    assert resting_layers("float8", pipeline().transformer) == changed
    needs("torchao")
    pipeline().save_pretrained(tmp_path)
    quantization = quantization_of("int8", ["transformer"], torch.float32)
    low = diffusers.WanPipeline.from_pretrained(
        tmp_path, quantization_config=quantization, torch_dtype=torch.float32
    ).transformer
    found = resting_layers("int8", pipeline().transformer)
    assert found == [
        name for name, module in low.named_modules() if type(getattr(module, "weight", 0)).__name__ == "Int8Tensor"
    ]
    let_rest("int8", plain, [plain.get_submodule(name) for name in found], torch.float32)
    assert [bytes_of(weight) for weight in plain.parameters()] == [bytes_of(weight) for weight in low.parameters()]


def test_a_layer_of_bitsandbytes_takes_what_its_stand_in_takes() -> None:
    needs("bitsandbytes")
    import bitsandbytes

    plain = torch.nn.Linear(192, 128)
    real = bitsandbytes.nn.Linear4bit(192, 128, quant_type="nf4", compress_statistics=True)
    real.load_state_dict(plain.state_dict())
    real.to("cpu")
    let_rest("nf4", plain, [plain], torch.float32)
    state = real.weight.quant_state
    stored = real.weight.numel() + state.absmax.numel() + 4 * state.state2.absmax.numel()
    assert bytes_of(plain.weight) == stored


@pytest.mark.parametrize("bias", [True, False])
def test_a_weight_that_is_dequantised_twice_gives_the_gradients_of_a_linear_layer(bias: bool) -> None:
    layer = torch.nn.Linear(5, 7, bias=bias, dtype=torch.float64).requires_grad_(False)
    hidden = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    made: list[torch.Tensor] = []

    def weight() -> torch.Tensor:
        made.append(layer.weight.clone())
        return made[-1]

    out = _Dequantised.apply(hidden, weight, layer.bias)
    torch.testing.assert_close(out, layer(hidden))
    upstream = torch.randn_like(out)
    grads = [torch.autograd.grad(one, hidden, upstream)[0] for one in (out, layer(hidden))]
    torch.testing.assert_close(*grads)
    assert len(made) == 2


@pytest.mark.parametrize("kind", ["float8", "nf4"])
def test_a_stand_in_computes_something_of_the_right_shape(kind: str) -> None:
    layer = torch.nn.Linear(64, 32).requires_grad_(False)
    let_rest(kind, layer, [layer], torch.bfloat16)
    resting = dict(layer._parameters)
    hidden = torch.randn(3, 64, dtype=torch.bfloat16, requires_grad=True)
    out = layer(hidden)
    assert out.shape == (3, 32) and out.dtype == torch.bfloat16
    assert all(layer._parameters[name] is weight for name, weight in resting.items())
    out.sum().backward()
    assert hidden.grad is not None and hidden.grad.shape == hidden.shape
