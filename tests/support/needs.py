"""Marks of tests that need what may not be there, and what they need to know of this machine."""

from __future__ import annotations

import shutil
import socket
from importlib.util import find_spec

import pytest

from vidsparse.shapes import model as shapes

needs_weights = pytest.mark.skipif(
    not (shapes.FOLDER / "model_index.json").is_file(), reason="the shapes weights are not there"
)
needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="the extra ui is not installed")


def browser() -> str | None:
    """The program of a browser that playwright can drive."""
    return next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)


needs_browser = pytest.mark.skipif(
    find_spec("playwright") is None or browser() is None, reason="there is no playwright, or no chromium"
)


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
