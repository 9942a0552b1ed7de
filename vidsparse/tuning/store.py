"""A folder that keeps what a search has found, so that one that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vidsparse.atomic import replacing


class Store:
    """Results by name in a folder.

    Args:
        folder: is made where it is missing.
        settings: plain data that decides all results.

    Raises:
        ValueError: the folder holds results of other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path, text = folder / "settings.json", json.dumps(settings, indent=1, sort_keys=True)
        if not path.is_file():
            with replacing(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != text:
            known = json.loads(path.read_text(encoding="utf-8"))
            changed = sorted(key for key in {*known, *settings} if known.get(key) != settings.get(key))
            raise ValueError(
                f"{folder} holds a search with other settings ({', '.join(changed)} differ); give another --output, or "
                "remove the folder"
            )

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returns: read if it was written before, else made and written.

        Args:
            name: of the file.
            make: returns what `torch.load(weights_only=True)` reads: tensors, numbers, words, lists and dicts.
        """
        path = self.folder / f"{name}.pt"
        if path.is_file():
            return torch.load(path, weights_only=True)
        result = make()
        with replacing(path) as temporary:
            torch.save(result, temporary)
        return result


def digest(value: object) -> str:
    """A short name for plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
