"""What a request is as a command line, and in Python: text to copy."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from vidsparse.corrections import GatedCoarse
from vidsparse.generation.models import ships

if TYPE_CHECKING:
    from vidsparse import Correction, Pattern
    from vidsparse.ui.port import Request


def command_line(command: str, words: Sequence[str]) -> str:
    """The line that a shell runs, such as "vidsparse generate 'a fox' --frames 33"."""
    return shlex.join(["vidsparse", command, *words])


def python(request: Request, pattern: Pattern, correction: Correction | None, arguments: Mapping[str, Any]) -> str:
    """A program that makes the sparse video of a request.

    Args:
        pattern, correction, arguments: those that ran.
    """
    device, dtype = request.place
    if ships(request.model):
        start, load = "from vidsparse.shapes.model import load_pipeline", f"load_pipeline(torch.{dtype})"
    else:
        start = "from diffusers import DiffusionPipeline"
        load = f"DiffusionPipeline.from_pretrained({request.model!r}, torch_dtype=torch.{dtype})"
    lines = [
        "import torch",
        "from diffusers.utils import export_to_video",
        start,
        "import vidsparse",
        "",
        f"pipe = {load}",
        f"pipe.enable_model_cpu_offload(device={device!r})" if request.offload else f"pipe.to({device!r})",
        f"pattern = {expression(pattern)}",
        f"correction = {expression(correction)}",
        "with vidsparse.sparsify(pipe, pattern, correction=correction) as run:",
        "    video = pipe(",
        *(f"        {name}={value!r}," for name, value in arguments.items()),
        f"        generator=torch.Generator().manual_seed({request.seed}),",
        "    ).frames[0]",
        "print(run.report())",
        f'export_to_video(video, "video.mp4", fps={request.frame_rate})',
    ]
    if isinstance(correction, GatedCoarse):
        lines.insert(lines.index(f"pipe = {load}") + 1, f"vidsparse.load_gates(pipe.transformer, {request.model!r})")
    return "\n".join(lines)


def expression(value: Any) -> str:
    """Python that makes a pattern, a correction or a value of one of their fields; defaults are left out."""
    if is_dataclass(value):
        given = [
            (f.name, getattr(value, f.name)) for f in fields(value) if f.init and getattr(value, f.name) != f.default
        ]
        return f"vidsparse.{type(value).__name__}({', '.join(f'{name}={expression(x)}' for name, x in given)})"
    if isinstance(value, tuple):
        return f"({', '.join(map(expression, value))}{',' if len(value) == 1 else ''})"
    return repr(value)
