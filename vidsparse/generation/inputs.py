"""The images and the video that a video starts from: as files, and as a pipeline gets them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidsparse.generation import media
from vidsparse.generation.conditions import build
from vidsparse.generation.frames import Geometry, geometry
from vidsparse.generation.media import Media
from vidsparse.generation.pipeline_inputs import (
    FROM_END,
    INPUTS,
    KEEPS_ASPECT,
    check_last_image,
    makes_whole,
    option_of,
    parameters,
    taken,
)
from vidsparse.generation.transformers import configured_transformers

if TYPE_CHECKING:
    from vidsparse.generation.models import Model

NOTED = 0.02  # share of a picture that is cropped without a note


@dataclass(frozen=True)
class Inputs:
    """Files that a video starts from.

    Attributes:
        image, last_image: its first and its last frame.
        video: what is changed, or continued.
    """

    image: Path | None = None
    last_image: Path | None = None
    video: Path | None = None

    @property
    def given(self) -> tuple[str, ...]:
        """The names of those that are given."""
        return tuple(name for name in INPUTS if getattr(self, name) is not None)

    def plan(self, model: Model, frames: int | None, height: int | None, width: int | None) -> Plan:
        """Look at the files, and decide the size of the video. No weights are read.

        Args:
            model: whose pipeline takes them, see `Model.serving`.
            frames, height, width: that were asked for; None: as the files and the model say.

        Raises:
            OSError: a file that is missing or cannot be read.
            ValueError: a file of another kind, one that is damaged, or a video that is too short.
        """
        if not self.given:
            return Plan(frames=frames, height=height, width=width)
        cls, known = model.pipeline_class, geometry(model.name)
        if self.last_image is not None:
            check_last_image(cls, model.parts, next(iter(configured_transformers(model.name).values()))[1])
        # A video that is continued may be longer than what is made of it, which then starts from a part of it.
        whole = self.video is not None and makes_whole(cls)
        if whole:
            most = None if frames is None else frames + known.frame_stride
        else:
            most = None if cls.__name__ in FROM_END else frames or model.default("num_frames")
        files = {name: _look(name, getattr(self, name), most) for name in self.given}
        notes = [
            f"{option_of(name)} {file.path} has {file.frames} pictures; the first is used"
            for name, file in files.items()
            if name != "video" and file.frames > 1
        ]
        fps = None
        if whole:
            video = files["video"]
            wanted = video.frames if frames is None else frames
            if video.frames < wanted:
                raise ValueError(
                    f"--video {video.path} has {video.frames} frames, and --frames asks for {wanted}; give fewer, or "
                    "leave it out"
                )
            frames, fps = _fitting(known, wanted, video.frames), video.fps
            if frames != wanted:
                notes.append(known.misfit(wanted, frames))
        if "height" in parameters(cls):
            first = next(iter(files.values()))
            height, width = _size(model, known, first, height, width)
        if height and width:
            notes += [
                f"{option_of(name)} {file.path} is {file.width}x{file.height}: edges are cut off for {width}x{height}"
                for name, file in files.items()
                if media.cropped(file, height, width) > NOTED
            ]
        return Plan(files, frames, height, width, fps, tuple(notes))


@dataclass(frozen=True)
class Plan:
    """The size of a video, and the files that it starts from.

    Attributes:
        files: of `INPUTS`, what is known of each.
        frames, height, width: of the video; None: as the pipeline decides.
        fps: frames a second of the video that is changed; None where none is.
        notes: what a user should know of how the files are used.
    """

    files: Mapping[str, Media] = field(default_factory=dict)
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    notes: tuple[str, ...] = ()

    def settings(self, cls: Any) -> dict[str, Any]:
        """The arguments of `pipe(...)` for the size; a pipeline that changes a video takes its frames as they are."""
        size = {"num_frames": self.frames, "height": self.height, "width": self.width}
        left_out = {"num_frames"} - parameters(cls).keys() if "video" in self.files and makes_whole(cls) else set()
        return {name: value for name, value in size.items() if value is not None and name not in left_out}

    def stand_ins(self, cls: Any) -> dict[str, Any]:
        """Arguments in the place of those with pixels, for checks before they are read."""
        from PIL import Image

        small = Image.new("RGB", (16, 16))
        return {taken(cls)[name]: [small] if name == "video" else small for name in self.files}

    def read(self, cls: Any, frames: int | None) -> dict[str, Any]:
        """The arguments of `pipe(...)` with pixels.

        Args:
            cls: the class of the pipeline.
            frames: of the video that is made.

        Raises:
            ValueError: a file that can no longer be read.
        """
        if not self.files:
            return {}
        pixels: dict[str, Any] = {}
        for name, file in self.files.items():
            if name == "video":
                pictures = media.read_video(file.path, frames or file.frames, last=cls.__name__ in FROM_END)
            else:
                pictures = [media.read_image(file.path)]
            if self.height and self.width:
                pictures = [media.cover(picture, self.height, self.width) for picture in pictures]
            pixels[name] = pictures if name == "video" else pictures[0]
        return build(cls, pixels, frames)


def _look(name: str, path: Path, frames: int | None) -> Media:
    try:
        return media.look_at_video(path, frames) if name == "video" else media.look_at_image(path)
    except OSError as error:
        raise OSError(f"{option_of(name)} {error}") from error
    except ValueError as error:
        raise ValueError(f"{option_of(name)} {error}") from error


def _fitting(known: Geometry, wanted: int, most: int) -> int:
    """The number of frames nearest to what is wanted that makes whole tokens, and of which there are enough.

    Raises:
        ValueError: there are too few for one token.
    """
    for number in range(wanted, 0, -1):
        frames, latents = known.frames(number)
        if frames <= most and latents % known.patch[0] == 0:
            return frames
    raise ValueError(f"--video has {most} frames, too few for this model")


def _size(model: Model, known: Geometry, first: Media, height: int | None, width: int | None) -> tuple[Any, Any]:
    """Height and width of the video: what is given, the other one after the first file, else the model's.

    Returns:
        Both; None and None where the pipeline decides by itself.
    """
    ratio, side = first.height / first.width, known.side
    if height and width:
        return height, width
    if height:
        return height, max(side, round(height / ratio / side) * side)
    if width:
        return max(side, round(width * ratio / side) * side), width
    default = _default_size(model, known)
    if default is None or model.pipeline_class.__name__ not in KEEPS_ASPECT:
        return default or (None, None)
    area = default[0] * default[1]
    return tuple(max(side, int(math.sqrt(x) // side) * side) for x in (area * ratio, area / ratio))  # type: ignore[return-value]


def _default_size(model: Model, known: Geometry) -> tuple[int, int] | None:
    """Height and width that the pipeline makes by default; None where it decides by itself."""
    if (height := model.default("height")) and (width := model.default("width")):
        return height, width
    settings = next(iter(configured_transformers(model.name).values()))[1]
    rows, columns = settings.get("sample_height"), settings.get("sample_width")
    return (rows * known.vae_stride, columns * known.vae_stride) if rows and columns else None
