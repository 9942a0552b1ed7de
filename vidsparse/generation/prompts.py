"""Reads many prompts from a file: a text with one on each line, or JSON lines with options of each video."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

DIGITS, SLUG = 4, 48  # digits, and bytes of the prompt, in the name of a video that has none of its own
LONGEST = 200  # bytes of a name, so that every file system takes it with what is added
BAD = r'[/\\:*?"<>|]'  # in the name of a file, on one system or another
ERROR = ".error"  # what is added to the name of a video that failed


class Allowed(NamedTuple):
    """What an option of a video may be: int, float or str, the least and the most of a number, and its other name."""

    kind: type
    least: float | None = None
    most: float | None = None
    alias: str | None = None


@dataclass(frozen=True)
class Line:
    """A prompt of a file.

    Attributes:
        where: file and line, such as "prompts.jsonl:3".
        prompt: what the video shows.
        name: of its files, without suffix; unique in the file.
        options: what the line gives besides.
    """

    where: str
    prompt: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


def read_prompts(path: Path, options: Mapping[str, Allowed]) -> list[Line]:
    """Read the prompts of a file, in its order.

    Args:
        path: ends in ".txt": a prompt on each line, but for empty ones and those that begin with "#". Or in ".jsonl":
            on each line a JSON object with `prompt`, and if wanted `name` and some of the options; null is left out.
        options: name -> what it may be.

    Returns:
        The lines. Without a name of its own, the third prompt is "0003-" and its first words.

    Raises:
        OSError: the file cannot be read.
        ValueError: another suffix, no prompts, or a line that is wrong; names the line.
    """
    if path.suffix.lower() not in (".txt", ".jsonl"):
        raise ValueError(f"prompts {path}: the name must end in .txt (a prompt a line) or .jsonl (an object a line)")
    lines: list[Line] = []
    names: dict[str, Line] = {}
    for where, text in _texts(path):
        given = {"prompt": text} if path.suffix.lower() == ".txt" else _object(where, text, options)
        prompt, name = given.pop("prompt"), given.pop("name", None)
        line = Line(where, prompt, _default_name(len(lines) + 1, prompt) if name is None else name, given)
        # Where a file system ignores case, the files of two such names are one.
        if (other := names.setdefault(line.name.casefold(), line)) is not line:
            raise ValueError(f"{where}: the name {line.name!r} is that of {other.where} too; name them apart")
        lines.append(line)
    if not lines:
        raise ValueError(f"prompts {path}: the file holds no prompt")
    return lines


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    """Where each line is, and what it says, but for those that say nothing."""
    comment = "#" if path.suffix.lower() == ".txt" else None
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                text = line.strip()
                if text and not (comment and text.startswith(comment)):
                    yield f"{path}:{number}", text
    except UnicodeDecodeError:
        raise ValueError(f"prompts {path}: the file is not UTF-8 text") from None
    except OSError as error:
        raise OSError(f"prompts {path} cannot be read: {error.strerror}") from None


def _object(where: str, text: str, options: Mapping[str, Allowed]) -> dict[str, Any]:
    """What the JSON object of a line gives.

    Raises:
        ValueError: it is none, has no prompt, or a key or a value that is not possible.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(data, dict):
        raise ValueError(f'{where}: got {text[:40]}, expected an object such as {{"prompt": "a fox", "seed": 1}}')
    given = {name: value for name, value in data.items() if value is not None}
    for name, allowed in options.items():
        if allowed.alias in given:
            if name in given:
                raise ValueError(f"{where}: {name} and {allowed.alias} are one option; give it once")
            given[name] = given.pop(allowed.alias)
    possible = {"prompt": Allowed(str), "name": Allowed(str), **options}
    if unknown := [name for name in given if name not in possible]:
        raise ValueError(f"{where}: unknown {', '.join(unknown)}; known are {', '.join(possible)}")
    if "prompt" not in given:
        raise ValueError(f'{where}: no "prompt"; say what the video shows')
    for name, value in given.items():
        check_value(f"{where}: {name}={json.dumps(value)}", value, possible[name])
    if "name" in given:
        check_name(f"{where}: name={json.dumps(given['name'])}", given["name"])
    return given


def check_value(what: str, value: Any, allowed: Allowed) -> None:
    """Refuse a value that an option cannot have.

    Raises:
        ValueError: begins with `what`, and says what is possible.
    """
    kind, least, most, _ = allowed
    kinds: Any = (int, float) if kind is float else kind
    if not isinstance(value, kinds) or isinstance(value, bool) or (kind is float and not math.isfinite(value)):
        words = {str: "text in quotes", int: "a whole number", float: "a number"}
        raise ValueError(f"{what} must be {words[kind]}")
    if least is not None and value < least:
        raise ValueError(f"{what} must be at least {least}")
    if most is not None and value > most:
        raise ValueError(f"{what} must be at most {most}")


def check_name(what: str, name: str) -> None:
    """Refuse a name that is not one of a file in any folder.

    Raises:
        ValueError: begins with `what`.
    """
    if not name or name.strip() != name or name[0] == "." or not name.isprintable() or re.search(BAD, name):
        raise ValueError(f'{what} must be the name of a file: no folder, no leading dot, none of / \\ : * ? " < > |')
    if len(os.fsencode(name)) > LONGEST:
        raise ValueError(f"{what} has {len(os.fsencode(name))} bytes; at most {LONGEST} are possible")
    if name.lower().endswith(ERROR):
        raise ValueError(f"{what} must not end in {ERROR}, as the files of videos that failed do")


def _default_name(number: int, prompt: str) -> str:
    """Number and first words of a prompt: "0007-a-red-circle"."""
    return f"{number:0{DIGITS}}-{first_words(prompt)}".strip("-")


def first_words(prompt: str) -> str:
    """The first words of a prompt as part of a file's name, such as "a-red-circle"; "" for one without words."""
    words = re.sub(r"\W+", "-", prompt.lower()).strip("-_")
    while len(os.fsencode(words)) > SLUG:
        words = words.rpartition("-")[0] or words[:-1]
    return words
