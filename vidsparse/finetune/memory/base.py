"""How the frozen weights rest under a LoRA: as they were stored, or in fewer bits.

`int8` and `nf4` are quantised by torchao and bitsandbytes while diffusers loads them. `float8` is diffusers' layerwise
casting: each layer is cast to the dtype it computes in while it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Any

import torch
from torch.utils.checkpoint import set_checkpoint_early_stop

# Name -> the package that it needs; None: it needs none.
BASES: dict[str, str | None] = {"none": None, "int8": "torchao", "nf4": "bitsandbytes", "float8": None}
# The classes of weights that are quantised while they are loaded.
WEIGHTS = {"int8": "Int8Tensor", "nf4": "Params4bit"}
STORED = torch.float8_e4m3fn


def check_base(kind: str) -> None:
    """Refuse a base that does not exist.

    Raises:
        ValueError: an unknown name.
    """
    if kind not in BASES:
        raise ValueError(f"base={kind!r} is unknown; choose one of {', '.join(BASES)}")


def check_base_on(kind: str, device: torch.device) -> None:
    """Refuse a base that a device does not compute with, or whose package is missing.

    Raises:
        ValueError: "nf4" without CUDA.
        ImportError: the package cannot be imported.
    """
    if kind == "nf4" and device.type != "cuda":
        raise ValueError(
            f"base='nf4' needs a GPU with CUDA, and this training is on {device.type}; take int8 or float8"
        )
    package = BASES[kind]
    if package is not None and not find_spec(package):
        raise ImportError(f"base={kind!r} needs {package}: pip install {package}")


def quantization_of(kind: str, transformers: Sequence[str], dtype: torch.dtype) -> Any:
    """What `from_pretrained` of a pipeline takes as `quantization_config`; None where nothing is quantised by loading.

    Args:
        kind: one of `BASES`.
        transformers: names of the transformers in the pipeline.
        dtype: that quantised layers compute in.
    """
    if kind not in WEIGHTS:
        return None
    from diffusers.quantizers.pipe_quant_config import PipelineQuantizationConfig

    if kind == "int8":
        from diffusers import TorchAoConfig
        from torchao.quantization import Int8WeightOnlyConfig

        config: Any = TorchAoConfig(Int8WeightOnlyConfig())
    else:
        from diffusers import BitsAndBytesConfig

        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True,
        )
    return PipelineQuantizationConfig(quant_mapping=dict.fromkeys(transformers, config))


def check_loaded(kind: str, transformer: torch.nn.Module) -> None:
    """Refuse a transformer whose weights are not stored as a base says and cannot be converted.

    Raises:
        ValueError: it was loaded in another way.
    """
    found = {type(weight).__name__ for weight in transformer.parameters()}
    if kind in WEIGHTS and WEIGHTS[kind] not in found:
        raise ValueError(
            f"base={kind!r} is quantised while a pipeline is loaded, and this one has plain weights; load it with "
            f"quantization_config=vidsparse.finetune.quantization_of({kind!r}, ['transformer'], torch.bfloat16)"
        )
    if kind == "float8" and (quantised := found - {"Parameter"}):
        raise ValueError(
            f"base='float8' casts plain weights, and these are quantised already ({', '.join(sorted(quantised))}); "
            "use base='none', which takes them as they are"
        )


def whole_blocks(kind: str) -> AbstractContextManager[None]:
    """The context of a forward pass whose blocks gradient checkpointing recomputes to their end.

    It may stop early, and with "float8" the layer where it stops would not be cast back.
    """
    early: AbstractContextManager[None] = set_checkpoint_early_stop(kind != "float8")
    return early


def cast_layers(transformer: Any, dtype: torch.dtype) -> None:
    """Let layers rest in float8 from now on, and compute in a dtype. Layers of a LoRA, and norms, stay as they are.

    The LoRA must be there already: a later one would take float8 from the layers that it is put on. This cannot be
    undone.
    """
    transformer.enable_layerwise_casting(storage_dtype=STORED, compute_dtype=dtype)
