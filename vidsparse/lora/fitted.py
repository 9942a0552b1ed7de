"""A LoRA checked against a model: what has a place there, and what has none."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vidsparse.lora.names import Names
from vidsparse.lora.originals import ORIGINALS
from vidsparse.lora.renamed import OF_IMAGES, UNKNOWN, LowRank, Renamed, check_placed, renamed
from vidsparse.lora.stored import Stored

FIRST_LAYERS = ("patch_embedding", "vace_patch_embedding", "patch_embed.proj", "x_embedder.proj", "proj_in")


def fit(stored: Stored, model: torch.nn.Module, file: Path) -> Renamed:
    """What of a LoRA has a place in a model, with each part in the shape of its place.

    Args:
        stored: the contents of the file.
        model: a transformer, with or without other LoRAs, not compiled as a whole.
        file: for errors.

    Returns:
        A LoRA whose layers all exist in the model; `left_out` has the names of the others.

    Raises:
        ValueError: a LoRA of another model, or one for projections that are fused.
    """
    modules, kind = layers_of(model), type(model).__name__
    config: Any = getattr(model, "config", {})
    found = renamed(stored, names_in(model), config.get("attention_head_dim"))
    for layer in [*found.updates, *found.differences]:
        _check_block(layer, modules, kind, file)
    parameters = parameters_of(model)
    for layer in [layer for layer in found.updates if layer not in modules or _is_for_images(found, layer, modules)]:
        del found.updates[layer]
        found.left_out[OF_IMAGES if layer in modules else UNKNOWN].append(layer)
    found.updates = {layer: _in_shape(layer, u, _shape(modules[layer]), file) for layer, u in found.updates.items()}
    for layer, differences in list(found.differences.items()):
        for difference in list(differences):
            place = parameters.get(parameter_name(layer, difference.parameter, parameters))
            if place is None or (place.shape != difference.value.shape and layer in FIRST_LAYERS):
                found.left_out[UNKNOWN if place is None else OF_IMAGES].append(f"{layer}.{difference.parameter}")
                differences.remove(difference)
            elif place.numel() != difference.value.numel() or not place.is_floating_point():
                raise ValueError(
                    f"{file} changes the {difference.parameter} of {layer} by {list(difference.value.shape)}, but in "
                    f"this {kind} it is {place.dtype} {list(place.shape)}; use a model of the same size that is not "
                    "quantised"
                )
        if not differences:
            del found.differences[layer]
    check_placed(found, kind, file)
    _check_fused(found.updates, model, file)
    return found


def _in_shape(layer: str, update: LowRank, weight: tuple[int, ...], file: Path) -> LowRank:
    """The matrices of a layer in the shapes that its weight asks for, which some files flatten."""
    down, up = (update.rank, *weight[1:]), (weight[0], update.rank, *[1] * (len(weight) - 2))
    for side, matrix, axis, shape in (("A", update.down, 1, down), ("B", update.up, 0, up)):
        if matrix.numel() != math.prod(shape):
            raise ValueError(
                f"{file} was made for another model: its {layer}.lora_{side}.weight has a side of "
                f"{matrix.shape[axis]}, expected {shape[axis]}"
            )
    return replace(update, down=update.down.reshape(down), up=update.up.reshape(up))


def names_in(model: torch.nn.Module) -> Names:
    """The names by which files may call the layers of a model, and its parameters that belong to no layer."""
    family = next((cls.__name__ for cls in type(model).__mro__ if cls.__name__ in ORIGINALS), type(model).__name__)
    loose = [name for name in parameters_of(model) if name.rsplit(".", 1)[-1] not in ("weight", "bias")]
    return Names(family, [*layers_of(model), *loose])


def layers_of(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The layers of a model that have a weight, by the names that they have without LoRAs."""
    found = {}
    for name, module in model.named_modules():
        layer = name.replace(".base_layer", "")
        if ".lora_" not in name and any(module._parameters.get(p) is not None for p in ("weight", "bias")):
            found[layer] = module
    return found


def parameters_of(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters of a model by the names that they have without LoRAs."""
    return {name.replace(".base_layer", ""): p for name, p in model.named_parameters() if ".lora_" not in name}


def parameter_name(layer: str, parameter: str, parameters: Mapping[str, Any]) -> str:
    """The name of a layer's parameter, which is the layer's own where that is a parameter."""
    return layer if layer in parameters and parameter == "weight" else f"{layer}.{parameter}"


def _shape(layer: torch.nn.Module) -> tuple[int, ...]:
    """[out, in, ...] of a layer's weight, also where it is stored in another form."""
    if isinstance(layer, torch.nn.Linear):
        return layer.out_features, layer.in_features
    weight: Any = layer.weight
    return tuple(weight.shape)


def _is_for_images(found: Renamed, layer: str, modules: Mapping[str, torch.nn.Module]) -> bool:
    """Whether it is the layer that latents enter by, for a model that an image enters with them, or without."""
    update, (rows, columns, *_) = found.updates[layer], _shape(modules[layer])
    return layer in FIRST_LAYERS and update.up.shape[0] == rows and update.down.shape[1] != columns


def _check_block(layer: str, modules: Mapping[str, Any], kind: str, file: Path) -> None:
    """Refuse a layer in a block that the model lacks."""
    block = re.match(r".*?(?:blocks|layers)\.\d+\.", layer)
    if block is not None and not any(name.startswith(block[0]) for name in modules):
        raise ValueError(f"{file} was made for another model: it changes {layer}, which does not exist in this {kind}")


def _check_fused(updates: Mapping[str, Any], model: torch.nn.Module, file: Path) -> None:
    """Refuse a model that would not look at the layers which a LoRA changes."""
    for name, module in model.named_modules():
        if getattr(module, "fused_projections", False) and any(layer.startswith(f"{name}.") for layer in updates):
            raise ValueError(
                f"{file} changes projections of {name}, which are fused; call "
                "pipe.transformer.unfuse_qkv_projections() before you load it"
            )
