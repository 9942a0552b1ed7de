"""`vidsparse doctor`: checks sparse attention in a model on a small random twin of it."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Exit, Option

from vidsparse.cli.files import OVERWRITE_HELP, check_output, write_json
from vidsparse.cli.messages import live_console
from vidsparse.generation.models import SHIPPING

if TYPE_CHECKING:
    from vidsparse.doctor import Result

    Found = dict[str, tuple[Result, ...]]

# Outcome -> its mark and colour.
MARKS = {"ok": ("✓", "green"), "failed": ("✗", "bold red"), "not applicable": ("-", "dim")}


def doctor(
    model: Annotated[
        str | None,
        Argument(
            help=f"{SHIPPING}, a diffusers folder, a Hub id, or a class of transformers.", show_default="all classes"
        ),
    ] = None,
    json: Annotated[Path | None, Option(help="Also write what was found.")] = None,
    support: Annotated[
        Path | None, Option(help="Also write the table of all classes between a file's markers.")
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help=OVERWRITE_HELP)] = False,
) -> None:
    """Check a model's settings, without its weights, against what diffusers itself computes. Exit code 1: a failure."""
    check_output(json, ".json", overwrite=overwrite)
    if support is not None:
        if model is not None:
            raise ValueError(f"--support writes a table of all classes; leave out {model}")
        from vidsparse.doctor.support import around, put_support_table

        around(support)
        _check_all_present()
    found, lacking = _all() if model is None else (_one(model), {})
    if json is not None:
        write_json(json, _plain(found, lacking))
    if support is not None:
        put_support_table(support, found)
    if any(result.outcome == "failed" for results in found.values() for result in results):
        raise Exit(1)


def _check_all_present() -> None:
    """Refuse to write a table that would lose rows.

    Raises:
        ValueError: diffusers lacks classes of the table.
    """
    import diffusers

    from vidsparse.generation.frames import families

    absent = [name for name in families().values() if not hasattr(diffusers, name)]
    if absent:
        raise ValueError(
            f"--support would remove {', '.join(absent)} from the table, since diffusers {diffusers.__version__} lacks "
            "them; install a newer diffusers, or leave out --support"
        )


def _one(model: str) -> Found:
    """Check the transformers of one model, and print a table of each."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from vidsparse.doctor import CHECKS
    from vidsparse.generation.transformers import configured_transformers

    found = {}
    for name, (cls, settings) in configured_transformers(model).items():
        found[name] = _diagnose(cls, settings)
        table = Table("check", "result", "detail", title=cls.__name__ if name == model else f"{name}: {cls.__name__}")
        for result in found[name]:
            failed = result.outcome == "failed"
            detail = f"should be: {CHECKS[result.check].says}. {result.detail}" if failed else result.detail
            mark, colour = MARKS[result.outcome]
            table.add_row(result.check, Text(f"{mark} {result.outcome}", colour), Text(detail))
        Console(highlight=False).print(table)
    return found


def _all() -> tuple[Found, dict[str, str]]:
    """Check all classes that this diffusers has, and print one table; and why others cannot be checked."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from vidsparse.doctor import CHECKS
    from vidsparse.doctor.support import title
    from vidsparse.generation.frames import families
    from vidsparse.generation.transformers import class_named

    found: Found = {}
    lacking: dict[str, str] = {}
    for name in families().values():
        try:
            found[name] = _diagnose(class_named(name), {})
        except (ValueError, NotImplementedError) as error:
            lacking[name] = str(error)
    numbers = {check: str(i) for i, check in enumerate(CHECKS, start=1)}
    table = Table("models", *numbers.values(), padding=(0, 1, 0, 0), box=None, header_style="bold")
    for name, results in found.items():
        table.add_row(title(name), *(Text(*MARKS[result.outcome]) for result in results))
    console = Console(highlight=False)
    console.print(table)
    for check, number in numbers.items():
        console.print(f"{number:>2} {check}: {CHECKS[check].says}", markup=False, soft_wrap=True)
    for name, results in found.items():
        for result in results:
            if result.outcome != "ok":
                text = f"{result.outcome}: {title(name)}, {result.check}: {result.detail}"
                console.print(text, markup=False, soft_wrap=True)
    for name, reason in lacking.items():
        console.print(f"not checked: {name}: {reason}", markup=False, soft_wrap=True)
    return found, lacking


def _diagnose(cls: type[Any], settings: dict[str, Any]) -> tuple[Result, ...]:
    from vidsparse.doctor import diagnose

    with live_console().status(cls.__name__) as status, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # models warn of what a CPU lacks, which is not a finding
        return diagnose(cls, settings, lambda check: status.update(f"{cls.__name__}: {check}"))


def _plain(found: Found, lacking: dict[str, str]) -> dict[str, Any]:
    """Everything as plain data, with the versions that it was found with."""
    import diffusers
    import torch

    return {
        "versions": {"diffusers": diffusers.__version__, "torch": torch.__version__},
        "found": {name: [asdict(result) for result in results] for name, results in found.items()},
        "not checked": lacking,
    }
