"""What the page needs of the command line, which hands it over: the page itself knows neither typer nor rich."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from vidsparse import Correction, Pattern
    from vidsparse.generation.models import Model
    from vidsparse.generation.sample import Sample
    from vidsparse.presets import Preset


class Request(Protocol):
    """A prompt, a model, a pattern and how to sample: `vidsparse.cli.request.Request` says what each member is."""

    @property
    def prompt(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def impl(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def scale(self) -> int | None: ...
    @property
    def offload(self) -> bool: ...
    @property
    def known(self) -> Model: ...
    @property
    def chosen(self) -> Preset | None: ...
    @property
    def place(self) -> tuple[str, str]: ...
    @property
    def frame_rate(self) -> int: ...
    def checked(self) -> tuple[Pattern, Correction | None, dict[str, Any]]: ...
    def pixels(self, arguments: dict[str, Any]) -> dict[str, Any]: ...
    def load_pipe(self) -> Any: ...
    def fitting_correction(self, pipe: Any, pattern: Pattern, correction: Correction | None) -> Correction | None: ...


@dataclass(frozen=True)
class CommandLine:
    """The functions of the command line that the page shares with it.

    Attributes:
        read: the request of the words after `vidsparse generate`. Raises: ValueError, for words that it refuses.
        common: the words of every request, such as ("--device", "cpu").
        header: a line of what a request will run, and how much faster attention can be at most.
        fitted: arguments with a number of frames that the pipeline produces.
        comment: what a video was made with, for the video itself.
        notes: a context in which notes are collected in a list instead of printed.
        errors: what a user can cause, and what the machine can refuse. Anything else is a bug.
    """

    read: Callable[[Sequence[str]], Request]
    common: tuple[str, ...]
    header: Callable[[Any, Pattern, dict[str, Any]], str]
    fitted: Callable[[Any, dict[str, Any]], dict[str, Any]]
    comment: Callable[[Sample, Any, dict[str, Any]], str]
    notes: Callable[[], AbstractContextManager[list[str]]]
    errors: tuple[type[Exception], ...]
