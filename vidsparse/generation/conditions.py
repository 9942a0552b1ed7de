"""Images and videos in the form that a pipeline takes."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from vidsparse.generation.pipeline_inputs import CONDITIONS, MASKED, taken

# Arguments that video to video cannot do without, and that have no default.
MORE = {"SkyReelsV2DiffusionForcingVideoToVideoPipeline": {"overlap_history": 17}}  # of 17 and 37, which it recommends


def build(cls: Any, pixels: Mapping[str, Any], frames: int | None) -> dict[str, Any]:
    """The arguments of `pipe(...)` for images and a video.

    Args:
        cls: the pipeline.
        pixels: of `INPUTS`, a `PIL.Image.Image`, or of the video a list of them.
        frames: of the video that is made.
    """
    if cls.__name__ == MASKED:
        return _masked(pixels, frames or 0)
    if cls.__name__ in CONDITIONS:
        return {"conditions": _conditions(cls, pixels, frames or 0)}
    return {taken(cls)[option]: value for option, value in pixels.items()} | MORE.get(cls.__name__, {})


def _masked(pixels: Mapping[str, Any], frames: int) -> dict[str, Any]:
    """Video and mask of VACE: white frames are made, black ones are given, as in the example of its documentation."""
    if "video" in pixels:
        return {"video": pixels["video"]}
    from PIL import Image

    size = next(iter(pixels.values())).size
    video, mask = [Image.new("RGB", size, (128, 128, 128))] * frames, [Image.new("L", size, 255)] * frames
    for option, place in (("image", 0), ("last_image", frames - 1)):
        if option in pixels:
            video[place], mask[place] = pixels[option], Image.new("L", size, 0)
    return {"video": video, "mask": mask}


def _conditions(cls: Any, pixels: Mapping[str, Any], frames: int) -> list[Any]:
    """The conditions of LTX: what is given at the start, and the last image in the last frame."""
    module = import_module(cls.__module__)
    if cls.__name__ == "LTX2ConditionPipeline":  # counts in latents
        places = {"last_image": -1}
        return [module.LTX2VideoCondition(frames=x, index=places.get(option, 0)) for option, x in pixels.items()]
    places, kinds = {"last_image": frames - 1}, {"video": "video"}
    return [
        module.LTXVideoCondition(**{kinds.get(option, "image"): x}, frame_index=places.get(option, 0))
        for option, x in pixels.items()
    ]
