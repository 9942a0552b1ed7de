"""The learned proxies of `ProxyTokens` in the header of a LoRA's file, which programs that know none pass over."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from vidsparse.corrections import Correction, ProxyTokens
from vidsparse.corrections.proxy_tokens import averaged
from vidsparse.grid import Tile
from vidsparse.lora.recipe import LoraRecipe
from vidsparse.runtime.proxies import add_proxies, check_proxies, proxies_in, remove_proxies

PROXIES = "vidsparse_proxies"  # the key in a file's metadata


def is_learned(recipe: LoraRecipe) -> bool:
    """Whether a LoRA was trained with proxies that learned."""
    return isinstance(recipe.correction, ProxyTokens) and recipe.correction.learned


def box_of(recipe: LoraRecipe) -> Tile:
    """The boxes of a LoRA that `is_learned`."""
    return cast("ProxyTokens", recipe.correction).box


def proxies_header(transformer: torch.nn.Module, recipe: LoraRecipe) -> dict[str, str]:
    """The proxies of a transformer for a header, float32; nothing where the recipe has none that learned.

    Bytes of safetensors as base64 text: for 40 layers of 40 heads and boxes of 16 tokens 290 kB.

    Raises:
        ValueError: the transformer has none, or those of other boxes than the recipe says.
    """
    if not is_learned(recipe):
        return {}
    check_proxies(recipe.correction, {type(transformer).__name__: transformer})
    weights = {
        f"{layer}.{name}": weight.detach().float().cpu().contiguous()
        for layer, proxies in proxies_in(transformer).items()
        for name, weight in proxies.named_parameters()
    }
    return {PROXIES: base64.b64encode(save(weights)).decode()}


def check_brought(correction: Correction | None, recipes: Iterable[LoraRecipe]) -> None:
    """Refuse a correction whose learned proxies no LoRA brings, before a model is loaded.

    Raises:
        ValueError: no recipe says that the LoRA has learned proxies of this box.
    """
    if not (isinstance(correction, ProxyTokens) and correction.learned):
        return
    brought = [box_of(recipe) for recipe in recipes if is_learned(recipe)]
    if correction.box not in brought:
        raise ValueError(
            f"correction={correction!r} needs a LoRA that has learned proxies for this box; "
            f"{'those given have them for ' + ', '.join(map(str, brought)) if brought else 'none given has'}: give it "
            f"with --lora, or take means, {averaged(correction)!r}"
        )


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
