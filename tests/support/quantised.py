"""Twins with quantised weights, as diffusers loads them, by every package of quantisation that runs on a CPU."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vidsparse.doctor import Twin

# Of diffusers' modules that may be quantised, those that its loaders leave alone in these families.
KEPT = ("time_embedder",)
BLOCK = 64  # numbers that share a scale: 32 in Q8_0, 64 in nf4


def needs(package: str) -> None:
    """Skip a test where a package is missing."""
    if importlib.util.find_spec(package.partition(".")[0]) is None:
        pytest.skip(f"{package} is not installed; the extras dev and quantised name what these tests need")


def _from_pretrained(twin: Twin, config: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        twin.build(torch.bfloat16).save_pretrained(folder)
        return twin.cls.from_pretrained(folder, quantization_config=config, torch_dtype=torch.bfloat16)


def torchao_weights(twin: Twin) -> Any:
    from diffusers import TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig

    return _from_pretrained(twin, TorchAoConfig(Int8WeightOnlyConfig()))


def torchao_dynamic(twin: Twin) -> Any:
    from diffusers import TorchAoConfig
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return _from_pretrained(twin, TorchAoConfig(Int8DynamicActivationInt8WeightConfig()))


def quanto(twin: Twin) -> Any:
    from diffusers import QuantoConfig

    return _from_pretrained(twin, QuantoConfig(weights_dtype="int8"))


def gguf_file(twin: Twin) -> Any:
    """From a file of Q8_0 blocks, under diffusers' names; of a class that has no such files, with the same layers."""
    import gguf
    from diffusers import GGUFQuantizationConfig
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    if twin.cls.__name__ not in SINGLE_FILE_LOADABLE_CLASSES:
        return _replaced(twin, _gguf_linear)
    model, kind = twin.build(torch.bfloat16), gguf.GGMLQuantizationType.Q8_0
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.gguf"
        writer = gguf.GGUFWriter(file, "twin")
        for name, tensor in model.state_dict().items():
            values, (module, _, part) = tensor.float().numpy(), name.rpartition(".")
            whole = module in linear and part == "weight" and values.shape[1] % BLOCK == 0
            if whole and not any(kept in name for kept in KEPT):
                writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
            else:
                writer.add_tensor(name, values)
        for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            write()
        writer.close()
        (Path(folder) / "config.json").write_text(json.dumps(dict(model.config), default=str))
        config = GGUFQuantizationConfig(compute_dtype=torch.bfloat16)
        settings = dict(config=folder, quantization_config=config, torch_dtype=torch.bfloat16)
        return twin.cls.from_single_file(str(file), **settings)


def _gguf_linear(linear: torch.nn.Linear) -> torch.nn.Module:
    import gguf
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    kind = gguf.GGMLQuantizationType.Q8_0
    has_bias = linear.bias is not None
    new = GGUFLinear(linear.in_features, linear.out_features, has_bias, compute_dtype=torch.bfloat16)
    blocks = gguf.quants.quantize(linear.weight.detach().float().numpy(), kind)
    new.weight, new.bias = GGUFParameter(torch.from_numpy(blocks), quant_type=kind), linear.bias
    return new


def bitsandbytes_8_bits(twin: Twin) -> Any:
    return _replaced(twin, lambda linear: _bitsandbytes("Linear8bitLt", linear, has_fp16_weights=False))


def bitsandbytes_4_bits(twin: Twin) -> Any:
    return _replaced(
        twin, lambda linear: _bitsandbytes("Linear4bit", linear, compute_dtype=torch.bfloat16, quant_type="nf4")
    )


def _bitsandbytes(kind: str, linear: torch.nn.Linear, **settings: Any) -> torch.nn.Module:
    import bitsandbytes

    has_bias = linear.bias is not None
    new = getattr(bitsandbytes.nn, kind)(linear.in_features, linear.out_features, bias=has_bias, **settings)
    new.load_state_dict(linear.state_dict())
    moved: torch.nn.Module = new.to("cpu")  # quantises
    return moved


def _replaced(twin: Twin, replace: Callable[[torch.nn.Linear], torch.nn.Module]) -> Any:
    """A twin whose layers were replaced by hand: diffusers' loader of bitsandbytes asks for a GPU."""
    model = twin.build(torch.bfloat16)
    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear and module.in_features % BLOCK == 0 and not any(x in name for x in KEPT):
            parent, _, part = name.rpartition(".")
            setattr(model.get_submodule(parent), part, replace(module))
    return model


# Name -> its package, and how a twin gets its weights.
QUANTISERS: dict[str, tuple[str, Callable[[Twin], Any]]] = {
    "torchao int8 weights": ("torchao", torchao_weights),
    "torchao int8 weights and activations": ("torchao", torchao_dynamic),
    "quanto int8": ("optimum.quanto", quanto),
    "gguf Q8_0": ("gguf", gguf_file),
    "bitsandbytes int8": ("bitsandbytes", bitsandbytes_8_bits),
    "bitsandbytes nf4": ("bitsandbytes", bitsandbytes_4_bits),
}


def as_loaded(twin: Twin, name: str) -> Any:
    """A twin in bfloat16 with weights quantised by one of the `QUANTISERS`; skips the test without its package."""
    package, quantise = QUANTISERS[name]
    needs(package)
    return quantise(twin).eval().requires_grad_(False)
