"""From frames and pixels to tokens: every family's grid comes from its adapter."""

from __future__ import annotations

import diffusers
import pytest
import torch
from twins import class_or_skip, ignores_warnings, twin

from vidsparse import (
    Gridded,
    GriddedHeads,
    MixtureOfBlocks,
    Pattern,
    Radial,
    RadialRaster,
    Reuse,
    StepSchedule,
    TopBlocks,
)
from vidsparse.generation.frames import VARIANTS, check_map, families, fit_frames, geometry, geometry_of
from vidsparse.grid import Tile, VideoGrid, latent_frames
from vidsparse.shapes.model import FOLDER
from vidsparse_pipelines import ADAPTERS
from vidsparse_pipelines.wan import WanAdapter

pytestmark = ignores_warnings
# Frames, height and width of the pipeline's default video -> its tokens.
SIZES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "AllegroTransformer3DModel": ((88, 720, 1280), (22, 45, 80)),
    "AnyFlowFARTransformer3DModel": ((81, 480, 832), (21, 30, 52)),
    "CogVideoXTransformer3DModel": ((49, 480, 720), (13, 30, 45)),
    "ConsisIDTransformer3DModel": ((49, 480, 720), (13, 30, 45)),
    "Cosmos3OmniTransformer": ((93, 704, 1280), (24, 22, 40)),
    "CosmosTransformer3DModel": ((121, 704, 1280), (16, 44, 80)),
    "HeliosTransformer3DModel": ((33, 384, 640), (9, 24, 40)),
    "HunyuanVideo15Transformer3DModel": ((121, 480, 848), (31, 30, 53)),
    "HunyuanVideoFramepackTransformer3DModel": ((33, 640, 640), (9, 40, 40)),
    "HunyuanVideoTransformer3DModel": ((129, 720, 1280), (33, 45, 80)),
    "Kandinsky5Transformer3DModel": ((121, 512, 768), (31, 32, 48)),
    "LTX2VideoTransformer3DModel": ((121, 512, 768), (16, 16, 24)),
    "LTXVideoTransformer3DModel": ((161, 512, 704), (21, 16, 22)),
    "MiniMaxH3Transformer3DModel": ((124, 768, 1344), (37, 24, 42)),
    "MochiTransformer3DModel": ((19, 480, 848), (4, 30, 53)),
    "SkyReelsV2Transformer3DModel": ((97, 544, 960), (25, 34, 60)),
    "WanTransformer3DModel": ((81, 480, 832), (21, 30, 52)),
    "WanVACETransformer3DModel": ((81, 480, 832), (21, 30, 52)),
}


@pytest.mark.parametrize(
    ("frames", "stride", "used"), [(33, 4, 33), (34, 4, 33), (35, 4, 33), (36, 4, 37), (2, 4, 1), (10, 8, 9), (7, 1, 7)]
)
def test_nearest_legal_frames(frames: int, stride: int, used: int) -> None:
    assert fit_frames(frames, stride) == used
    assert (latent_frames(used, stride) - 1) * stride + 1 == used


def test_every_adapter_has_a_size() -> None:
    assert set(SIZES) == set(ADAPTERS) == set(families().values())
    assert families()["wan"] == "WanTransformer3DModel" and families()["ltxvideo"] == "LTXVideoTransformer3DModel"


@pytest.mark.parametrize("name", SIZES)
def test_the_grid_of_a_default_video(name: str) -> None:
    known = geometry_of(class_or_skip(name), {})
    video, view = SIZES[name]
    assert known.grid(*video) == VideoGrid(*view)
    assert known.frames(video[0]) == (video[0], view[0] * known.patch[0])
    # Pixels that do not fill a token are cut off.
    assert known.grid(video[0], video[1] + known.side - 1, video[2]).view == view
    small = twin(name)
    attention = next(iter(small.adapter.self_attentions(small.build()).values()))
    assert known.adapter.__class__ is small.adapter.__class__ and known.heads >= small.adapter.heads(attention)


@pytest.mark.parametrize("name", SIZES)
def test_the_tokens_of_pixels_are_those_that_the_adapter_reads_from_latents(name: str) -> None:
    small, known = twin(name), geometry_of(class_or_skip(name), {})
    model, view = small.build(), (22, 5, 7)
    sides = tuple(side * patch for side, patch in zip(view, known.patch, strict=True))
    frames = next(n for n in range(1, 400) if known.frames(n) == (n, sides[0]))
    grid = known.grid(frames, view[1] * known.side, view[2] * known.side)
    assert grid.view == view == small.grid(view).view
    latents = small.arguments(model, view).get("hidden_states")
    if isinstance(latents, torch.Tensor) and latents.ndim == 5:  # else the pipeline has made tokens of them
        _, a, b, *rest = latents.shape  # channels come first, second or last
        assert sides in ((b, *rest), (a, *rest), (a, b, rest[0])), latents.shape


@pytest.mark.parametrize("name", ["wan", "shapes", "wan-5b", "WanTransformer3DModel"])
def test_models_are_found_by_their_name(name: str) -> None:
    known = geometry(name)
    expected = {"shapes": (4, 4, 1, 3, 64), "wan-5b": (4, 16, 2, 24, 128)}.get(name, (4, 8, 2, 40, 128))
    assert (known.frame_stride, known.vae_stride, known.patch[1], known.heads, known.head_dim) == expected


def test_the_vae_of_a_folder_decides() -> None:
    found = geometry(str(FOLDER))
    assert (found.vae_stride, found.frame_stride) == (4, 4) != WanAdapter.vae_stride and "wan-5b" in VARIANTS


def test_what_has_no_grid_is_refused() -> None:
    known = geometry("wan")
    with pytest.raises(ValueError, match="832x8 is smaller than one token, which covers 16x16 pixels"):
        known.grid(81, 8, 832)
    with pytest.raises(ValueError, match="model 'cinema' is unknown; give 'shapes', a folder, a Hub"):
        geometry("cinema")
    with pytest.raises(ValueError, match="has positions for 1024 on each axis; make a shorter"):
        known.check(200_000, 480, 832)
    known.check(200_000, 480, 832, any_frames=True)


@pytest.mark.parametrize(
    ("view", "pattern", "tiles"),
    [
        ((250_000, 6, 6), Radial(0.3), 70_313),
        ((21, 45, 80), TopBlocks(0.3, tile=(1, 1, 1)), 75_600),
        ((21, 45, 80), StepSchedule(Reuse(TopBlocks(0.3, tile=(1, 1, 2))), 1), 37_800),
        ((21, 45, 80), MixtureOfBlocks.trained(routing="token"), 75_600),
        ((21, 45, 80), RadialRaster(block=2), 37_800),
        ((21, 45, 80), GriddedHeads((Gridded(), Gridded(tile=(1, 1, 1)))), 75_600),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_map_of_too_many_tiles_is_refused(view: tuple[int, int, int], pattern: Pattern, tiles: int) -> None:
    with pytest.raises(ValueError, match=rf"are {tiles:,} tiles, \d\.\d times what a block map can hold \(32,768\)"):
        check_map(VideoGrid(*view), pattern)


@pytest.mark.parametrize("tile", [None, (8, 8, 8)], ids=str)
def test_a_map_is_measured_by_the_tiles_of_its_pattern(tile: Tile | None) -> None:
    frames = 1100 if tile is None else 4000
    check_map(VideoGrid(frames, 45, 80), TopBlocks(0.3, tile=tile))
    if tile is not None:  # twelve million tokens, of which tiles of 128 would be too many
        with pytest.raises(ValueError, match="use fewer frames, a smaller size or larger tiles"):
            check_map(VideoGrid(frames, 45, 80), TopBlocks(0.3))


def test_patches_in_time() -> None:
    known = geometry_of(diffusers.CogVideoXTransformer3DModel, {"patch_size_t": 2})
    assert known.grid(85, 480, 720).view == (11, 30, 45)
    assert known.grid(81, 480, 720).view == (11, 30, 45), "the pipeline pads 21 latent frames"
    assert known.grid(1, 480, 720).view == (1, 30, 45)
