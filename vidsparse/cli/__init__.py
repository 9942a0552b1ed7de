"""The command line, one file for each command."""

from __future__ import annotations

import io
import logging
import os
import shutil
import sys
import warnings
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from vidsparse.cli import bench, compare, doctor, estimate, finetune, generate, inspect, patterns, presets, tune
from vidsparse.cli.messages import is_first
from vidsparse.cli.signature import takes_request
from vidsparse.cli.versions import versions

# Libraries read these when they are imported, which is later: their bars and notes would interrupt ours.
QUIET = {
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
WIDE = 80  # columns
# What a user can cause, and what the machine can refuse. Anything else is a bug and shows its traceback.
EXPECTED = (ValueError, TypeError, OSError, ImportError, RuntimeError)


class Commands(TyperGroup):
    """Ends a command that fails with one line on stderr: exit code 1 for an error, 130 for Ctrl-C."""

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


app.command("generate")(takes_request(generate.generate))
app.command("compare")(takes_request(compare.compare))
app.command("finetune")(takes_request(finetune.finetune))
app.command("inspect")(inspect.inspect)
app.command("patterns")(patterns.patterns)
app.command("presets")(presets.presets)
app.command("tune")(tune.tune)
app.command("estimate")(estimate.estimate)
app.command("bench")(bench.bench)
app.command("doctor")(doctor.doctor)


def quiet_libraries() -> None:
    """Keep to themselves what libraries say when they are imported; called before they are."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for logger in ("torchao", "torch.utils._pytree"):  # what a quantiser that is merely installed says when imported
        logging.getLogger(logger).setLevel(logging.ERROR)


def main() -> None:
    """The entry point of the console script."""
    quiet_libraries()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")  # float32 norms under autocast
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that an encoding cannot show is not a failure
    app(prog_name="vidsparse")
