"""Where the tokens of a video are: a box of latent frames x height x width, with other tokens before and after it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

Tile = tuple[int, int, int]


@dataclass(frozen=True)
class VideoGrid:
    """The token layout of one attention layer.

    The sequence is `prefix` tokens, then the video in raster order (frame, row, column), then `suffix` tokens.

    Attributes:
        frames: latent frames after patchify (`(video_frames - 1) // 4 + 1` for most VAEs).
        height: token rows of a frame (pixels / VAE stride / patch size).
        width: token columns of a frame.
        prefix: tokens before the video that are not video (text, condition); always attended exactly.
        suffix: tokens after the video that are not video.

    Raises:
        TypeError: a size that is no whole number.
        ValueError: a size below 1 or a negative count.
    """

    frames: int
    height: int
    width: int
    prefix: int = 0
    suffix: int = 0

    def __post_init__(self) -> None:
        if not all(isinstance(n, int) for n in (*self.view, self.prefix, self.suffix)):
            raise TypeError(f"{self} is no grid: sizes are whole numbers of type int (use // to divide pixels)")
        if min(self.view) < 1 or min(self.prefix, self.suffix) < 0:
            raise ValueError(
                f"{self} is no grid: frames, height and width are at least 1, prefix and suffix at least 0"
            )

    @property
    def view(self) -> tuple[int, int, int]:
        """(frames, height, width)."""
        return self.frames, self.height, self.width

    @property
    def video_tokens(self) -> int:
        return self.frames * self.height * self.width

    @property
    def tokens(self) -> int:
        """All tokens of the sequence, prefix and suffix included."""
        return self.prefix + self.video_tokens + self.suffix

    @property
    def raster(self) -> VideoGrid:
        """The same tokens as one line: what published raster-order methods see."""
        return VideoGrid(1, 1, self.video_tokens, self.prefix, self.suffix)

    def tiles(self, tile: Tile) -> tuple[int, int, int]:
        """How many tiles stand along each axis; the last may be ragged."""
        check_tile(tile)
        frames, height, width = (math.ceil(size / side) for size, side in zip(self.view, tile, strict=True))
        return frames, height, width

    def padding(self, tile: Tile) -> float:
        """Slots of the tiles that hold no token, as a fraction of the video's tokens."""
        return math.prod(self.tiles(tile)) * math.prod(tile) / self.video_tokens - 1

    def best_tile(self, volume: int = 128, prefer: Tile | None = None, compactness: float = 0.02) -> Tile:
        """The tile of `volume` tokens that suits this grid best: least padding, then the most compact.

        Candidates have power-of-two sides. With `prefer`, that tile is taken unless another saves more than a tenth
        of the tokens as padding. `compactness` is the padding, as a fraction of the tokens, that is paid for a tile of
        half the elongation (longest side / shortest side).

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
    powers = [1 << i for i in range(volume.bit_length())]
    candidates = [(f, h, volume // f // h) for f in powers for h in powers if f * h <= volume]
    return min(candidates, key=lambda t: (grid.padding(t) + compactness * math.log2(max(t) / min(t)), t))


def check_tile(tile: Tile, name: str = "tile") -> Tile:
    """Return the tile, or raise `ValueError` when it is not a tuple of three sides of at least 1."""
    if not isinstance(tile, tuple) or len(tile) != 3 or not all(isinstance(n, int) and n >= 1 for n in tile):
        raise ValueError(f"{name}={tile} must be a tuple of three whole numbers of at least 1: (frames, height, width)")
    return tile
