"""The initial weights of a training from an existing LoRA, for the layers and the rank of the settings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, cast

import torch

from vidsparse.corrections import ProxyTokens
from vidsparse.finetune.settings import Settings
from vidsparse.lora.base import base_in, check_base
from vidsparse.lora.files import LoraRecipe, read_recipe, recipe_in
from vidsparse.lora.fitted import fit
from vidsparse.lora.load import warn
from vidsparse.lora.proxies import PROXIES, box_of, is_learned, proxies_of, put_proxies
from vidsparse.lora.renamed import LowRank, Renamed
from vidsparse.lora.source import find_lora
from vidsparse.lora.stored import CONFIG_FILE, PEFT_FILE, read_names, read_stored
from vidsparse.runtime.pipeline import uncompiled
from vidsparse.runtime.proxies import add_proxies, proxies_in


def start_weights(
    transformer: Any, settings: Settings, start: str, note: Callable[[str], None] = warn
) -> dict[str, torch.Tensor]:
    """The weights of a LoRA by their names in the transformer, in the scale of `settings.alpha`.

    With them a training begins with the output that `load_lora` gives. Layers of a lower rank are filled up with rows
    that add nothing at first. Targets that the LoRA does not have are missing here, and start as in any training.

    Args:
        transformer: that is trained; it may be without weights. settings: of the training.
        start: as `load_lora` takes it, from any trainer.
        note: called with a line where parts of the file have no place in the transformer.

    Raises:
        OSError: the LoRA does not exist.
        ValueError: it is no LoRA of this model, for `shapes` one of another model, changes layers that are not targets
            or norms or biases, has a higher rank, or has learned proxies that the training's correction does not take.
        NotImplementedError: DoRA, or another method than LoRA.
    """
    transformer, file = uncompiled(transformer), find_lora(start)
    stored = read_stored(file)
    check_base(start, base_in(stored.header), transformer.config.get("_name_or_path"))
    if PROXIES in stored.header:
        _check_proxies(recipe_in(file, stored.header), settings, start)
    lora = fit(stored, transformer, file)
    _check(lora, transformer, settings, start)
    if lora.left_out:
        note(f"{file}: parts without a place in {type(transformer).__name__} are left out: {lora.left_out_summary}")
    # The LoRA adds its scale times the product of its weights; the division keeps that the same under another scale.
    weights: dict[str, torch.Tensor] = {}
    for layer, update in lora.updates.items():
        up = update.up.double() * (update.scale / settings.scale)
        weights[f"{layer}.lora_A.weight"] = _filled(layer, update, settings)
        weights[f"{layer}.lora_B.weight"] = torch.nn.functional.pad(up.float(), (0, settings.rank - update.rank))
    return weights


def begin_proxies(transformer: Any, settings: Settings) -> None:
    """Give a transformer proxies that learn: those of the initial LoRA where it has some, else means.

    Args:
        transformer: that is trained. settings: of a training whose correction is a learned `ProxyTokens`.

    Raises:
        OSError: the LoRA does not exist.
        ValueError: it has proxies of another model.
    """
    correction = cast("ProxyTokens", settings.correction)
    if settings.start is None or not is_learned(recipe := read_recipe(settings.start)):
        add_proxies(transformer, correction.box)
        return
    file = find_lora(settings.start)
    put_proxies(transformer, proxies_of(file, read_names(file)[1], recipe), recipe, file)
    for proxies in proxies_in(transformer).values():
        proxies.requires_grad_(True)


def start_hash(start: str) -> str:
    """A hash of a LoRA's file, with the settings of peft beside it where they belong to it."""
    file = find_lora(start)
    beside = file.with_name(CONFIG_FILE)
    foreign = file.name == PEFT_FILE and beside.is_file()
    return hashlib.sha256(file.read_bytes() + (beside.read_bytes() if foreign else b"")).hexdigest()


def _check_proxies(recipe: LoraRecipe, settings: Settings, start: str) -> None:
    if not is_learned(recipe) or (settings.learns_proxies and settings.correction == recipe.correction):
        return
    box = ",".join(map(str, box_of(recipe)))
    raise ValueError(
        f"start={start!r} has learned proxies for box={box_of(recipe)}, and the training is of "
        f"{settings.correction!r}, which would drop them; take its own, {recipe.correction!r} "
        f"(--correction 'proxy-tokens learned=true box={box}')"
    )


def _check(lora: Renamed, transformer: torch.nn.Module, settings: Settings, start: str) -> None:
    if lora.differences:
        raise ValueError(
            f"start={start!r} also changes {', '.join(list(lora.differences)[:3])} outside of low-rank matrices, which "
            "a training cannot hold; merge it into the model, or start from another LoRA"
        )
    targets = {
        name
        for name, layer in transformer.named_modules()
        if isinstance(layer, torch.nn.Linear) and settings.is_target(name)
    }
    named = settings.layers if isinstance(settings.layers, str) else ", ".join(settings.layers)
    for layer, update in lora.updates.items():
        if layer not in targets or update.rank > settings.rank:
            what = f"of rank {update.rank}" if layer in targets else "no target"
            raise ValueError(
                f"start={start!r} does not fit: its {layer} is {what}, in a training of rank {settings.rank} and "
                f"targets {named}; choose rank and targets that hold it"
            )
        if update.magnitude is not None:
            raise NotImplementedError(f"start={start!r} is a DoRA, and a training is of LoRA; start from a LoRA")


def _filled(layer: str, update: LowRank, settings: Settings) -> torch.Tensor:
    """The first matrix with the rows of a training's own beginning, up to its rank; each layer has other ones."""
    rows = torch.empty(settings.rank - update.rank, update.down.shape[1])
    if len(rows):
        name = hashlib.sha256(f"{settings.seed}-{layer}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(name[:7], "big"))
        torch.nn.init.kaiming_uniform_(rows, a=5**0.5, generator=generator)  # as peft does
    return torch.cat([update.down.float(), rows])
