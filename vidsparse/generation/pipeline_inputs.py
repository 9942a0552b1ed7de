"""Which pipelines of diffusers start from an image or a video: read from their signatures, else from tables."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from itertools import takewhile
from typing import Any

INPUTS = "image", "last_image", "video"
# What pipelines call them.
NAMES = {"image": ("image", "cond_image"), "last_image": ("last_image",), "video": ("video", "control_video")}
# Pipelines that take them in another form.
CONDITIONS = "LTXConditionPipeline", "LTX2ConditionPipeline"
MASKED = "WanVACEPipeline"
# Pipelines whose signature does not say that they need an input, or that they need none.
NEEDS = {"CogVideoXFunControlPipeline": ("video",), "Cosmos2_5_PredictBasePipeline": ()}
# With a number of frames of its own, a pipeline continues a video; these change all of it.
WHOLE = "LucyEditPipeline", MASKED
# Pipelines that continue a video from its end.
FROM_END = (
    *("CosmosVideoToWorldPipeline", "Cosmos2VideoToWorldPipeline", "Cosmos2_5_PredictBasePipeline"),
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
)
# Pipelines that make a video of the aspect ratio of what it starts from, with the area of their default size.
KEEPS_ASPECT = "WanImageToVideoPipeline", MASKED
# Other pipelines that run on the parts of one, with a setting that these must have. Their weights are the same, which
# no signature says: a checkpoint for image to video often has other ones.
SIBLINGS: dict[str, dict[str, str | None]] = {
    "CogVideoXPipeline": {"CogVideoXVideoToVideoPipeline": None},
    "LTXPipeline": {"LTXImageToVideoPipeline": None, "LTXConditionPipeline": None},
    "LTXImageToVideoPipeline": {"LTXConditionPipeline": None},
    "LTX2Pipeline": {"LTX2ImageToVideoPipeline": None, "LTX2ConditionPipeline": None},
    "LTX2ImageToVideoPipeline": {"LTX2ConditionPipeline": None},
    "SkyReelsV2DiffusionForcingPipeline": {
        "SkyReelsV2DiffusionForcingImageToVideoPipeline": None,
        "SkyReelsV2DiffusionForcingVideoToVideoPipeline": None,
    },
    "WanPipeline": {"WanImageToVideoPipeline": "expand_timesteps", "WanVideoToVideoPipeline": None},
}


def parameters(cls: Any) -> Mapping[str, inspect.Parameter]:
    """The arguments of `pipe(...)`, by name."""
    return _parameters(cls.__call__)


@lru_cache
def _parameters(call: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(call).parameters


def taken(cls: Any) -> dict[str, str]:
    """Which of `INPUTS` a pipeline takes, and the argument that each goes to."""
    if cls.__name__ in CONDITIONS:
        return dict.fromkeys(INPUTS, "conditions")
    if cls.__name__ == MASKED:
        return dict.fromkeys(INPUTS, "video")
    known = parameters(cls)
    return {option: name for option, names in NAMES.items() for name in names if name in known}


def needed(cls: Any) -> tuple[str, ...]:
    """Which of `INPUTS` a pipeline cannot do without; of several, any one."""
    if cls.__name__ in NEEDS:
        return NEEDS[cls.__name__]
    if cls.__name__ in CONDITIONS:
        return ()
    options = {argument: option for option, argument in taken(cls).items()}
    known = list(parameters(cls).values())[1:]
    if required := [options[p.name] for p in known if p.name in options and p.default is p.empty]:
        return tuple(required[:1])
    # Pipelines with the condition before the prompt need it, whatever default its type gives it.
    return tuple(options[p.name] for p in takewhile(lambda p: p.name in options, known))


def makes_whole(cls: Any) -> bool:
    """Whether the video that is made has the frames of the one that is given; else it continues that one."""
    return "num_frames" not in parameters(cls) or cls.__name__ in WHOLE


def pipeline_for(cls: Any, parts: Mapping[str, Any], given: Collection[str]) -> Any:
    """The class of pipelines that runs on a checkpoint and takes what is given: its own, else one of `SIBLINGS`.

    Args:
        cls: the checkpoint's own pipeline.
        parts: its model_index.json.
        given: names of `INPUTS`.

    Raises:
        ValueError: none takes all of it; names those that do, of other checkpoints.
    """
    import diffusers

    if "video" in given and "image" in given:
        raise ValueError("--image and --video both say how the video starts; give one of them")
    siblings = SIBLINGS.get(cls.__name__, {})
    usable = [name for name, setting in siblings.items() if setting is None or parts.get(setting)]
    for candidate in (cls, *(getattr(diffusers, name) for name in usable if hasattr(diffusers, name))):
        if _takes(candidate, given) and (candidate is cls or _has_parts(candidate, parts)):
            return candidate
    options = " and ".join(option_of(name) for name in given if len(given) > 1 or name not in taken(cls))
    others = [found.__name__ for found in pipelines_of(*transformers(cls)) if _takes(found, given)]
    advice = f"give --model a checkpoint of {' or '.join(others)}, or leave it out" if others else "leave it out"
    raise ValueError(f"{cls.__name__} takes no {options}; {advice}")


def check_last_image(cls: Any, parts: Mapping[str, Any], transformer: Mapping[str, Any]) -> None:
    """Refuse a last image for a checkpoint whose pipeline takes one but that was made for the first alone.

    Args:
        cls: the pipeline.
        parts: its model_index.json.
        transformer: the settings of its transformer.

    Raises:
        ValueError: says which checkpoint takes one.
    """
    encodes = transformer.get("image_dim") is not None and transformer.get("pos_embed_seq_len") is None
    if "last_image" in parameters(cls) and (encodes or parts.get("expand_timesteps")):
        raise ValueError(
            f"this checkpoint of {cls.__name__} starts from an image and takes no --last-image; give --model one for "
            "first and last frames, such as Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers, or leave it out"
        )


def option_of(name: str) -> str:
    """The option of one of `INPUTS`."""
    return f"--{name.replace('_', '-')}"


def transformers(cls: Any) -> tuple[str, ...]:
    """The classes of transformers with an adapter that a pipeline may have."""
    from vidsparse.runtime.registry import served

    words = re.findall(r"\w+", str(inspect.signature(cls.__init__).parameters.get("transformer")))
    return tuple(name for name in served() if name in words)


@lru_cache
def pipelines_of(*names: str) -> tuple[Any, ...]:
    """The pipelines of diffusers that make videos with a transformer of one of these classes."""
    return tuple(cls for cls in _pipelines() if set(transformers(cls)) & set(names) and makes_videos(cls))


def makes_videos(cls: Any) -> bool:
    """Whether a pipeline makes videos and not images."""
    return "num_images_per_prompt" not in parameters(cls)


@lru_cache
def _pipelines() -> tuple[Any, ...]:
    import diffusers

    def found() -> Iterator[Any]:
        for name in dir(diffusers):
            if name.endswith("Pipeline"):
                try:
                    cls = getattr(diffusers, name)
                except (ImportError, RuntimeError):  # of a package that is not installed
                    continue
                if isinstance(cls, type) and issubclass(cls, diffusers.DiffusionPipeline):
                    yield cls

    return tuple(found())


def _takes(cls: Any, given: Collection[str]) -> bool:
    """Whether a pipeline takes all of it together; one that is masked has no place for more beside a video."""
    alone = cls.__name__ == MASKED and "video" in given
    return set(given) <= set(taken(cls)) and not (alone and len(given) > 1)


def _has_parts(cls: Any, parts: Mapping[str, Any]) -> bool:
    """Whether a checkpoint has what a pipeline is made of, and nothing besides that would be lost."""
    known = {name: p for name, p in inspect.signature(cls.__init__).parameters.items() if name != "self"}
    required = {name for name, p in known.items() if p.default is p.empty} - set(cls._optional_components)
    lacking = None, False, [None, None]
    held = {name for name, part in parts.items() if not name.startswith("_") and part not in lacking}
    return required <= held <= set(known)
