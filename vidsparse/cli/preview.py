"""`vidsparse preview`: what `vidsparse finetune` would learn from a folder, as a picture or a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from vidsparse.cli.clip_options import DATA, ClipOptions, note_clips
from vidsparse.cli.files import OVERWRITE_HELP, check_output, free_path
from vidsparse.cli.messages import task_bar
from vidsparse.generation.models import DEFAULT

FORMATS = (".png", ".html")


@dataclass(frozen=True)
class Previewing(ClipOptions):
    """What is looked at, and where the picture goes."""

    data: Annotated[Path, Argument(help="The folder of videos.")]
    output: Annotated[
        Path | None,
        Option("--output", "-o", help="A .png, or an .html page.", show_default="a new preview.png"),
    ] = None
    model: Annotated[str, Option(help="The model to train, for its size, length and rate.")] = DEFAULT
    most: Annotated[int, Option(min=1, help="The most clips that are drawn; of more, evenly chosen ones.")] = 100
    overwrite: Annotated[bool, Option("--overwrite", help=OVERWRITE_HELP)] = False

    cache: Annotated[
        Path | None,
        Option(help="Folder that remembers the files: that of the training.", rich_help_panel=DATA),
    ] = None


def preview(request: Previewing) -> None:
    """Show what a training would learn: three frames of each clip with its caption, and what is left out and why.

    Example: vidsparse preview my_videos --frames 81 --size 832x480 -o preview.html
    """
    from vidsparse.atomic import replacing
    from vidsparse.finetune.data.contact_page import contact_page
    from vidsparse.finetune.data.contact_sheet import contact_sheet
    from vidsparse.finetune.data.preview import preview
    from vidsparse.generation.models import find_model

    output = request.output or free_path(Path("preview.png"), overwrite=request.overwrite)
    check_output(output, *FORMATS, overwrite=request.overwrite)
    request.cutting()
    model = find_model(request.model)
    buckets = request.buckets(model)
    with task_bar("files") as bar:
        clips, skipped = request.read_folder(
            request.data, buckets, model, request.cache, lambda *numbers: bar("reading", *numbers)
        )
    note_clips(clips, skipped)
    rate = request.rate(model)
    with task_bar("clips") as bar:
        found = preview(request.data, clips, skipped, rate, request.most, lambda *numbers: bar("decoding", *numbers))
    with replacing(output) as temporary:
        if output.suffix.lower() == ".html":
            temporary.write_text(contact_page(found), encoding="utf-8")
        else:
            contact_sheet(found).save(temporary, "PNG")
    print(f"wrote {output}")
