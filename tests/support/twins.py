"""Twins of the classes of diffusers that vidsparse serves, each built once."""

from __future__ import annotations

import functools
from typing import Any

import diffusers
import pytest

from vidsparse.doctor import Twin

# Models warn of what they do on a CPU, and torch says that it is torch which warns, or the line that called it.
ignores_warnings = pytest.mark.filterwarnings("ignore::UserWarning")


def class_or_skip(name: str) -> Any:
    if not hasattr(diffusers, name):
        pytest.skip(f"this diffusers has no {name}")
    return getattr(diffusers, name)


@functools.cache
def twin(name: str) -> Twin:
    return Twin(class_or_skip(name))
