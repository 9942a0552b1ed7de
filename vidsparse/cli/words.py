"""Words of a command line: those that were typed, and those that ask for a request."""

from __future__ import annotations

import shlex
from contextvars import ContextVar
from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

if TYPE_CHECKING:
    from vidsparse.cli.request import Request

given_words: ContextVar[tuple[str, ...]] = ContextVar("given_words", default=())  # after "vidsparse"


def given_command() -> str:
    """The line that was typed, for a shell."""
    return shlex.join(["vidsparse", *given_words.get()])


def option_names(field: str, option: Any) -> list[str]:
    """The names of an option, such as "--frames" and "--num-frames".

    Args:
        field: of the request. option: typer's, of its annotation.
    """
    # Where an option is annotated, typer takes its first name for a default.
    given = getattr(option, "default", None), *(getattr(option, "param_decls", None) or ())
    words = [word for word in given if isinstance(word, str) and word.startswith("--")]
    return words or [f"--{field.replace('_', '-')}"]


def request_words(request: Request) -> list[str]:
    """The words after `vidsparse generate` that ask for a request: its prompt, and what is not the default."""
    hints, words = get_type_hints(type(request), include_extras=True), [request.prompt]
    for one in fields(request):
        value = getattr(request, one.name)
        if one.name == "prompt" or value == one.default:
            continue
        name = option_names(one.name, get_args(hints[one.name])[1])[0]
        if isinstance(value, bool):
            words.append(name)
        else:
            words += [word for item in (value if isinstance(value, list) else [value]) for word in (name, str(item))]
    return words
