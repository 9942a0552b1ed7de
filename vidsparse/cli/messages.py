"""What is said on stderr, so that stdout holds results alone."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def note(text: str) -> None:
    """One line that a user should know of."""
    print("note:", text, file=sys.stderr)


def live_console() -> Console:
    """For progress bars and spinners: silent where stderr is no terminal, such as in a log."""
    from rich.console import Console

    return Console(stderr=True, quiet=not sys.stderr.isatty())
