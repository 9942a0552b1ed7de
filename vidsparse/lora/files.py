"""LoRAs that know how they were trained: a file of diffusers whose header also holds pattern, schedule and length."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from vidsparse.atomic import leftovers, replacing
from vidsparse.generation.frames import pipeline_geometry
from vidsparse.generation.positions import ExtendedPositions, extend_positions
from vidsparse.generation.scheduler import build_scheduler
from vidsparse.lora.recipe import LoraRecipe
from vidsparse.lora.source import FILE, find_lora
from vidsparse.serialize import NotLoaded

__all__ = ["LoraRecipe", "load_lora", "read_recipe", "save_lora", "unload_lora"]

HEADER = "vidsparse"  # the key of the recipe in a file's metadata


@dataclass
class _Changed:
    """What `load_lora` changed in a pipeline besides its weights."""

    before: Any  # the scheduler before the first LoRA
    scheduler: Any = None  # the scheduler of the last one
    positions: list[ExtendedPositions] = field(default_factory=list)


_changed: WeakKeyDictionary[Any, _Changed] = WeakKeyDictionary()


def save_lora(
    folder: str | Path,
    pipe_or_transformer: Any,
    recipe: LoraRecipe,
    adapter_name: str = "default",
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a transformer's LoRA as diffusers does, with its recipe in the file's header.

    `pipe.load_lora_weights(folder)` of diffusers reads it without vidsparse; what it does not restore is attention and
    changed positions, which `load_lora` does. The file appears whole or not at all; an earlier one stays until then.

    Args:
        folder: created if it is missing. Each expert of Wan 2.2 needs a separate one.
        pipe_or_transformer: has the LoRA, in `recipe.transformer` where it is a pipeline.
        recipe: what the LoRA was trained with.
        adapter_name: the LoRA's name in the transformer.
        dtype: of the weights in the file, by default what they are in.

    Returns:
        The file.

    Raises:
        TypeError: neither a pipeline nor a transformer, or a pattern that is not vidsparse's in the recipe.
        ValueError: the transformer has no LoRA of that name.
        OSError: the disk is full, or the folder cannot be written.
        ImportError: peft is missing.
    """
    _require_peft()
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
    from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin
    from peft import get_peft_model_state_dict

    model = pipe_or_transformer
    transformer = model if isinstance(model, torch.nn.Module) else _transformer(model, recipe.transformer)
    adapters = getattr(transformer, "peft_config", {})
    if adapter_name not in adapters:
        raise ValueError(
            f"{type(transformer).__name__} has no LoRA named {adapter_name!r}; it has {', '.join(adapters) or 'none'}; "
            "transformer.add_adapter(peft.LoraConfig(...)) adds one"
        )
    config = {f"transformer.{name}": value for name, value in adapters[adapter_name].to_dict().items()}
    header = {
        "format": "pt",
        LORA_ADAPTER_METADATA_KEY: json.dumps(config, default=sorted, sort_keys=True),  # sets become lists
        HEADER: json.dumps(replace(recipe, version=version("vidsparse")).to_data()),
    }

    def write(weights: dict[str, torch.Tensor], path: str) -> None:
        try:
            # Not named as weights are: diffusers takes any file of that kind that it finds in a folder.
            with replacing(Path(path), suffix=".tmp") as temporary:
                # Bytes first: safetensors' own writer does not say OSError where the disk is full.
                temporary.write_bytes(save(weights, header))
            for leftover in leftovers(Path(path)):
                leftover.unlink(missing_ok=True)
        except OSError as error:
            raise OSError(
                f"cannot write the LoRA {path}: {error.strerror or error}; an earlier one is whole"
            ) from error

    # Wan's loader writes what every other transformer's in diffusers writes.
    layers = {k: v.to(dtype) for k, v in get_peft_model_state_dict(transformer, adapter_name=adapter_name).items()}
    WanLoraLoaderMixin.save_lora_weights(folder, transformer_lora_layers=layers, save_function=write)
    return Path(folder) / FILE


def load_lora(pipe: Any, source: str | Path, adapter_name: str | None = None) -> LoraRecipe:
    """Load a LoRA into a pipeline, with the positions that it was trained with and the scheduler that it is for.

        recipe = vidsparse.load_lora(pipe, "shapes-long")
        with vidsparse.sparsify(pipe, recipe.pattern, correction=recipe.correction):
            video = pipe("a red circle moving left on a blue background", num_frames=recipe.frames).frames[0]

        vidsparse.unload_lora(pipe)

    Args:
        pipe: a diffusers pipeline; not offloaded yet if positions change.
        source: "shapes-long", a folder, a safetensors file or a Hub id, of vidsparse or not.
        adapter_name: for `pipe.set_adapters`; by default diffusers chooses it.

    Returns:
        The recipe in the file; None for what it does not say.

    Raises:
        OSError: no such name, file, folder or Hub id.
        ValueError: not a LoRA, a LoRA for another model, or a recipe that this version of vidsparse cannot read.
        TypeError: a pipeline that loads no LoRA.
        NotImplementedError: a pipeline whose scheduler does not take the recipe's sampler or shift.
        ImportError: peft is missing.
    """
    if not hasattr(pipe, "load_lora_weights"):
        raise TypeError(f"{type(pipe).__name__} loads no LoRA; pass a diffusers pipeline that has load_lora_weights")
    _require_peft()
    file = find_lora(source)
    recipe = _recipe_in(file)
    transformer = _transformer(pipe, recipe.transformer)
    scheduler = build_scheduler(pipe.scheduler, recipe.sampler, recipe.flow_shift)
    place = {"weight_name": file.name, "use_safetensors": True}
    _check_fits(pipe.lora_state_dict(str(file.parent), **place), transformer, file)
    expert = {"load_into_transformer_2": True} if recipe.transformer == "transformer_2" else {}
    pipe.load_lora_weights(str(file.parent), adapter_name=adapter_name, **place, **expert)
    changed = _changed.setdefault(pipe, _Changed(pipe.scheduler))
    if recipe.positions is not None and recipe.frames is not None and recipe.trained_frames is not None:
        known = pipeline_geometry(pipe)
        frames, trained_frames = (known.frames(count)[1] for count in (recipe.frames, recipe.trained_frames))
        changed.positions.append(extend_positions(transformer, frames, trained_frames, recipe.positions))
    pipe.scheduler = changed.scheduler = scheduler
    return recipe


def unload_lora(pipe: Any) -> None:
    """Remove all LoRAs of a pipeline, with the positions and the scheduler that `load_lora` gave it.

    A scheduler that was set after `load_lora` stays. Does nothing to a pipeline without LoRAs.

    Args:
        pipe: a diffusers pipeline; not offloaded if positions were changed.

    Raises:
        TypeError: a pipeline that loads no LoRA.
    """
    if not hasattr(pipe, "unload_lora_weights"):
        raise TypeError(f"{type(pipe).__name__} loads no LoRA; pass a diffusers pipeline that has unload_lora_weights")
    pipe.unload_lora_weights()
    changed = _changed.pop(pipe, None)
    if changed is None:
        return
    for positions in reversed(changed.positions):
        positions.restore()
    if pipe.scheduler is changed.scheduler:
        pipe.scheduler = changed.before


def read_recipe(source: str | Path) -> LoraRecipe:
    """The recipe in the file of a LoRA, without loading it. For source and errors see `load_lora`."""
    return _recipe_in(find_lora(source))


def _recipe_in(file: Path) -> LoraRecipe:
    try:
        with safe_open(file, "pt") as weights:
            names, header = list(weights.keys()), weights.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{file} is not a safetensors file: {error}") from None
    if not any("lora" in name for name in names):
        raise ValueError(f"{file} is not a LoRA: its weights are called {', '.join(names[:3])}, ...")
    data: Any = None
    try:
        data = json.loads(header.get(HEADER, "{}"))
        return LoraRecipe.from_data(data)
    except NotLoaded as error:
        raise ValueError(
            f"{file} was trained with {error}; or load the weights alone with pipe.load_lora_weights"
        ) from error
    except (ValueError, TypeError) as error:
        writer = data.get("version") if isinstance(data, dict) else None
        raise ValueError(
            f"{file} was written by vidsparse {writer or 'of an unknown version'}, and {version('vidsparse')} cannot "
            f"read its recipe: {error}; update vidsparse, or load the weights alone with pipe.load_lora_weights"
        ) from error


def _transformer(pipe: Any, name: str) -> torch.nn.Module:
    transformer = getattr(pipe, name, None)
    if not isinstance(transformer, torch.nn.Module):
        raise TypeError(
            f"the LoRA is for {name!r}, but {type(pipe).__name__} has no such part; use a pipeline that has it"
        )
    return transformer


def _check_fits(weights: Mapping[str, torch.Tensor], transformer: torch.nn.Module, file: Path) -> None:
    """Refuse a LoRA of another model. diffusers skips layers that a model lacks, and would load a part of it."""
    modules, model = dict(transformer.named_modules()), type(transformer).__name__
    if not any(name.startswith("transformer.") for name in weights):
        raise ValueError(f"{file} was made for another model than {model}: it changes {next(iter(weights), None)}")
    for name, weight in weights.items():
        found = re.fullmatch(r"transformer\.(.+)\.lora_([AB])\.weight", name)
        if found is None:
            continue
        if found[1] not in modules:
            raise ValueError(
                f"{file} was made for another model: it changes {found[1]}, which does not exist in this {model}"
            )
        layer = getattr(modules[found[1]], "base_layer", modules[found[1]])  # under another LoRA
        size = getattr(layer, "in_features" if found[2] == "A" else "out_features", None)
        length = weight.shape[1] if found[2] == "A" else weight.shape[0]
        if size is not None and size != length:
            raise ValueError(f"{file} was made for another model: its {name} has a side of {length}, expected {size}")


def _require_peft() -> None:
    if find_spec("peft") is None:
        raise ImportError("LoRAs need peft, which is not installed: pip install peft")
