"""Blocks of modular pipelines that come with code of their own, as diffusers loads them from the Hub."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from diffusers.utils import dynamic_modules_utils


def own_modules(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let diffusers copy the code of blocks to a folder, instead of the user's cache, and import it there."""
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(folder))
    monkeypatch.syspath_prepend(folder)
    for name in [name for name in sys.modules if name.startswith("diffusers_modules")]:
        monkeypatch.delitem(sys.modules, name)
