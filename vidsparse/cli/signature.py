"""Makes the options of a command of a dataclass, and adds those of every such command, and of every command."""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from typer import Abort, Context, Exit, Option

from vidsparse.cli.config import CONFIG_HELP, SAVE_HELP, read_config, save_config
from vidsparse.cli.files import check_output
from vidsparse.cli.libraries import unsilence
from vidsparse.cli.messages import QUIET_HELP, VERBOSE_HELP, is_first, volume

# What a user can cause, and what the machine can refuse. Anything else is a bug and shows its traceback.
EXPECTED = (ValueError, TypeError, OSError, ImportError, RuntimeError)


def _shared(
    ctx: Context,
    config: Annotated[Path | None, Option(help=CONFIG_HELP, callback=read_config, is_eager=True)] = None,
    save_config: Annotated[Path | None, Option(help=SAVE_HELP)] = None,
) -> None:
    """The options of every command that takes a request."""


def takes_request(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command so that typer sees one option per field of its first argument, and those of `_shared`."""
    first, *others = inspect.signature(command, eval_str=True).parameters.values()
    cls: Any = first.annotation
    hints = get_type_hints(cls, include_extras=True)
    empty = inspect.Parameter.empty
    asked = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(cls)
    ]

    shared = inspect.signature(_shared, eval_str=True).parameters.values()

    @functools.wraps(command)
    def run(**options: Any) -> None:
        ctx, saved = options.pop("ctx"), options.pop("save_config")
        del options["config"]  # its values are those of the other options
        check_output(saved, ".yaml", overwrite=options.get("overwrite", False))
        given = {field.name: options.pop(field.name) for field in fields(cls)}
        command(cls(**given), **options)
        if saved is not None and is_first():
            save_config(ctx, saved, {f.name: given[f.name] for f in fields(cls) if given[f.name] != f.default})

    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*asked, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*others, *shared))]
    )
    return run


def _volume(
    quiet: Annotated[bool, Option("--quiet", "-q", help=QUIET_HELP)] = False,
    verbose: Annotated[bool, Option("--verbose", "-v", help=VERBOSE_HELP)] = False,
) -> None:
    """The options of every command."""


def takes_volume(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command so that it has the options of `_volume` too."""
    own = inspect.signature(command, eval_str=True).parameters.values()

    @functools.wraps(command)
    def run(quiet: bool, verbose: bool, **options: Any) -> None:
        with volume(quiet=quiet, verbose=verbose):
            if verbose:
                unsilence()
            try:
                command(**options)
            except EXPECTED as error:  # others show their traceback by themselves
                if verbose and not isinstance(error, (Exit, Abort)):
                    traceback.print_exc()
                raise

    added = inspect.signature(_volume, eval_str=True).parameters.values()
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *added)]
    )
    return run
