"""Animations, folders of frames and still images: when their pictures are shown, and the pictures themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vidsparse.finetune.data.listing import IMAGES
from vidsparse.generation.media import cover

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

# Browsers show a picture for so long whose file says 0.
DEFAULT_DURATION = 0.1


@dataclass(frozen=True)
class Pictures:
    """What an animation, a folder of frames or an image holds.

    Attributes:
        frames: how many pictures it has.
        height, width: in pixels, upright.
        times: seconds at which each is shown, for an animation; none where the file does not say.
        fps: pictures a second of an animation on average; None where the file does not say.
    """

    frames: int
    height: int
    width: int
    times: tuple[float, ...] = ()
    fps: float | None = None


def look(path: Path) -> Pictures:
    """What there is to see. Every picture is decoded when it is read.

    Raises:
        ValueError: not an image, a damaged one, or a folder without images.
    """
    files = frames_of(path) if path.is_dir() else [path]
    with _opened(files[0]) as image:
        width, height = _upright(image).size
        count = len(files) if path.is_dir() else getattr(image, "n_frames", 1)
        if path.is_dir() or count == 1:
            return Pictures(count, height, width)
        times, now = list[float](), 0.0
        for index in range(count):
            image.seek(index)
            image.load()  # some formats know the duration only then
            times.append(now)
            now += (image.info.get("duration") or 0) / 1000 or DEFAULT_DURATION
        return Pictures(count, height, width, tuple(times), round(count / now, 2))


def read(path: Path, pictures: Pictures, frames: Sequence[int], height: int, width: int) -> Iterator[NDArray[np.uint8]]:
    """Decode pictures, uint8 [height, width, 3] each: resized until they cover the size, their centre cropped to it.

    Args:
        path: of the animation, the folder or the image.
        pictures: from `look`.
        frames: indices of pictures, ascending.
        height, width: in pixels.

    Raises:
        ValueError: one of them cannot be decoded.
    """
    import numpy as np

    if path.is_dir():
        files = frames_of(path)
        for index in frames:
            with _opened(files[index]) as image:
                yield np.asarray(cover(_opaque(_upright(image)), height, width))
        return
    with _opened(path) as image:
        for index in frames:
            if pictures.frames > 1:
                image.seek(index)
            yield np.asarray(cover(_opaque(_upright(image)), height, width))


def frames_of(folder: Path) -> list[Path]:
    """The images in a folder in the order of their names, where 10 comes after 9.

    Raises:
        ValueError: there are none.
    """
    files = [path for path in folder.iterdir() if path.suffix.lower() in IMAGES and not path.name.startswith(".")]
    if not files:
        raise ValueError("it is a folder without images")
    return sorted(files, key=lambda path: [(part.zfill(20), part) for part in re.split(r"(\d+)", path.name)])


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """Within the context, an image; what goes wrong with it is a `ValueError`."""
    import PIL.Image

    try:
        with PIL.Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, EOFError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"{path.name} cannot be read as an image: {error}") from error


def _upright(image: Image) -> Image:
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def _opaque(image: Image) -> Image:
    """RGB; what is transparent becomes black, and 16 bits of grey are scaled to 8."""
    import numpy as np
    import PIL.Image

    if image.mode.startswith("I"):
        image = PIL.Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    whole = image.convert("RGBA")
    black = PIL.Image.new("RGBA", whole.size, (0, 0, 0, 255))
    return PIL.Image.alpha_composite(black, whole).convert("RGB")
