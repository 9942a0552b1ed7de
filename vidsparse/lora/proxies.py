"""The learned proxies of `ProxyTokens` in the header of a LoRA's file, which programs that know none pass over."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from vidsparse.corrections import ProxyTokens
from vidsparse.grid import Tile
from vidsparse.lora.recipe import LoraRecipe
from vidsparse.runtime.proxies import add_proxies, proxies_in, remove_proxies

PROXIES = "vidsparse_proxies"  # the key in a file's metadata


def is_learned(recipe: LoraRecipe) -> bool:
    """Whether a LoRA was trained with proxies that learned."""
    return isinstance(recipe.correction, ProxyTokens) and recipe.correction.learned


def box_of(recipe: LoraRecipe) -> Tile:
    """The boxes of a LoRA that `is_learned`."""
    return cast("ProxyTokens", recipe.correction).box


def proxies_header(transformer: torch.nn.Module) -> dict[str, str]:
    """The proxies of a transformer for a header, float32; nothing where it has none.

    Bytes of safetensors as base64 text: for 40 layers of 40 heads and boxes of 16 tokens 290 kB.
    """
    weights = {
        f"{layer}.{name}": weight.detach().float().cpu().contiguous()
        for layer, proxies in proxies_in(transformer).items()
        for name, weight in proxies.named_parameters()
    }
    return {PROXIES: base64.b64encode(save(weights)).decode()} if weights else {}


def proxies_of(file: Path, header: Mapping[str, str], recipe: LoraRecipe) -> dict[str, torch.Tensor]:
    """The proxies in the header of a LoRA's file, by the names that they have in the transformer, below their layers.

    Raises:
        ValueError: the LoRA was trained with proxies, and its file has none, or damaged ones.
    """
    if not is_learned(recipe):
        return {}
    if PROXIES not in header:
        raise ValueError(
            f"{file} was trained with {recipe.correction!r}, and its header has no {PROXIES}: another program wrote it "
            "anew; get the file that vidsparse wrote, or load the weights alone with pipe.load_lora_weights"
        )
    try:
        return load(base64.b64decode(header[PROXIES], validate=True))
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"{file} has learned proxies that cannot be read: {error}; get the file again") from None


def put_proxies(
    transformer: torch.nn.Module, weights: Mapping[str, torch.Tensor], recipe: LoraRecipe, file: Path
) -> None:
    """Give a transformer the proxies that `proxies_of` read from a file. They do not learn.

    Raises:
        ValueError: those of another model, or it has some.
    """
    own = add_proxies(transformer, box_of(recipe))
    places = {f"{layer}.{name}": weight for layer, x in own.items() for name, weight in x.named_parameters()}
    wrong = sorted(places.keys() ^ weights.keys())
    wrong += [name for name in places.keys() & weights.keys() if places[name].shape != weights[name].shape]
    if wrong:
        remove_proxies(transformer)
        name = wrong[0]
        has, wants = (list(x[name].shape) if name in x else "missing" for x in (weights, places))
        raise ValueError(
            f"the learned proxies in {file} are for another model or other boxes: {name} is {has}, and this "
            f"{type(transformer).__name__} with box={box_of(recipe)} expects {wants}"
        )
    for name, place in places.items():
        place.requires_grad_(False).copy_(weights[name])
