"""Where the tokens of a video are: a box of latent frames x height x width, with other tokens before and after it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from vidsparse_kernels.layout import Tiling

Tile = tuple[int, int, int]

LARGE_FRAME = 1024  # tokens: smaller frames get tiles of half the size, because there are fewer tiles to choose from


class AnyGrid(Protocol):
    """What block maps need of the tokens of a sequence: a `VideoGrid` or a `SparseVolume`."""

    @property
    def prefix(self) -> int: ...
    @property
    def suffix(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def sides(self) -> str: ...
    def tiling(self, tile: Tile) -> Tiling: ...


@dataclass(frozen=True)
class VideoGrid:
    """The token layout of one attention layer.

    The sequence is `prefix` tokens, then the video in raster order (frame, row, column), then `suffix` tokens.

    Attributes:
        frames: latent frames after patchify (`latent_frames(video_frames)` for most VAEs).
        height: token rows of a frame (pixels / VAE stride / patch size).
        width: token columns of a frame.
        prefix: tokens before the video that are not part of it (text, condition); always attended exactly.
        suffix: tokens after the video that are not part of it.

    Raises:
        TypeError: a size that is not an int.
        ValueError: frames, height or width below 1, or a negative prefix or suffix.
    """

    frames: int
    height: int
    width: int
    prefix: int = 0
    suffix: int = 0

    def __post_init__(self) -> None:
        if not all(is_whole(n) for n in (*self.view, self.prefix, self.suffix)):
            raise TypeError(f"{self} is not a valid grid: all sizes must be of type int (use // to divide pixels)")
        if min(self.view) < 1 or min(self.prefix, self.suffix) < 0:
            raise ValueError(
                f"{self} is not a valid grid: frames, height and width must be at least 1, prefix and suffix at least 0"
            )

    def __repr__(self) -> str:
        names = [name for name in ("prefix", "suffix") if getattr(self, name) != 0]
        given = ", ".join(f"{name}={getattr(self, name)!r}" for name in ("frames", "height", "width", *names))
        return f"VideoGrid({given})"

    @property
    def sides(self) -> str:
        """The sides as text, such as "9x32x32"."""
        return "x".join(map(str, self.view))

    @property
    def view(self) -> tuple[int, int, int]:
        """(frames, height, width)."""
        return self.frames, self.height, self.width

    @property
    def video_tokens(self) -> int:
        """The tokens of the video alone."""
        return self.frames * self.height * self.width

    @property
    def tokens(self) -> int:
        """All tokens of the sequence, prefix and suffix included."""
        return self.prefix + self.video_tokens + self.suffix

    @property
    def raster(self) -> VideoGrid:
        """The same tokens as a single row, which is how published raster-order methods see them."""
        return VideoGrid(1, 1, self.video_tokens, self.prefix, self.suffix)

    def tiles(self, tile: Tile) -> tuple[int, int, int]:
        """The number of tiles along each axis; the last tile of an axis may be ragged."""
        check_tile(tile)
        frames, height, width = (math.ceil(size / side) for size, side in zip(self.view, tile, strict=True))
        return frames, height, width

    def tiling(self, tile: Tile) -> Tiling:
        """The sequence in tiles, as kernels take it."""
        return Tiling(self.view, check_tile(tile), self.prefix, self.suffix)

    def padding(self, tile: Tile) -> float:
        """Slots of the tiles that hold no token, as a fraction of the video's tokens."""
        return math.prod(self.tiles(tile)) * math.prod(tile) / self.video_tokens - 1

    @property
    def default_volume(self) -> int:
        """The tokens of a tile for patterns that keep many tiles of one frame: 128, or 64 for frames under 1024."""
        return 128 if self.height * self.width >= LARGE_FRAME else 64

    def best_tile(self, volume: int = 128, prefer: Tile | None = None, compactness: float = 0.02) -> Tile:
        """The tile of `volume` tokens that suits this grid best: the least padding, then the most compact.

        Candidates have power-of-two sides. With `prefer`, that tile is taken unless another one saves more than a tenth
        of the tokens as padding. `compactness` is the extra padding, as a fraction of the tokens, that is accepted to
        halve the elongation of the tile (longest side / shortest side).

        Raises:
            ValueError: `volume` is not a power of two, or `prefer` has another volume.
        """
        if volume < 1 or volume & (volume - 1):
            raise ValueError(f"volume={volume} must be a power of two, such as 64 or 128")
        if prefer is not None and math.prod(check_tile(prefer)) != volume:
            raise ValueError(f"prefer={prefer} holds {math.prod(prefer)} tokens, not volume={volume}")
        best = _best_tile(self.view, volume, compactness)
        if prefer is not None and self.padding(prefer) <= self.padding(best) + 0.1:
            return prefer
        return best


@lru_cache(maxsize=1024)
def _best_tile(view: tuple[int, int, int], volume: int, compactness: float) -> Tile:
    grid = VideoGrid(*view)
    return min(tiles_of_volume(volume), key=lambda t: (grid.padding(t) + compactness * math.log2(max(t) / min(t)), t))


def tiles_of_volume(volume: int) -> list[Tile]:
    """All tiles of `volume` tokens, a power of two, whose sides are powers of two."""
    powers = [1 << i for i in range(volume.bit_length())]
    return [(f, h, volume // f // h) for f in powers for h in powers if f * h <= volume]


def latent_frames(frames: int, stride: int = 4) -> int:
    """The latent frames of a video: its first frame makes one, every `stride` more frames another.

    `stride` is the temporal stride of the VAE. Of frames that do not fill a stride nothing remains.
    """
    return (frames - 1) // stride + 1


def is_whole(value: object, least: int | None = None) -> bool:
    """Whether a value is an int, and not a bool; with `least`, also at least that."""
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)


def check_tile(tile: Tile, name: str = "tile") -> Tile:
    """Return the tile, or raise `ValueError` unless it is a tuple of three whole numbers of at least 1."""
    if not isinstance(tile, tuple) or len(tile) != 3 or not all(is_whole(n, 1) for n in tile):
        raise ValueError(
            f"{name}={tile!r} must be a tuple of three whole numbers of at least 1: (frames, height, width)"
        )
    return tile
