"""The initial weights of a training from an existing LoRA, for the layers and the rank of the settings."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from vidsparse.finetune.settings import Settings
from vidsparse.lora.source import find_lora


def start_weights(pipe: Any, settings: Settings, start: str) -> dict[str, torch.Tensor]:
    """The weights of a LoRA by their names in the transformer, in the scale of `settings.alpha`.

    Targets that it does not have are missing here, and start as in any training.

    Raises:
        OSError: the LoRA does not exist.
        ValueError: it changes layers that are not targets, or has another rank.
    """
    file = find_lora(start)
    place = {"weight_name": file.name, "use_safetensors": True, "return_lora_metadata": True}
    stored, header = pipe.lora_state_dict(str(file.parent), **place)
    weights = {name.removeprefix("transformer."): weight.float() for name, weight in stored.items()}
    expected = _shapes(getattr(pipe, settings.transformer), settings)
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    other = sorted(name for name in found if expected.get(name) != found[name])
    if other:
        name = other[0]
        targets = settings.targets if isinstance(settings.targets, str) else ", ".join(settings.targets)
        raise ValueError(
            f"start={start!r} does not fit: its {name} is {found[name]}, in a training of "
            f"rank {settings.rank} and targets {targets} it is {expected.get(name, 'missing')}"
        )
    # The LoRA adds alpha / rank times the product of its weights; scaling keeps that the same under another scale.
    before = (header or {}).get("transformer.lora_alpha", settings.rank) / settings.rank
    factor = before / settings.scale
    return {name: weight * factor if "lora_B" in name else weight for name, weight in weights.items()}


def start_hash(start: str) -> str:
    """A hash of a LoRA's file."""
    return hashlib.sha256(find_lora(start).read_bytes()).hexdigest()


def _shapes(transformer: torch.nn.Module, settings: Settings) -> dict[str, tuple[int, ...]]:
    """The shapes of a LoRA's weights, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, layer in transformer.named_modules():
        if isinstance(layer, torch.nn.Linear) and settings.is_target(name):
            shapes[f"{name}.lora_A.weight"] = (settings.rank, layer.in_features)
            shapes[f"{name}.lora_B.weight"] = (layer.out_features, settings.rank)
    return shapes
