"""A LoRA as a user asks for it in a word: where it is, how strong, and for which transformer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vidsparse.runtime.pipeline import TRANSFORMERS

_STRENGTH = re.compile(r"(.+):([+-]?(?:\d+\.?\d*|\.\d+))")
_TRANSFORMER = re.compile(rf"(.+)@({'|'.join(TRANSFORMERS)})")


@dataclass(frozen=True)
class AskedLora:
    """A LoRA to load, such as "style.safetensors:0.8@transformer_2".

    Attributes:
        source: as `find_lora` takes it.
        strength: what the LoRA adds is multiplied with this.
        transformer: of the pipeline; None where the file says it, or there is but one.
    """

    source: str
    strength: float = 1.0
    transformer: str | None = None

    @classmethod
    def parse(cls, text: str) -> AskedLora:
        """Read SOURCE, SOURCE:STRENGTH, SOURCE@TRANSFORMER or SOURCE:STRENGTH@TRANSFORMER.

        It is read from the right, and only a number is a strength, so that `C:\\loras\\a.safetensors` is a source. The
        name of a file or folder that exists is a source as a whole.
        """
        if Path(text).exists():
            return cls(text)
        source, transformer = text, None
        if found := _TRANSFORMER.fullmatch(text):
            source, transformer = found.groups()
        if not Path(source).exists() and (found := _STRENGTH.fullmatch(source)):
            return cls(found[1], float(found[2]), transformer)
        return cls(source, 1.0, transformer)
