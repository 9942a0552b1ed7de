"""The transformers of a model: their classes and settings, read without weights."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import diffusers
import torch

import vidsparse_pipelines
from vidsparse.generation.config_files import FILE, INDEX, read_config
from vidsparse.generation.models import SHIPPING, source_of
from vidsparse.patterns.base import Pattern
from vidsparse.presets import Preset, choose
from vidsparse.runtime.pipeline import TRANSFORMERS
from vidsparse.runtime.registry import adapter_of, served

Transformer = tuple[type[Any], dict[str, Any]]


def configured_transformers(model: str) -> dict[str, Transformer]:
    """Name -> class and settings of each transformer of a model.

    Args:
        model: one that ships; a folder or a Hub id, of a pipeline or of a transformer; or the name of a class, at its
            defaults.

    Raises:
        ValueError: an unknown name, a model without a transformer, or a class that diffusers lacks.
        OSError: the settings cannot be read.
    """
    source = source_of(model)
    if source == model and not Path(model).is_dir() and re.fullmatch(r"\w+", model):
        if model not in served() and not isinstance(getattr(diffusers, model, None), type):
            raise ValueError(
                f"model {model!r} is unknown; give {SHIPPING}, a folder, a Hub id such as "
                f"Wan-AI/Wan2.1-T2V-1.3B-Diffusers, or one of {', '.join(served())}"
            )
        return {model: (class_named(model), {})}
    index = read_config(source, INDEX)
    # Without network, a cache cannot tell whether a file is missing on the Hub: ask only for parts that there are.
    names = TRANSFORMERS if index is None else tuple(name for name in TRANSFORMERS if any(index.get(name) or ()))
    found = {name: config for name in names if (config := read_config(source, f"{name}/{FILE}")) is not None}
    if not found and (config := read_config(source, FILE)) is not None:
        found = {TRANSFORMERS[0]: config}
    if not found:
        raise ValueError(f"model {model} has no transformer: neither {TRANSFORMERS[0]}/{FILE} nor {FILE}")
    if any("_class_name" not in settings for settings in found.values()):
        raise ValueError(
            f"{FILE} of {model} names no class of diffusers; give the folder of a transformer or a pipeline"
        )
    return {name: (class_named(settings["_class_name"]), settings) for name, settings in found.items()}


def class_named(name: str) -> type[Any]:
    """A class of the installed diffusers.

    Raises:
        ValueError: diffusers has no class of that name.
    """
    cls = getattr(diffusers, name, None)
    if isinstance(cls, type):
        return cls
    ours = name in vidsparse_pipelines.ADAPTERS
    advice = "a newer one has it" if ours else "vidsparse.doctor.diagnose takes classes from elsewhere"
    raise ValueError(f"diffusers {diffusers.__version__} has no {name}; {advice}")


def defaults(cls: type[Any]) -> dict[str, Any]:
    """The default settings of a class of models."""
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def check_pattern(model: str, pattern: Pattern) -> None:
    """Refuse a pattern for a model, from the settings of its transformers.

    Raises:
        ValueError: the pattern is for a model with other layers or heads.
        NotImplementedError: no adapter serves a transformer.
        OSError: the settings cannot be read.
    """
    for cls, settings in configured_transformers(model).values():
        attentions = _attentions(cls, settings)
        for heads in {adapter_of(cls).heads(attention) for attention in attentions}:
            pattern.check_model(len(attentions), heads)


def preset_of(model: str) -> Preset:
    """The preset of a model. For its name and for errors see `configured_transformers`."""
    transformers = configured_transformers(model)
    cls, settings = next(iter(transformers.values()))
    return choose(cls, {**defaults(cls), **settings}, TRANSFORMERS[1] in transformers)


def attention_layers(model: str) -> int:
    """How many layers of self-attention the first transformer of a model has. Raises: see `check_pattern`."""
    return len(_attentions(*next(iter(configured_transformers(model).values()))))


def _attentions(cls: type[Any], settings: dict[str, Any]) -> list[torch.nn.Module]:
    return list(adapter_of(cls).self_attentions(without_weights(cls, settings)).values())


def without_weights(cls: type[Any], settings: dict[str, Any]) -> Any:
    """A transformer on the meta device, where weights take no memory.

    Args:
        cls: its class.
        settings: those of its checkpoint, where 0, False and () are kept. For parts that the adapter needs and that
            settings and the class's defaults leave out, those of the adapter's twin are used.
    """
    config = {**defaults(cls), **settings}
    try:
        small = adapter_of(cls).tiny(config)
    except NotImplementedError:  # an adapter without a twin
        small = {}
    parts = {name: value for name, value in small.items() if settings.get(name) is None and not config.get(name)}
    with torch.device("meta"):
        make = getattr(cls, "from_config", None)  # diffusers' classes have it
        return make({**config, **parts}) if make else cls(**{**config, **parts})
