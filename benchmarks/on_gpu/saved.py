"""Results that are on disk as soon as they are known: a run that is cut short leaves what it found."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vidsparse.atomic import replacing


class Results(dict[str, Any]):
    """What a run found, by name, in a JSON file."""

    def __init__(self, path: Path, **first: Any) -> None:
        super().__init__(first)
        self.path, self.started = path, time.time()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.time() - self.started

    def save(self, **found: Any) -> None:
        """Add what was found and write the file anew."""
        self.update(found, seconds=round(self.seconds))
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(self, indent=1) + "\n")

    def add(self, name: str, part: Callable[[], Any]) -> None:
        """Print and save what a part of the run finds, or what it raises, which must not hide the other parts.

        Raises:
            torch.AcceleratorError: the device is lost, for nothing runs after that.
        """
        try:
            found = part()
        except Exception as error:
            found = {"failed": repr(error)[:300]}
            if isinstance(error, torch.AcceleratorError):
                self.save(**{name: found})
                raise
        print(name, json.dumps(found), f"at {self.seconds:.0f} s", flush=True)
        self.save(**{name: found})
