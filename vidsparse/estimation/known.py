"""What is known of a model by its name: in the table of published models, or in its folder."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vidsparse.estimation.published import MODELS, KnownModel
from vidsparse.generation.models import ships


def known_model(model: str) -> KnownModel:
    """What is known of a model, in the package or in its folder. Nothing is asked of the Hub.

    Args:
        model: a Hub id or a name of `MODELS`, a model that ships, or the folder of a pipeline or of a transformer.

    Raises:
        ValueError: an unknown model; says which are known and which are near.
        OSError: the settings in a folder cannot be read.
    """
    for known in MODELS:
        if model.lower() in (name.lower() for name in (known.name, *known.models)):
            return known
    if ships(model) or Path(model).is_dir():
        return _in_folder(model)
    names = {name.lower(): name for known in MODELS for name in (known.name, *known.models)}
    near = [names[name] for name in get_close_matches(model.lower(), names, n=3, cutoff=0.5)]
    meant = f"; did you mean {' or '.join(near)}?" if near else ";"
    raise ValueError(
        f"model {model!r} is unknown{meant} Known are {', '.join(known.name for known in MODELS)}, and their Hub ids; "
        "the folder of a diffusers pipeline works too"
    )


def _in_folder(model: str) -> KnownModel:
    """What the files of a model say. A size that they do not say is 0."""
    from vidsparse.generation.config_files import INDEX, read_config
    from vidsparse.generation.frames import vae_stride
    from vidsparse.generation.models import find_model, source_of
    from vidsparse.generation.transformers import configured_transformers

    folder = source_of(model)
    transformers = configured_transformers(model)
    cls, config = next(iter(transformers.values()))
    pipeline = find_model(model) if read_config(folder, INDEX) is not None else None

    def default(argument: str, otherwise: Any = None) -> Any:
        return (pipeline.default(argument) if pipeline else None) or otherwise

    guided = (default("guidance_scale") or 1) > 1 and not config.get("guidance_embeds")
    return KnownModel(
        *(model, (), cls.__name__, tuple(default(name, 0) for name in ("num_frames", "height", "width"))),
        *(default("num_inference_steps", 0), default("max_sequence_length", 512)),
        source=f"its files, and the defaults of {pipeline.pipeline_class.__name__ if pipeline else cls.__name__}",
        calls=2 if guided else 1,
        experts=len(transformers),
        vae_stride=vae_stride(read_config(folder, "vae/config.json")),
        config=config,
    )
