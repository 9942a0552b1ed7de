"""The settings of a study: named in a file, or as the values of a sweep."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from vidsparse.cli.batch import allowed
from vidsparse.cli.config import load_yaml
from vidsparse.cli.options import ATTENTION
from vidsparse.cli.request import Request
from vidsparse.cli.words import option_names

LOADED = {"lora"}  # options of attention that change the model itself, which all settings share
BESIDES = {"steps"}
SHARES = (3, 4), (1, 2), (1, 3)  # of the steps, in the rivals


def read_settings(request: Request, file: Path | None, sweeps: list[str]) -> dict[str, Request]:
    """The request of each setting, by its name: the common one, with the options of the setting.

    Args:
        request: what all settings share.
        file: YAML: a name -> its options, by their names on the command line.
        sweeps: each "OPTION=VALUE,VALUE,..."; of several, every combination. Without these and a file, there is one
            setting: the request itself, under the name "sparse".

    Raises:
        ValueError: an unknown option, a value that is wrong, or a name that is none of a folder.
        OSError: the file cannot be read.
    """
    if file is None and not sweeps:
        return {"sparse": request}
    if file is not None and sweeps:
        raise ValueError("give --settings or --sweep, not both")
    found: dict[str, Request] = {}
    for name, options in (_from_file(file) if file is not None else _products(sweeps)).items():
        with naming_setting(name):
            found[name] = replace(request, **_checked(options))
    return found


def dense_request(request: Request, steps: int | None = None) -> Request:
    """The request without anything that makes it sparse, and with another number of steps if it is given."""
    changed = set(_options().values()) - BESIDES
    usual: dict[str, Any] = {f.name: f.default for f in fields(Request) if f.name in changed}
    dense: dict[str, Any] = {
        **usual,
        "pattern": "dense",
        "correction": "none",
        **({} if steps is None else {"steps": steps}),
    }
    return replace(request, **dense)


def rivals(request: Request) -> dict[str, Request]:
    """Dense sampling in fewer steps: what costs as little without sparse attention."""
    steps = request.asked_steps
    fewer = dict.fromkeys(n for over, under in SHARES if 0 < (n := round(steps * over / under)) < steps)
    return {f"dense-{n}-steps": dense_request(request, n) for n in fewer}


@contextmanager
def naming_setting(name: str) -> Iterator[None]:
    """Within the context, an error names the setting."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"setting {name!r}: {error}") from error


def _from_file(path: Path) -> dict[str, dict[str, Any]]:
    from vidsparse.generation.prompts import check_name
    from vidsparse.generation.study import DENSE

    data = load_yaml("--settings", path, "settings, such as sparse: {density: 0.3}")
    found: dict[str, dict[str, Any]] = {}
    for name, options in data.items():
        what = f"--settings {path}: {name!r}"
        if not isinstance(options, dict) or not options:
            raise ValueError(f"{what} must have options, such as density: 0.3")
        check_name(what, str(name))
        if str(name) == DENSE or str(name).casefold() in map(str.casefold, found):
            raise ValueError(f"{what} is the name of another folder too; take another name")
        found[str(name)] = options
    return found


def _products(sweeps: list[str]) -> dict[str, dict[str, Any]]:
    """Every combination of the values of sweeps, named such as "density=0.1,pattern=radial"."""
    import yaml

    from vidsparse.generation.prompts import check_name

    axes: dict[str, list[str]] = {}
    for sweep in sweeps:
        option, equals, text = sweep.partition("=")
        option, values = option.strip().removeprefix("--"), [value.strip() for value in text.split(",")]
        if not equals or not all(values):
            raise ValueError(f"--sweep {sweep!r} must be OPTION=VALUE,VALUE,... such as density=0.1,0.2")
        if option in ("set", "dense-layers"):
            raise ValueError(f"--sweep {option}: its values have commas of their own; write them in a --settings file")
        if option in axes or len(set(values)) < len(values):
            raise ValueError(f"--sweep {sweep!r}: an option or a value is given twice; give it once")
        axes[option] = values
    found: dict[str, dict[str, Any]] = {}
    for combination in itertools.product(*axes.values()):
        chosen = dict(zip(axes, combination, strict=True))
        name = ",".join(f"{option}={value}" for option, value in chosen.items())
        check_name(f"--sweep: the setting {name!r}", name)
        try:
            found[name] = {option: yaml.safe_load(value) for option, value in chosen.items()}
        except yaml.YAMLError:
            raise ValueError(f"--sweep: {name} has a value that cannot be read") from None
    return found


def _options() -> dict[str, str]:
    """The name of each option that a setting may change, with underscores -> its field of a request."""
    found: dict[str, str] = {}
    for name, hint in get_type_hints(Request, include_extras=True).items():
        option = get_args(hint)[1] if get_args(hint) else None
        if (getattr(option, "rich_help_panel", None) == ATTENTION and name not in LOADED) or name in BESIDES:
            found |= {word.removeprefix("--").replace("-", "_"): name for word in option_names(name, option)}
    return found


def _checked(options: Mapping[Any, Any]) -> dict[str, Any]:
    """Field -> value of a request, for the options of a setting."""
    from vidsparse.generation.prompts import check_value

    known = _options()
    kinds = allowed([name for name in known.values() if name != "settings"])
    found: dict[str, Any] = {}
    for given, value in options.items():
        name = known.get(str(given).replace("-", "_"))
        if name is None:
            words = ", ".join(word.replace("_", "-") for word in known)
            raise ValueError(f"unknown option {given!r}; known are {words}")
        if name in found:
            raise ValueError(f"{given!r} is given twice, under two names; give it once")
        if name == "settings":
            found[name] = [str(one) for one in (value if isinstance(value, list) else [value])]
            continue
        if kinds[name].kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)  # such as the one layer of dense-layers: 0
        check_value(f"{given}={value!r}", value, kinds[name])
        found[name] = value
    return found
