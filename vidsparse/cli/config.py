"""`--config` and `--save-config`: the options of a command in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from vidsparse.atomic import replacing

CONFIG_HELP = (
    "Options from a YAML file, by their names, or from the report of a video, whose request it repeats; what is given "
    "here goes before the file."
)
SAVE_HELP = "Also write the options that are given to a YAML file, once the command is done."
SUFFIXES = ".yaml", ".yml", ".json"
OF_MACHINE = {"device", "offload"}  # of a report: what another machine may lack


def read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Take the values of options that are not given from a file; runs before the other options are read.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no options, or one that the command does not have.
    """
    if path is None or ctx.resilient_parsing:
        return path
    names = _names(ctx)
    known = {name: name for name in names} | {alias: name for name, aliases in names.items() for alias in aliases}
    data = load_yaml("--config", path, "options, such as density: 0.3, one on each line")
    report = data.get("request")
    if isinstance(report, dict):  # of this vidsparse or another, which may have other options
        known = {name: name for name in names}
        data = {name: value for name, value in report.items() if name in known and name not in OF_MACHINE}
    repeated = {param.name for param in ctx.command.params if getattr(param, "multiple", False)}
    found: dict[str, Any] = {}
    for given, value in data.items():
        name = known.get(str(given).replace("-", "_"))
        if name is None or name in ("config", "save_config", "help"):
            options = sorted((aliases or [name])[0].replace("_", "-") for name, aliases in names.items())
            raise ValueError(f"--config {path}: unknown option {given!r}; known are {', '.join(options)}")
        if name in found:
            raise ValueError(f"--config {path}: {given!r} is given twice, under two names; give it once")
        if value is not None:
            found[name] = [value] if name in repeated and not isinstance(value, list) else value
    ctx.default_map = found
    return path


def save_config(ctx: typer.Context, path: Path, values: dict[str, Any]) -> None:
    """Write the values of options to a file that `read_config` reads."""
    import yaml

    names = _names(ctx)
    data = {
        (names[name] or [name])[0].replace("_", "-"): str(value) if isinstance(value, Path) else value
        for name, value in values.items()
    }
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _names(ctx: typer.Context) -> dict[str, list[str]]:
    """The name of each parameter of a command -> the long names of its options, with underscores."""
    return {
        str(param.name): [opt[2:].replace("-", "_") for opt in param.opts if opt.startswith("--")]
        for param in ctx.command.params
    }


def load_yaml(option: str, path: Path, expected: str) -> dict[str, Any]:
    """What a YAML file holds.

    Args:
        option: that named the file.
        path: of the file.
        expected: what it should hold, with an example.

    Raises:
        OSError: it cannot be read.
        ValueError: another suffix, no YAML, or no names with values.
    """
    import yaml

    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{option} {path}: the name must end in one of {', '.join(SUFFIXES)}")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise OSError(f"{option} {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{option} {path} is not YAML: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{option} {path} holds no {expected}")
    return data
