"""The gates of checkpoints trained with Video Sparse Attention, which diffusers' Wan transformers have no place for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import safe_open

from vidsparse.runtime.offloading import is_group_offloaded
from vidsparse.runtime.registry import adapter_for

GATE = "to_gate_compress"


def load_gates(
    transformer: torch.nn.Module, source: str | Path | Mapping[str, torch.Tensor], subfolder: str = "transformer"
) -> None:
    """Give each self-attention of a Wan transformer the gate of its checkpoint, which `GatedCoarse` needs.

        pipe = WanPipeline.from_pretrained("FastVideo/FastWan2.1-T2V-1.3B-Diffusers", torch_dtype=torch.bfloat16)
        vidsparse.load_gates(pipe.transformer, "FastVideo/FastWan2.1-T2V-1.3B-Diffusers")
        vidsparse.sparsify(pipe.to("cuda"), vidsparse.VideoSparse(density=0.2), correction=vidsparse.GatedCoarse())

    `from_pretrained` drops these weights with a warning. Here they become `blocks.i.attn1.to_gate_compress`, a Linear
    on the device of `to_q`, in the dtype in which the transformer computes. They are saved and moved with the
    transformer; its own processors ignore them. Gates of a quantised transformer are not quantised. Where accelerate
    offloads `to_q`, it offloads the gate as well. Group offloading comes after this call.

    FastVideo (hao-ai-lab/FastVideo at 0422d18) keeps `to_gate_compress` in the block, beside `attn1`, and saves it as
    `blocks.i.to_gate_compress`; both names are read. Its "FullAttn" checkpoints have no gates and need none.

    Args:
        transformer: a `WanTransformer3DModel`, or one that shares its attention.
        source: a pipeline's id on the Hub, a folder (the pipeline's or the transformer's), a file of safetensors, or a
            state dict. Of files only the gates are read; other weights of a state dict are passed over.
        subfolder: where the transformer stands in a pipeline's folder, such as "transformer_2".

    Raises:
        NotImplementedError: a transformer whose attention is not Wan's.
        ValueError: no gates in the source, gates missing or left over, or of the wrong shape; a transformer without
            weights, or with group offloading.
    """
    adapter = adapter_for(transformer)
    if not adapter.gated:
        raise NotImplementedError(f"gates are for transformers with Wan's attention, not {type(transformer).__name__}")
    attentions: dict[str, Any] = adapter.self_attentions(transformer)
    given = source if isinstance(source, Mapping) else _read(_files(source, subfolder))
    gates = {_with_attention(name): tensor for name, tensor in given.items() if GATE in name}
    if not gates:
        where = "the state dict" if isinstance(source, Mapping) else source
        raise ValueError(
            f"{where} has no {GATE} weights: it was trained without Video Sparse Attention, or saved without gates; "
            "sparsify it without GatedCoarse"
        )
    _check(gates, attentions)
    _check_places(transformer, attentions)
    model: Any = transformer
    dtype: torch.dtype = model.dtype  # in which it computes: weights may be stored in another, as when quantised
    for name, attn in attentions.items():
        size, bias = (attn.to_q.in_features, attn.to_q.out_features), f"{name}.{GATE}.bias" in gates
        hook, place = _offload_hook(attn.to_q), next(attn.to_q.parameters()).device
        device = place if hook is None else "cpu"
        gate = torch.nn.utils.skip_init(torch.nn.Linear, *size, bias=bias, device=device, dtype=dtype)
        parts = ("weight", "bias") if bias else ("weight",)
        gate.load_state_dict({part: gates[f"{name}.{GATE}.{part}"] for part in parts})
        attn.to_gate_compress = gate.requires_grad_(all(x.requires_grad for x in attn.to_q.parameters()))
        if hook is not None:
            from accelerate import cpu_offload  # as slow to import as torch

            cpu_offload(gate, execution_device=hook.execution_device)


def has_gates(transformer: torch.nn.Module, source: str | Path, subfolder: str = "transformer") -> bool:
    """Whether a source has gates for `load_gates`; only the names of its weights are read, and nothing is downloaded.

    False as well for a transformer whose attention has no place for gates.
    """
    try:
        if not adapter_for(transformer).gated:
            return False
        files = _files(source, subfolder, local_files_only=True)
    except (NotImplementedError, ValueError, LocalEntryNotFoundError):  # no adapter, or no safetensors
        return False
    return any(GATE in name for file in files for name in _names(file))


def _offload_hook(module: torch.nn.Module) -> Any:
    """Accelerate's hook that brings the weights of a module when it runs; None where they stay."""
    hook = getattr(module, "_hf_hook", None)
    return next((x for x in getattr(hook, "hooks", [hook]) if getattr(x, "offload", False)), None)


def _check_places(transformer: torch.nn.Module, attentions: Mapping[str, Any]) -> None:
    if is_group_offloaded(transformer):
        raise ValueError("the transformer has group offloading, which takes no more modules: load the gates before it")
    for name, attn in attentions.items():
        if _offload_hook(attn.to_q) is None and any(x.is_meta for x in attn.to_q.parameters()):
            raise ValueError(f"{name} is on the meta device, without weights: load the transformer before its gates")


def _with_attention(name: str) -> str:
    """FastVideo's name of a gate as the one that it has in diffusers' layout."""
    return re.sub(rf"(blocks\.\d+)\.{GATE}", rf"\1.attn1.{GATE}", name)


def _check(gates: Mapping[str, torch.Tensor], attentions: Mapping[str, Any]) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for name, attn in attentions.items():
        rows, columns = attn.to_q.out_features, attn.to_q.in_features
        expected[f"{name}.{GATE}.weight"] = (rows, columns)
        if getattr(attn.to_q, "bias", None) is not None or f"{name}.{GATE}.bias" in gates:
            expected[f"{name}.{GATE}.bias"] = (rows,)
    if missing := expected.keys() - gates.keys():
        raise ValueError(f"without {_some(missing)}: every self-attention of the transformer needs its gate")
    if unknown := gates.keys() - expected.keys():
        raise ValueError(f"{_some(unknown)}: the transformer has no such layer, only {', '.join(attentions)}")
    for name, shape in expected.items():
        if gates[name].shape != shape:
            raise ValueError(f"{name} has shape {tuple(gates[name].shape)}, expected {shape}, that of to_q")


def _some(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if others else first


def _files(source: str | Path, subfolder: str, local_files_only: bool = False) -> list[Path]:
    path = Path(source)
    if not path.exists():
        if isinstance(source, Path) or source.count("/") != 1:
            raise ValueError(f"{source} is neither a file or folder, nor an id of the Hub such as FastVideo/NAME")
        only = f"{subfolder}/*.safetensors"
        path = Path(snapshot_download(source, allow_patterns=only, local_files_only=local_files_only))
    if path.is_file():
        return [path]
    folder = path / subfolder if (path / subfolder).is_dir() else path
    if not (files := sorted(folder.glob("*.safetensors"))):
        raise ValueError(f"{folder} holds no *.safetensors; pass the folder of the transformer or of its pipeline")
    return files


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def _read(files: Iterable[Path]) -> dict[str, torch.Tensor]:
    """The gates alone: of other weights only the names are read."""
    gates: dict[str, torch.Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            names = tensors.keys()
            gates |= {name: tensors.get_tensor(name) for name in names if GATE in name}
    return gates
