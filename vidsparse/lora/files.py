"""LoRAs that know how they were trained: a file of diffusers whose header also holds pattern, schedule and length."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from vidsparse.atomic import leftovers, replacing
from vidsparse.lora.proxies import proxies_header
from vidsparse.lora.recipe import LoraRecipe
from vidsparse.lora.source import FILE, find_lora
from vidsparse.lora.stored import CONFIG, check_is_lora, experts_in, read_names
from vidsparse.runtime.pipeline import uncompiled
from vidsparse.serialize import NotLoaded

__all__ = ["LoraRecipe", "read_recipe", "save_lora"]

HEADER = "vidsparse"  # the key of the recipe in a file's metadata
ALWAYS = ("r", "lora_alpha", "target_modules")  # of peft's settings, even where they have their defaults


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
        ValueError: the transformer has no LoRA of that name, or not the learned proxies that the recipe says.
        OSError: the disk is full, or the folder cannot be written.
        ImportError: peft is missing.
    """
    require_peft()
    from peft import get_peft_model_state_dict

    model = pipe_or_transformer
    transformer = uncompiled(model if isinstance(model, torch.nn.Module) else transformer_of(model, recipe.transformer))
    adapters = getattr(transformer, "peft_config", {})
    if adapter_name not in adapters:
        raise ValueError(
            f"{type(transformer).__name__} has no LoRA named {adapter_name!r}; it has {', '.join(adapters) or 'none'}; "
            "transformer.add_adapter(peft.LoraConfig(...)) adds one"
        )
    layers = get_peft_model_state_dict(transformer, adapter_name=adapter_name)
    weights = {f"transformer.{name}": weight.detach().to(dtype).contiguous() for name, weight in layers.items()}
    header, file = lora_header(settings_that_differ(adapters[adapter_name]), recipe), Path(folder) / FILE
    header |= proxies_header(transformer, recipe)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_lora(file, weights, header)
    return file


def settings_that_differ(config: Any) -> dict[str, Any]:
    """Settings of peft without those that have their defaults, which another version of peft may not know.

    Args:
        config: a `peft.LoraConfig`.
    """
    from peft import LoraConfig

    usual: dict[str, Any] = LoraConfig().to_dict()  # type: ignore[no-untyped-call]
    return {
        name: value
        for name, value in config.to_dict().items()
        if name in ALWAYS or name not in usual or value != usual[name]
    }


def lora_header(settings: Mapping[str, Any], recipe: LoraRecipe | None = None) -> dict[str, str]:
    """The header of a file that diffusers reads: the settings of peft, and the recipe where there is one.

    Raises:
        TypeError: a pattern that is not vidsparse's in the recipe.
    """
    config = {f"transformer.{name}": value for name, value in settings.items()}
    header = {"format": "pt", CONFIG: json.dumps(config, default=sorted, sort_keys=True)}  # sets become lists
    if recipe is not None:
        header[HEADER] = json.dumps(replace(recipe, version=version("vidsparse")).to_data())
    return header


def write_lora(file: Path, weights: dict[str, torch.Tensor], header: Mapping[str, str]) -> None:
    """Write a file of safetensors, whole or not at all; an earlier one stays until then.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    try:
        # Not named as weights are: diffusers takes any file of that kind that it finds in a folder.
        with replacing(file, suffix=".tmp") as temporary:
            # Bytes first: safetensors' own writer does not say OSError where the disk is full.
            temporary.write_bytes(save(weights, dict(header)))
        for leftover in leftovers(file):
            leftover.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"cannot write the LoRA {file}: {error.strerror or error}; an earlier one is whole") from error


def read_recipe(source: str | Path) -> LoraRecipe:
    """The recipe in the file of a LoRA, without loading it. For source and errors see `load_lora`."""
    file = find_lora(source)
    names, header = read_names(file)
    check_is_lora(file, names)
    return recipe_in(file, header)


def recipe_in(file: Path, header: Mapping[str, str]) -> LoraRecipe:
    """The recipe in the header of a file. Raises: see `load_lora`."""
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


def transformer_in(file: Path, names: Iterable[str], header: Mapping[str, str]) -> str | None:
    """Which transformer of a pipeline a file says it is for; None where it leaves that open.

    Args:
        file: for errors. names, header: of the file.

    Raises:
        ValueError: it is for several, or see `recipe_in`.
    """
    if HEADER in header and "transformer" in json.loads(header[HEADER]):
        return recipe_in(file, header).transformer
    experts = experts_in(names)
    if len(experts) > 1:
        raise ValueError(f"{file} is for {' and '.join(sorted(experts))}; write a file for each of them")
    # The name of the first is what any file of diffusers begins with.
    return next(iter(experts - {"transformer"}), None)


def transformer_of(pipe: Any, name: str) -> torch.nn.Module:
    """A transformer of a pipeline. Raises TypeError where there is none of this name."""
    transformer = getattr(pipe, name, None)
    if not isinstance(transformer, torch.nn.Module):
        raise TypeError(
            f"the LoRA is for {name!r}, but {type(pipe).__name__} has no such part; use a pipeline that has it"
        )
    return transformer


def require_peft() -> None:
    """Raise ImportError where peft is missing."""
    if find_spec("peft") is None:
        raise ImportError("LoRAs need peft, which is not installed: pip install peft")
