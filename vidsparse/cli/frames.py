"""Says where a model makes another number of frames than was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vidsparse.cli.messages import note

if TYPE_CHECKING:
    from vidsparse.generation.frames import Geometry


def fitted(pipe: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments with a number of frames that the pipeline's VAE produces, with a note where it is another one."""
    from vidsparse.generation.frames import pipeline_geometry
    from vidsparse.generation.pipeline import fit_arguments

    if frames := arguments.get("num_frames"):
        note_frames(frames, pipeline_geometry(pipe))
    return fit_arguments(pipe, arguments)


def note_frames(frames: int, known: Geometry) -> None:
    """Note where a model makes another number of frames, and which numbers it makes where its stride says so."""
    used, _ = known.frames(frames)
    if used != frames:
        note(known.misfit(frames, used))
