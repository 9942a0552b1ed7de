"""Checks of what an adapter declares: which tokens are video, and which layers see them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from vidsparse.doctor.agree import Failed
from vidsparse.doctor.masked import intercepted
from vidsparse.doctor.twin import Twin, View
from vidsparse.grid import VideoGrid

ODD: View = (3, 5, 7)


def video_is_where_the_grid_says(twin: Twin) -> str:
    """Check that the video argument changes exactly the tokens that the adapter calls video."""
    grid = twin.grid(ODD)
    name, _ = _other_video(twin, grid)
    keys = twin.key_grid(ODD) or grid
    kept = f"; {keys.frames - grid.frames} frames are kept" if keys is not grid else ""
    return f"{keys.prefix} tokens before the video, {keys.suffix} after it; {name} is the video{kept}"


def every_layer_is_told(twin: Twin) -> str:
    """Check that the adapter lists every attention over the video's tokens."""
    model, grid = twin.build(), twin.grid(ODD)
    _, other = _other_video(twin, grid)
    told = len(_keys(model, twin.adapter.self_attentions(model).values(), other, grid))
    pairs = zip(
        *(_keys(model, [model], arguments, grid) for arguments in (twin.arguments(model, ODD), other)), strict=True
    )
    found = sum(not torch.equal(before, after) for before, after in pairs)
    if found != told:
        raise Failed(f"video sees video in {found} attention layers, but the adapter tells of {told}")
    return f"{found} layers"


def _other_video(twin: Twin, grid: VideoGrid) -> tuple[str, dict[str, Any]]:
    """The name of the argument that holds the video, and arguments with another video.

    Raises:
        Failed: no argument changes just the tokens that the grid calls video.
    """
    if grid.view != ODD:
        raise Failed(f"the adapter tells of {grid}, but the video has {ODD} tokens")
    model = twin.build()
    attentions, arguments = twin.adapter.self_attentions(model).values(), twin.arguments(model, ODD)
    before = _keys(model, attentions, arguments, grid)[0]
    keys = twin.key_grid(ODD) or grid
    place = torch.arange(len(before)) - keys.prefix - keys.video_tokens + grid.video_tokens  # the last frames
    video = (place >= 0) & (place < grid.video_tokens)
    for name, other in _changed(arguments):
        after = _keys(model, attentions, other, grid)[0]
        if torch.equal((after != before).any(dim=1), video):
            return name, other
    raise Failed(f"no argument changes the tokens alone that {grid} calls video")


def _changed(arguments: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each argument that holds tensors: its name, and the arguments with other numbers in it."""
    for name, value in arguments.items():
        parts = [value] if isinstance(value, torch.Tensor) else value
        if not isinstance(parts, (list, tuple)):
            continue
        if all(isinstance(x, torch.Tensor) and x.is_floating_point() for x in parts):
            other = [x + torch.linspace(-1, 1, x.numel()).view_as(x) for x in parts]
            yield name, {**arguments, name: other[0] if isinstance(value, torch.Tensor) else type(value)(other)}


def _keys(
    model: Any, modules: Iterable[torch.nn.Module], arguments: Mapping[str, Any], grid: VideoGrid
) -> list[torch.Tensor]:
    """Keys [tokens, channels] of the first sample, for each attention of these modules over the whole video."""
    seen: list[torch.Tensor] = []

    def look(attention: Any, query: torch.Tensor, key: torch.Tensor, mask: Any) -> torch.Tensor:
        if query.shape[-2] >= grid.video_tokens and key.shape[-2] >= grid.prefix + grid.video_tokens:
            seen.append(key[0].transpose(0, 1).flatten(1))
        out: torch.Tensor = attention(mask)
        return out

    with torch.no_grad(), intercepted(modules, look):
        model(**arguments)
    if not seen:
        raise Failed(f"no attention that the adapter tells of has the {grid.tokens} tokens of {grid}")
    return seen
