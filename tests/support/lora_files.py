"""Random LoRAs for the linear layers of any model, written as each trainer writes them, and the same merged."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file

from vidsparse.lora.attach import peft_settings, peft_weights
from vidsparse.lora.convert import convert_lora
from vidsparse.lora.files import lora_header
from vidsparse.lora.fitted import layers_of, names_in
from vidsparse.lora.renamed import LowRank

RANK = 2
Updates = dict[str, LowRank]
Writer = Callable[[Path, torch.nn.Module, Updates], Path]


class Pipe(SimpleNamespace):
    """What `load_lora` needs of a pipeline: its transformer and its scheduler."""

    __hash__ = object.__hash__

    def __init__(self, transformer: torch.nn.Module, **parts: Any):
        super().__init__(transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), **parts)


def random_updates(model: torch.nn.Module, of: Callable[[str], bool] = lambda layer: True, seed: int = 0) -> Updates:
    """Updates of the linear layers in the blocks of a model, of two scales."""
    generator, updates = torch.Generator().manual_seed(seed), {}
    for i, (layer, module) in enumerate(layers_of(model).items()):
        if isinstance(module, torch.nn.Linear) and "blocks." in f".{layer}".replace("layers.", "blocks.") and of(layer):
            # Small enough for the model to stay the model, large enough to see.
            down = torch.randn(RANK, module.in_features, generator=generator) / module.in_features**0.5
            up = 0.3 * torch.randn(module.out_features, RANK, generator=generator)
            updates[layer] = LowRank(down, up, 2.0 if i % 3 else 0.5)
    return updates


@torch.no_grad()
def merged(model: Any, updates: Updates, strength: float = 1.0) -> Any:
    """A copy of the model with the updates in its weights."""
    model = copy.deepcopy(model)
    for layer, update in updates.items():
        weight = layers_of(model)[layer].weight
        weight += (strength * update.scale * update.up.double() @ update.down.double()).to(weight.dtype)  # type: ignore[operator, union-attr]
    return model


def as_diffusers(file: Path, model: torch.nn.Module, updates: Updates) -> Path:
    """diffusers' own form."""
    weights = {f"transformer.{name}": weight for name, weight in peft_weights(updates).items()}
    save_file(weights, file, lora_header(peft_settings(updates, layers_of(model))))
    return file


def as_peft(file: Path, model: torch.nn.Module, updates: Updates) -> Path:
    """What `PeftModel.save_pretrained` writes: a file and its settings beside it."""
    save_file({f"base_model.model.{name}": weight for name, weight in peft_weights(updates).items()}, file)
    file.with_name("adapter_config.json").write_text(json.dumps(peft_settings(updates, layers_of(model))))
    return file


def as_diffusers_names_of_comfy(file: Path, model: torch.nn.Module, updates: Updates) -> Path:
    """diffusers' names below `diffusion_model.`, with down, up and alpha, as LightX2V writes them."""
    weights: dict[str, torch.Tensor] = {}
    for layer, update in updates.items():
        weights[f"diffusion_model.{layer}.lora_down.weight"] = update.down
        weights[f"diffusion_model.{layer}.lora_up.weight"] = update.up.contiguous()
        weights[f"diffusion_model.{layer}.alpha"] = torch.tensor(update.scale * update.rank)
    save_file(weights, file)
    return file


def as_flat(file: Path, model: torch.nn.Module, updates: Updates) -> Path:
    """diffusers' names in one word, as trainers of kohya's kind write them for models of diffusers."""
    weights: dict[str, torch.Tensor] = {}
    for layer, update in updates.items():
        flat = f"lora_unet_{layer.replace('.', '_')}"
        weights |= {f"{flat}.lora_down.weight": update.down, f"{flat}.lora_up.weight": update.up.contiguous()}
        weights[f"{flat}.alpha"] = torch.tensor(update.scale * update.rank)
    save_file(weights, file)
    return file


def as_comfy(file: Path, model: torch.nn.Module, updates: Updates) -> Path:
    """Original names below `diffusion_model.`."""
    return convert_lora(
        as_diffusers(file.with_name("plain.safetensors"), model, updates), file, "comfy", type(model).__name__
    )


def as_musubi(file: Path, model: torch.nn.Module, updates: Updates) -> Path:
    """Original names in one word, with alpha."""
    return convert_lora(
        as_diffusers(file.with_name("plain.safetensors"), model, updates), file, "musubi", type(model).__name__
    )


def as_diffsynth(file: Path, model: torch.nn.Module, updates: Updates) -> Path:
    """Original names without a prefix, with peft's name of the LoRA in them; alpha is the rank."""
    names, weights = names_in(model), {}
    for layer, update in updates.items():
        name = names.original_name(layer)
        weights[f"{name}.lora_A.default.weight"] = update.down
        weights[f"{name}.lora_B.default.weight"] = (update.scale * update.up).contiguous()
    save_file(weights, file)
    return file
