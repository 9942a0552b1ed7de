"""Images and videos in files: looked at before a model is loaded, and read when it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from vidsparse.generation import video_file

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Media:
    """What is known of an image or a video before its pixels are needed.

    Attributes:
        path: of the file.
        height, width: in pixels, upright.
        frames: of a video, up to as many as were asked for; of an image, 1, or the pictures of an animation.
        fps: frames a second of a video; None for an image.
    """

    path: Path
    height: int
    width: int
    frames: int = 1
    fps: float | None = None


def look_at_image(path: Path) -> Media:
    """The size of an image, which is decoded once to know that it can be.

    Raises:
        OSError: no such file, a folder, or a file without leave to read.
        ValueError: not an image, or a damaged one.
    """
    return _look_at_image(path, *_state(path))


def look_at_video(path: Path, frames: int | None = None) -> Media:
    """The size and the length of a video, which is decoded once to know that it can be.

    Args:
        path: of the file.
        frames: how many to decode and to count; None: all.

    Raises:
        OSError: no such file, a folder, or a file without leave to read.
        ValueError: not a video, a damaged one, or one without frames.
    """
    return _look_at_video(path, frames, *_state(path))


def read_image(path: Path) -> Image:
    """An image as diffusers' `load_image` reads it: upright, RGB, without transparency; of an animation, the first.

    Grey values of 16 bits are scaled to 8, where `load_image` would cut them off.

    Raises:
        ValueError: not an image, or a damaged one.
    """
    import numpy as np
    from diffusers.utils.loading_utils import load_image
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):
                return load_image(Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8)))
            return load_image(image)
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not an image, or not of a kind that Pillow reads") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def read_video(path: Path, frames: int, last: bool = False) -> list[Image]:
    """The first frames of a video, or the last ones, up to `frames`: each stored frame once, as a player shows it.

    Raises:
        ValueError: not a video, or a damaged one, with the reason.
    """
    from PIL import Image

    footage = video_file.look(path)
    stored = range(len(footage.times))
    wanted = stored[-frames:] if last else stored[:frames]
    return [Image.fromarray(frame) for frame in video_file.read(path, footage, wanted)]


def cover(image: Image, height: int, width: int) -> Image:
    """An image resized until it covers a size, its centre cropped to it."""
    from PIL import Image, ImageOps

    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def cropped(media: Media, height: int, width: int) -> float:
    """The share of a picture that `cover` crops."""
    wide, asked = media.width / media.height, width / height
    return 1 - min(wide, asked) / max(wide, asked)


def _state(path: Path) -> tuple[int, int]:
    """When a file was changed, and how long it is: what was seen of it holds as long as both are the same.

    Raises:
        OSError: no such file, a folder, or a file without leave to read.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give one file")
    try:
        with path.open("rb"):
            found = path.stat()
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error.strerror}") from None
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=1024)
def _look_at_image(path: Path, *state: int) -> Media:
    from PIL import Image

    image = read_image(path)
    with Image.open(path) as file:
        return Media(path, image.height, image.width, getattr(file, "n_frames", 1))


@lru_cache(maxsize=1024)
def _look_at_video(path: Path, frames: int | None, *state: int) -> Media:
    if path.suffix.lower() not in video_file.SUFFIXES:
        raise ValueError(f"{path} is not a video: its name must end in one of {', '.join(video_file.SUFFIXES)}")
    try:
        footage = video_file.look(path)
        if footage.cut and (frames is None or frames > footage.frames):
            raise ValueError(f"it is damaged: the file ends after {footage.frames} frames")
        wanted = range(footage.frames)[:frames]
        for _ in video_file.read(path, footage, wanted):
            continue  # decoded to know that it can be
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from error
    return Media(path, footage.height, footage.width, len(wanted), footage.fps)
