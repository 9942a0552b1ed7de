"""The command line, one file for each command."""

from __future__ import annotations

import io
import shutil
import sys
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from vidsparse.cli import (
    bench,
    compare,
    doctor,
    estimate,
    finetune,
    generate,
    inspect,
    lora,
    patterns,
    presets,
    preview,
    tune,
    ui,
)
from vidsparse.cli.libraries import silence
from vidsparse.cli.messages import is_first
from vidsparse.cli.signature import EXPECTED, takes_request, takes_volume
from vidsparse.cli.versions import versions
from vidsparse.cli.words import given_words

WIDE = 80  # columns


class Commands(TyperGroup):
    """Remembers what was typed, and ends a command that fails with one line: exit code 1, or 130 for Ctrl-C."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given_words.set((*args,))
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(130) from None
        except EXPECTED as error:
            if isinstance(error, (typer.Exit, typer.Abort, BrokenPipeError)) or ctx.params["traceback"]:
                raise
            # What was asked for is refused by every process alike; what a machine refuses may be one process's own.
            if is_first() or not isinstance(error, (ValueError, TypeError, NotImplementedError)):
                print("error:", " ".join(str(error).split()) or type(error).__name__, file=sys.stderr)
            raise typer.Exit(1) from error


# Where a terminal is narrow, rich would cut the names of options.
MARKUP: Literal["rich"] | None = "rich" if shutil.get_terminal_size().columns >= WIDE else None
app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=MARKUP,
)


def _print_versions(asked: bool) -> None:
    """Print the versions of vidsparse and of what it runs on, and end."""
    if asked:
        for name, found in versions().items():
            print(name, found or "is not installed")
        raise typer.Exit


@app.callback()
def vidsparse(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_versions, is_eager=True, help="Print versions and end.")
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error comes from.")] = False,
) -> None:
    """Sparse attention for video diffusion transformers."""


app.command("generate")(takes_volume(takes_request(generate.generate)))
app.command("compare")(takes_volume(takes_request(compare.compare)))
app.command("ui")(takes_volume(ui.ui))
app.command("finetune")(takes_volume(takes_request(finetune.finetune)))
app.command("preview")(takes_volume(takes_request(preview.preview)))
app.command("inspect")(takes_volume(inspect.inspect))
app.command("patterns")(takes_volume(patterns.patterns))
app.command("presets")(takes_volume(presets.presets))
app.command("estimate")(takes_volume(estimate.estimate))
app.command("tune")(takes_volume(tune.tune))
app.command("bench")(takes_volume(bench.bench))
app.command("doctor")(takes_volume(doctor.doctor))
loras = typer.Typer(no_args_is_help=True, rich_markup_mode=MARKUP, help="Show a LoRA, or write it for another program.")
loras.command("show")(takes_volume(lora.show))
loras.command("convert")(takes_volume(lora.convert))
app.add_typer(loras, name="lora")


def main() -> None:
    """The entry point of the console script."""
    silence()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that an encoding cannot show is not a failure
    app(prog_name="vidsparse")
