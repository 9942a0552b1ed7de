"""Videos as files for people: mp4, two videos side by side, and strips of frames as PNG.

Frames are float32 [frames, height, width, 3] in [0, 1], as diffusers returns them with `output_type="np"`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from vidsparse.atomic import replacing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Frames: TypeAlias = NDArray[np.float32]
    Pixels: TypeAlias = NDArray[np.uint8]

SMALL = 256  # pixels: a video with a shorter side under this is enlarged
PAPER, INK, MARK = (255, 255, 255), (40, 44, 52), (178, 34, 34)
CELL = 128  # pixels: about the height of a frame in a strip


def default_scale(frames: Frames) -> int:
    """How many screen pixels a pixel should have for a person to see the video."""
    return 4 if min(frames.shape[1:3]) < SMALL else 1


def to_pixels(frames: Frames, scale: int = 1) -> Pixels:
    """uint8 [frames, height * scale, width * scale, 3]: each pixel becomes a square, nothing is blurred."""
    import numpy as np

    pixels: Pixels = (frames.clip(0, 1) * 255).round().astype(np.uint8)
    return pixels.repeat(scale, axis=1).repeat(scale, axis=2)


def side_by_side(left: Pixels, right: Pixels, names: tuple[str, str]) -> Pixels:
    """Two videos of one size next to each other, a thin line between them and their names above."""
    import numpy as np

    frames, height, width = left.shape[:3]
    line = np.full((frames, height, 4, 3), PAPER, np.uint8)
    both = np.concatenate((left, line, right), axis=2)
    band = _band(names, width, both.shape[2])
    return np.concatenate((np.broadcast_to(band, (frames, *band.shape)), both), axis=1)


def _band(names: tuple[str, str], second: int, width: int, height: int = 24) -> Pixels:
    """uint8 [height, width, 3]: the names, the second one above the second video."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    for name, x in zip(names, (6, second + 10), strict=True):
        draw.text((x, height / 2), name, INK, ImageFont.load_default(14), anchor="lm")
    return np.asarray(image)


def write_video(path: Path, pixels: Pixels, fps: int, comment: str = "") -> None:
    """Write an mp4 (H.264) that every player shows; a side of odd length loses its last row or column.

    Args:
        path: of the file.
        pixels: of the frames.
        fps: frames a second.
        comment: kept in the file as its comment, such as what it was made with.
    """
    import imageio.v2 as imageio

    even = pixels[:, : pixels.shape[1] // 2 * 2, : pixels.shape[2] // 2 * 2]
    settings: dict[str, Any] = {"fps": fps, "quality": None, "macro_block_size": 1}
    settings["ffmpeg_params"] = ["-crf", "14", "-preset", "slow", "-movflags", "+faststart"]
    settings["ffmpeg_params"] += ["-metadata", f"comment={comment}"] if comment else []
    with replacing(path) as temporary:
        imageio.mimwrite(temporary, list(even), format="FFMPEG", **settings)


def write_strip(path: Path, rows: dict[str, Frames], count: int = 9, worst: int | None = None) -> None:
    """Write a PNG: for each video its name and a row of frames, evenly spaced in time, with their numbers.

    Args:
        path: of the file.
        rows: name -> video; all of one size.
        count: of the frames of a row.
        worst: a frame that is shown besides, and marked.
    """
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    total, height, width = next(iter(rows.values())).shape[:3]
    spaced = np.linspace(0, total - 1, min(count, total)).round().astype(int)
    shown = np.unique([*spaced, *([] if worst is None else [worst])])
    factor = max(1, round(CELL / height)) if height < CELL else CELL / height
    cell = round(width * factor), round(height * factor)
    gap, line, font = 6, 24, ImageFont.load_default(15)
    size = gap + len(shown) * (cell[0] + gap), len(rows) * (line + cell[1] + gap) + line
    image = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(image)
    resampling = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    for row, (name, frames) in enumerate(rows.items()):
        top = row * (line + cell[1] + gap)
        draw.text((gap, top + line / 2), name, INK, font, anchor="lm")
        for column, pixels in enumerate(to_pixels(frames[shown])):
            image.paste(Image.fromarray(pixels).resize(cell, resampling), (gap + column * (cell[0] + gap), top + line))
    for column, number in enumerate(shown):
        middle = gap + column * (cell[0] + gap) + cell[0] / 2
        name, colour = (f"frame {number}: worst", MARK) if number == worst else (f"frame {number}", INK)
        draw.text((middle, size[1] - line / 2), name, colour, font, anchor="mm")
    with replacing(path) as temporary:
        image.save(temporary)
