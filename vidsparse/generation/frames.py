"""From a video's frames and pixels to latents and tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, cast

from vidsparse.grid import VideoGrid, latent_frames
from vidsparse.patterns import Pattern

if TYPE_CHECKING:
    from vidsparse.runtime.adapter import Adapter

# Sizes that share a class with another model: the class, and what its checkpoint changes.
VARIANTS: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "wan-5b": ("WanTransformer3DModel", {"num_attention_heads": 24, "in_channels": 48, "out_channels": 48}, (4, 16)),
}
CHOSEN_TILE = 128  # tokens of the tiles that patterns choose; a few take 64 where frames are small
MOST_PAIRS = 2**30  # of tiles in a map that fits the memory of a usual machine


def fit_frames(frames: int, stride: int) -> int:
    """The number of frames nearest to `frames` that a VAE with this temporal stride produces."""
    return (frames - 1 + (stride - 1) // 2) // stride * stride + 1


@dataclass(frozen=True)
class Geometry:
    """How a model makes tokens of a video, and the shape of its attention.

    Attributes:
        frame_stride, vae_stride: frames, and pixels in height and width, that a latent covers.
        patch: latents (frames, height, width) that a token covers.
        heads, head_dim: of self-attention.
        adapter: of the model's family.
        longest: tokens that the model's positions reach on each axis; None where they have no bound.
    """

    frame_stride: int
    vae_stride: int
    patch: tuple[int, int, int]
    heads: int
    head_dim: int
    adapter: Adapter = field(compare=False)
    longest: int | None = None

    @property
    def side(self) -> int:
        """Pixels that a token covers in height and in width."""
        return self.vae_stride * self.patch[1]

    def frames(self, frames: int) -> tuple[int, int]:
        """The number of frames nearest to `frames` that the VAE produces, and how many latent frames it has."""
        if (own := self.adapter.latents(frames)) is not None:
            return own
        nearest = fit_frames(frames, self.frame_stride)
        return nearest, latent_frames(nearest, self.frame_stride)

    def misfit(self, frames: int, used: int) -> str:
        """Why another number of frames is used, and which are possible where the stride says so."""
        legal = ", ".join(str(n * self.frame_stride + 1) for n in range(3))
        if self.adapter.latents(frames) is None and self.patch[0] == 1:
            return (
                f"{frames} frames do not fit the VAE's stride of {self.frame_stride} in time: legal are {legal}, ...; "
                f"using {used}"
            )
        return f"{frames} frames do not fit the VAE; using {used}"

    def grid(self, frames: int, height: int, width: int) -> VideoGrid:
        """The grid of a video's tokens, without text.

        Args:
            frames: of the video; one that the VAE does not produce counts as the nearest that it does. Latent frames
                that do not fill a token are padded, as the pipelines of CogVideoX 1.5 do.
            height, width: in pixels; what is left of a token at the border is cut off.

        Raises:
            ValueError: a frame smaller than one token.
        """
        _, latents = self.frames(frames)
        rows, columns = height // self.side, width // self.side
        if not rows or not columns:
            raise ValueError(f"{width}x{height} is smaller than one token, which covers {self.side}x{self.side} pixels")
        return VideoGrid(math.ceil(latents / self.patch[0]), rows, columns)

    def check(self, frames: int, height: int, width: int, any_frames: bool = False) -> None:
        """Refuse a video that is longer or larger than the model's table of positions.

        Args:
            frames, height, width: see `grid`.
            any_frames: the table is extended in time.

        Raises:
            ValueError: says how far it reaches.
        """
        grid = self.grid(frames, height, width)
        sides = grid.view[1:] if any_frames else grid.view
        if self.longest is not None and max(sides) > self.longest:
            raise ValueError(
                f"{frames} frames of {width}x{height} are {'x'.join(map(str, grid.view))} tokens, and the model has "
                f"positions for {self.longest} on each axis; make a shorter or smaller video"
            )


def families() -> dict[str, str]:
    """Short name -> class of transformers, for every class with an adapter: `wan`, `ltx`, `hunyuanvideo15`."""
    from vidsparse.runtime.registry import served

    return {_short(cls): cls for cls in served()}


def geometry(model: str) -> Geometry:
    """The geometry of a model, of its finest transformer if it has two, from settings alone: no weights are read.

    Args:
        model: a name of `families()` or `VARIANTS`, a class of transformers, a model that ships, a folder or
            a Hub id.

    Raises:
        ValueError: an unknown name, or a folder without a transformer.
        OSError: the settings cannot be read.
        NotImplementedError: no adapter serves the transformer.
    """
    from vidsparse.generation.cascade import finest
    from vidsparse.generation.config_files import read_config
    from vidsparse.generation.models import source_of
    from vidsparse.generation.transformers import configured_transformers

    if model in VARIANTS:
        name, changes, stride = VARIANTS[model]
        return geometry_of(next(iter(configured_transformers(name).values()))[0], changes, stride)
    name = families().get(model, model)
    cls, settings = finest(configured_transformers(name))
    of_class = name == cls.__name__
    return geometry_of(cls, settings, None if of_class else vae_stride(read_config(source_of(name), "vae/config.json")))


def geometry_of(cls: type[Any], settings: dict[str, Any], vae_stride: tuple[int, int] | None = None) -> Geometry:
    """The geometry of a class of transformers with some settings; by default the VAE is the family's first."""
    from torch.nn import Linear

    from vidsparse.generation.transformers import defaults, without_weights
    from vidsparse.runtime.registry import adapter_of

    adapter = adapter_of(cls)
    config = {**defaults(cls), **settings}
    attention = next(iter(adapter.self_attentions(without_weights(cls, settings)).values()))
    heads = adapter.heads(attention) or 1
    # Where no width is known, what goes in is as wide as what comes out.
    width = adapter.attention_width(attention)
    width = width or next(layer.in_features for layer in attention.modules() if isinstance(layer, Linear))
    return Geometry(
        *(vae_stride or adapter.vae_stride),
        adapter.patch(config),
        heads,
        width // heads,
        adapter,
        config.get("rope_max_seq_len"),
    )


def pipeline_geometry(pipe: Any) -> Geometry:
    """The geometry of a pipeline's finest transformer and its VAE; that of the family's first VAE without one."""
    from vidsparse.generation.cascade import finest
    from vidsparse.runtime.pipeline import transformers_of

    transformers: dict[str, Any] = transformers_of(pipe)
    configured = {name: (type(x), dict(x.config)) for name, x in transformers.items()}
    vae = getattr(pipe, "vae", None)
    return geometry_of(*finest(configured), None if vae is None else vae_stride(vae.config))


def check_map(grid: VideoGrid, pattern: Pattern) -> None:
    """Refuse a pattern whose map of a grid is larger than memory.

    Raises:
        ValueError: says how many tiles are possible.
    """
    tiles, most = _tiles(pattern, grid), math.isqrt(MOST_PAIRS)
    if tiles > most:
        raise ValueError(
            f"{grid.tokens:,} tokens are {tiles:,} tiles, {tiles / most:.1f} times what a block map can hold "
            f"({most:,}); use fewer frames, a smaller size or larger tiles"
        )


def _tiles(pattern: Pattern, grid: VideoGrid) -> int:
    """The tiles of a grid along one side of a pattern's map; for tiles that the pattern chooses, about as many."""
    values: dict[str, Any] = {f.name: getattr(pattern, f.name) for f in fields(cast("Any", pattern))}
    inner = (part for value in values.values() for part in (value if isinstance(value, tuple) else (value,)))
    if patterns := [part for part in inner if isinstance(part, Pattern)]:
        return max(_tiles(part, grid) for part in patterns)
    tokens = grid.video_tokens
    if values.get("routing") == "token":
        return tokens
    if "block" in values:  # of the tokens in raster order
        block: int = values["block"]
        return math.ceil(tokens / block)
    shapes = [values[name] for name in ("tile", "long_tile") if name in values]
    chosen = math.ceil(tokens / CHOSEN_TILE)
    counts: list[int] = [math.prod(grid.tiles(shape)) if shape else chosen for shape in shapes]
    return max(counts, default=chosen)


def vae_stride(vae: Mapping[str, Any] | None) -> tuple[int, int] | None:
    """Frames and pixels that a latent covers, from the settings of a VAE; None where they do not say so."""

    def value(axis: str) -> int | None:
        names = f"scale_factor_{axis}", f"{axis}_compression_ratio"
        return next((vae[name] for name in names if vae.get(name)), None) if vae else None

    frames, pixels = value("temporal"), value("spatial")
    return (frames, pixels) if frames and pixels else None


def _short(cls: str) -> str:
    return cls.removesuffix("Model").removesuffix("3D").split("Transformer")[0].removesuffix("Omni").lower()
