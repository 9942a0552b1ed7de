"""The transformers that a model has: their classes and settings. No weights are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import diffusers
from diffusers.configuration_utils import ConfigMixin

import vidsparse_pipelines
from vidsparse.runtime.registry import served

FILE = "config.json"
NAMES = ("transformer", "transformer_2")
Transformer = tuple[type[Any], dict[str, Any]]


def transformers_of(model: str) -> dict[str, Transformer]:
    """Name -> class and settings of each transformer of a model.

    Args:
        model: a folder or a Hub id, of a pipeline or of a transformer; or the name of a class, at its defaults.

    Raises:
        ValueError: nothing of these, a model without a transformer, or a class that diffusers lacks.
        OSError: a Hub id that cannot be read.
    """
    if not Path(model).is_dir() and re.fullmatch(r"\w+", model):
        if model not in served() and not isinstance(getattr(diffusers, model, None), type):
            raise ValueError(
                f"model {model!r} is unknown; give a folder, a Hub id such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers, or one "
                f"of {', '.join(served())}"
            )
        return {model: (class_named(model), {})}
    path = Path(model)
    found = _in_folder(path) if path.is_dir() else _on_hub(model)
    if any("_class_name" not in settings for settings in found.values()):
        raise ValueError(
            f"{FILE} of {model} names no class of diffusers; give the folder of a transformer or a pipeline"
        )
    return {name: (class_named(settings["_class_name"]), settings) for name, settings in found.items()}


def _in_folder(path: Path) -> dict[str, Any]:
    inside = {name: path / name for name in NAMES if (path / name / FILE).is_file()}
    if not inside and not (path / FILE).is_file():
        raise ValueError(f"the folder {path} has no transformer: neither {NAMES[0]}/{FILE} nor {FILE}")
    return {name: _Settings.load_config(folder) for name, folder in (inside or {NAMES[0]: path}).items()}


def _on_hub(model: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in (*NAMES, None):
        try:
            if name is not None or not found:
                found[name or NAMES[0]] = _Settings.load_config(model, subfolder=name)
        except OSError as error:
            reason = error
    if not found:
        raise OSError(f"cannot read the settings of model {model!r}: {reason}")
    return found


def class_names() -> list[str]:
    """The names of all classes that have an adapter, whether this diffusers has them or not."""
    return served()


def class_named(name: str) -> type[Any]:
    """A class of the diffusers that is installed.

    Raises:
        ValueError: it has none of that name.
    """
    cls = getattr(diffusers, name, None)
    if isinstance(cls, type):
        return cls
    ours = name in vidsparse_pipelines.ADAPTERS
    advice = "a newer one has it" if ours else "vidsparse.doctor.diagnose takes classes from elsewhere"
    raise ValueError(f"diffusers {diffusers.__version__} has no {name}; {advice}")


class _Settings(ConfigMixin):
    config_name: Any = FILE
