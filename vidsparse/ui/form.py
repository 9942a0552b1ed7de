"""The inputs of the page, and the words of a command line that they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vidsparse.generation.models import DEFAULT
from vidsparse.patterns import Pattern
from vidsparse.patterns.names import NONE, correction_classes, pattern_classes, takes_density
from vidsparse.patterns.schedule import bare
from vidsparse.presets import PRESETS, preset

RECOMMENDED = "recommended"
PRESET = "preset "  # before the name of a preset, among the choices of attention
OWN = "of the preset"
FILES = {"table", "gate"}  # fields that name a file, which the page does not ask for
PATTERNS = [name for name, cls in pattern_classes().items() if not FILES & cls.named_defaults.keys()]
ATTENTION = (RECOMMENDED, *(PRESET + known.name for known in PRESETS), *PATTERNS)
CORRECTIONS = (OWN, NONE, *correction_classes())
# Field of `Form` -> the argument of diffusers that holds its default.
SIZES = {
    "frames": "num_frames",
    "height": "height",
    "width": "width",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
}
USUAL = {"model": DEFAULT, "seed": "0"}  # what the command line takes by itself


@dataclass(frozen=True)
class Form:
    """What the user has typed and chosen. "", but for the prompt: what the model or the pattern does by itself.

    Attributes:
        attention: one of `ATTENTION`.
        correction: one of `CORRECTIONS`.
        Others: see the options of `vidsparse generate`, which check them.
    """

    prompt: str
    model: str = DEFAULT
    attention: str = RECOMMENDED
    density: str = ""
    correction: str = OWN
    dense_steps: str = ""
    frames: str = ""
    height: str = ""
    width: str = ""
    steps: str = ""
    guidance: str = ""
    seed: str = ""

    def words(self, common: tuple[str, ...] = ()) -> list[str]:
        """The words after `vidsparse generate` that ask for it.

        Args:
            common: words of every request, which follow the others.

        Raises:
            OSError: the settings of the model cannot be read, where they decide its preset.
        """
        given = {"model": self.model, **self._attention(), "density": self.density}
        given["correction"] = "" if self.correction == OWN else self.correction
        given |= {name: getattr(self, name) for name in ("dense_steps", *SIZES, "seed")}
        given |= {name: "" for name, value in USUAL.items() if given[name] == value}
        words = [word for name, value in given.items() if value for word in (option(name), value)]
        if self.prompt.startswith("-"):  # or it would be read as an option
            return [*words, *common, "--", self.prompt]
        return [self.prompt, *words, *common]

    def _attention(self) -> dict[str, str]:
        """The preset or the pattern."""
        if self.attention == RECOMMENDED:
            if not self.density:
                return {}
            # A density alone asks for another pattern; here it changes that of the model's preset.
            from vidsparse.generation.transformers import preset_of

            return {"preset": preset_of(self.model).name}
        if self.attention.startswith(PRESET):
            return {"preset": self.attention.removeprefix(PRESET)}
        return {"pattern": self.attention}


def option(name: str) -> str:
    """The option of the command line for a field."""
    return "--" + name.replace("_", "-")


def has_density(attention: str, model: str) -> bool:
    """Whether one of `ATTENTION` takes a density, on a model. Raises: see `Form.words`."""
    if attention == RECOMMENDED:
        from vidsparse.generation.transformers import preset_of

        chosen: Any = preset_of(model)
    elif attention.startswith(PRESET):
        chosen = preset(attention.removeprefix(PRESET))
    else:
        return takes_density(pattern_classes()[attention])
    pattern: Pattern = chosen.pattern
    return takes_density(bare(pattern))
