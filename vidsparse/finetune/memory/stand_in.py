"""What stands for layers in fewer bits in a run on tensors without content: the same tensors, made and freed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from vidsparse.finetune.memory.base import STORED, cast_layers
from vidsparse.finetune.memory.wrapped import frozen

# Of nf4: numbers that share a scale, and scales that share one in turn.
SHARED, SHARED_SCALES = 64, 256


def resting_layers(kind: str, transformer: Any) -> list[str]:
    """Names of the layers whose weights rest in fewer bits.

    Args:
        kind: one of `vidsparse.finetune.memory.base.BASES`.
        transformer: without weights and without a LoRA; it is used up.
    """
    if kind == "none":
        return []
    if kind == "float8":
        before = {name: weight.dtype for name, weight in transformer.named_parameters()}
        cast_layers(transformer, transformer.dtype)
        cast = [name for name, weight in transformer.named_parameters() if weight.dtype != before[name]]
        return list(dict.fromkeys(name.rpartition(".")[0] for name in cast))
    # Linear layers but those that the model keeps in float32, as diffusers' quantisers find them.
    kept = transformer._keep_in_fp32_modules or []
    return [
        name
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and not any(f"{part}." in f"{name}." for part in kept)
    ]


def let_rest(kind: str, transformer: torch.nn.Module, layers: Iterable[torch.nn.Module], dtype: torch.dtype) -> None:
    """Let layers without content rest in fewer bits, inside of the mode that makes such tensors.

    Args:
        kind: one of `vidsparse.finetune.memory.base.BASES`.
        transformer: with its LoRA. layers: of it, that rest.
        dtype: that they compute in.
    """
    for layer in layers:
        if kind == "int8":
            from torchao.quantization import Int8WeightOnlyConfig, quantize_

            quantize_(layer, Int8WeightOnlyConfig())
        elif kind == "float8":
            _rest_in_float8(layer, dtype)
        else:
            _rest_in_nf4(layer, dtype)
    if kind == "float8":
        tuned: list[Any] = [part for part in transformer.modules() if isinstance(part, BaseTunerLayer)]
        for part in tuned:  # as diffusers' layerwise casting does it
            part.cast_input_dtype_enabled = False


def _rest_in_float8(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """The hooks of diffusers set the content of a weight, which a tensor without content does not allow."""
    for name, weight in module._parameters.items():
        if weight is not None:
            module._parameters[name] = frozen(torch.empty_like(weight, dtype=STORED))
    resting: dict[str, Any] = {}

    def awake(*_: Any) -> None:
        resting.update(module._parameters)
        for name, weight in resting.items():
            module._parameters[name] = None if weight is None else frozen(torch.empty_like(weight, dtype=dtype))

    def asleep(*_: Any) -> None:
        module._parameters.update(resting)
        resting.clear()

    module.register_forward_pre_hook(awake)
    module.register_forward_hook(asleep, always_call=True)


class _Dequantised(torch.autograd.Function):
    """A linear layer whose weight is dequantised in the forward pass, and again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: Callable[[], torch.Tensor], bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.weight = weight
        return torch.nn.functional.linear(hidden, weight(), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] @ ctx.weight(), None, None


def _rest_in_nf4(module: Any, dtype: torch.dtype) -> None:
    """As bitsandbytes' 4-bit layers compute, which cannot run on tensors without content."""
    shape, count = tuple(module.weight.shape), module.weight.numel()
    scales = -(-count // SHARED)
    # Two numbers and one scale are a byte each; scales of scales are float32.
    stored = -(-count // 2) + scales + 4 * -(-scales // SHARED_SCALES)
    module.weight = frozen(torch.empty(stored, dtype=torch.uint8))

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        bias = None if module.bias is None else module.bias.to(dtype)
        run: Any = _Dequantised.apply
        out: torch.Tensor = run(hidden.to(dtype), lambda: torch.empty(shape, dtype=dtype), bias)
        return out.to(hidden.dtype)

    module.forward = forward
