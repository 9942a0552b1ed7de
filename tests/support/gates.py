"""Gates for the tests: files with random or untrained weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from vidsparse.patterns.gate_file import GateHeader, gate_name, save_gate
from vidsparse.patterns.gate_weights import GateWeights
from vidsparse.runtime.model_settings import settings_of

HEADER = GateHeader("transformer", "WanTransformer3DModel", {}, layers=2, heads=3, head_dim=8)


def random_weights(heads: int, head_dim: int, seed: int = 0) -> GateWeights:
    generator = torch.Generator().manual_seed(seed)
    same = GateWeights.untrained(heads, head_dim)
    return GateWeights(*(x + 0.5 * torch.randn(x.shape, generator=generator) for x in same))


def gate_folder(folder: Path, transformer: str = "transformer", header: GateHeader = HEADER) -> str:
    """A folder with a gate of random weights, as a training leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    header = replace(header, transformer=transformer)
    layers = [random_weights(header.heads, header.head_dim, seed) for seed in range(header.layers)]
    save_gate(folder / gate_name(transformer), header, layers)
    return str(folder)


def header_of(model: torch.nn.Module, layers: int, heads: int, head_dim: int) -> GateHeader:
    return GateHeader("transformer", type(model).__name__, settings_of(model), layers, heads, head_dim, base="tiny")
