"""Makes the options of a command of a dataclass, and adds those of every such command."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from typer import Context, Option

from vidsparse.cli.config import CONFIG_HELP, SAVE_HELP, read_config, save_config
from vidsparse.cli.files import check_output
from vidsparse.cli.messages import QUIET_HELP, is_first, quieted


def _shared(
    ctx: Context,
    quiet: Annotated[bool, Option("--quiet", "-q", help=QUIET_HELP)] = False,
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
        request = cls(**{field.name: options.pop(field.name) for field in fields(cls)})
        with quieted(options.pop("quiet")):
            command(request, **options)
        if saved is not None and is_first():
            values = {field.name: getattr(request, field.name) for field in fields(cls)}
            save_config(ctx, saved, {f.name: values[f.name] for f in fields(cls) if values[f.name] != f.default})

    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*asked, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*others, *shared))]
    )
    return run
