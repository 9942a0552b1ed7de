"""What `generate` and `compare` are asked for: the options they share, and the checks that need no model."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from typer import Argument, Option

from vidsparse.cli.patterns import (
    CORRECTIONS,
    DENSITY_HELP,
    SET_HELP,
    build_correction,
    build_pattern,
    change_pattern,
)

if TYPE_CHECKING:
    from vidsparse import Correction, LoraRecipe, Pattern
    from vidsparse.shapes.scene import Scene

ATTENTION, VIDEO, MACHINE = "Attention", "Video", "Machine"
OWN = "that of the model"
PATTERN, DENSE_STEPS = "radial", 4
LORA_HELP = (
    "'shapes-long', a folder or a Hub id; again for more. Pattern, schedule and frames of the first that says them "
    "are used where none are given."
)
POSITIONS_HELP = "In videos longer than the model knows: plain, riflex or yarn."
SAMPLER_HELP = "sde draws fresh noise in every step, which helps long videos; own is the model's."


@dataclass(frozen=True)
class Request:
    """A prompt, a model, a pattern and how to sample. None: as the LoRA was trained, or as the pipeline has it."""

    prompt: Annotated[str, Argument(help="What the video shows.", show_default=False)]
    model: Annotated[str, Option(help="'shapes', the folder of a diffusers pipeline, or a Hub id.")] = "shapes"

    lora: Annotated[list[str] | None, Option(help=LORA_HELP, rich_help_panel=ATTENTION, show_default="none")] = None
    pattern: Annotated[
        str | None, Option(help="See `vidsparse patterns`.", rich_help_panel=ATTENTION, show_default=PATTERN)
    ] = None
    density: Annotated[
        float | None, Option(help=DENSITY_HELP, rich_help_panel=ATTENTION, show_default="of the pattern")
    ] = None
    settings: Annotated[list[str] | None, Option("--set", help=SET_HELP, rich_help_panel=ATTENTION)] = None
    correction: Annotated[
        str | None, Option(help=f"{', '.join(CORRECTIONS)}.", rich_help_panel=ATTENTION, show_default="none")
    ] = None
    dense_steps: Annotated[
        int | None,
        Option(min=0, help="Dense steps at the start.", rich_help_panel=ATTENTION, show_default=str(DENSE_STEPS)),
    ] = None
    dense_last_steps: Annotated[
        int | None, Option(min=0, help="Dense steps at the end.", rich_help_panel=ATTENTION, show_default="0")
    ] = None
    dense_layers: Annotated[
        str | None,
        Option(help="Layers that stay dense, such as 0,1 or -1.", rich_help_panel=ATTENTION, show_default="none"),
    ] = None
    impl: Annotated[str, Option(help="auto, cpu, flex, reference or triton.", rich_help_panel=ATTENTION)] = "auto"

    frames: Annotated[int | None, Option(min=1, rich_help_panel=VIDEO, show_default=OWN)] = None
    height: Annotated[int | None, Option(min=1, rich_help_panel=VIDEO, show_default=OWN)] = None
    width: Annotated[int | None, Option(min=1, rich_help_panel=VIDEO, show_default=OWN)] = None
    steps: Annotated[int | None, Option(min=1, help="Denoising steps.", rich_help_panel=VIDEO, show_default=OWN)] = None
    guidance: Annotated[
        float | None, Option(help="Classifier-free guidance scale.", rich_help_panel=VIDEO, show_default=OWN)
    ] = None
    sampler: Annotated[str | None, Option(help=SAMPLER_HELP, rich_help_panel=VIDEO, show_default="own")] = None
    positions: Annotated[str | None, Option(help=POSITIONS_HELP, rich_help_panel=VIDEO, show_default="plain")] = None
    trained_frames: Annotated[
        int | None, Option(min=1, help="Frames that the model knows.", rich_help_panel=VIDEO, show_default=OWN)
    ] = None
    flow_shift: Annotated[
        float | None,
        Option(help="The higher, the more steps at high noise.", rich_help_panel=VIDEO, show_default=OWN),
    ] = None
    seed: Annotated[int, Option(help="Of the noise.", rich_help_panel=VIDEO)] = 0
    fps: Annotated[
        int | None, Option(min=1, help="Frames a second.", rich_help_panel=VIDEO, show_default="12 for shapes, else 16")
    ] = None
    scale: Annotated[
        int | None,
        Option(
            min=1, help="Show each pixel as so many.", rich_help_panel=VIDEO, show_default="4 for small videos, else 1"
        ),
    ] = None

    dtype: Annotated[
        str | None,
        Option(
            help="float32, bfloat16 or float16.",
            rich_help_panel=MACHINE,
            show_default="float32 on a CPU, else bfloat16",
        ),
    ] = None
    device: Annotated[
        str | None, Option(help="Such as cpu or cuda:1.", rich_help_panel=MACHINE, show_default="the fastest there is")
    ] = None
    offload: Annotated[bool, Option("--offload", help="Keep on the GPU only what runs.", rich_help_panel=MACHINE)] = (
        False
    )

    @functools.cached_property
    def loras(self) -> dict[str, LoraRecipe]:
        """What each LoRA was trained with.

        Raises:
            OSError: no such LoRA.
            ValueError: its file is no LoRA, or of a later vidsparse.
        """
        from vidsparse.lora.files import read_recipe

        return {name: read_recipe(name) for name in self.lora or []}

    @property
    def recipe(self) -> LoraRecipe:
        """What the first LoRA whose file says it was trained with; nothing where there is none. Raises as `loras`."""
        from vidsparse import LoraRecipe

        return next((recipe for recipe in self.loras.values() if recipe.is_known), LoraRecipe())

    def read_prompt(self) -> Scene | None:
        """The scene that a prompt for `shapes` describes; None for other models.

        Raises:
            ValueError: an empty prompt, or one that `shapes` cannot read.
        """
        if self.model == "shapes":
            from vidsparse.shapes.scene import parse_prompt

            return parse_prompt(self.prompt)
        if not self.prompt.strip():
            raise ValueError("the prompt is empty; say what the video shows")
        return None

    def build_pattern(self) -> Pattern:
        """The pattern, in its schedule: those of the LoRA, changed by what is given.

        Raises:
            ValueError: an unknown pattern, or an option that it does not take or whose value is wrong.
        """
        from vidsparse import Dense, StepSchedule

        trained = self.recipe.pattern
        schedule = StepSchedule(trained or Dense(), dense_steps=0 if trained else DENSE_STEPS)
        if isinstance(trained, StepSchedule):
            schedule = trained
        if trained is None or self.pattern is not None:
            pattern = build_pattern(self.pattern or PATTERN, self.density, self.settings)
        else:
            pattern = change_pattern(schedule.pattern, self.density, self.settings)
        layers = None if self.dense_layers is None else integers("--dense-layers", self.dense_layers)
        asked = {"dense_steps": self.dense_steps, "dense_last_steps": self.dense_last_steps, "dense_layers": layers}
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        schedule = replace(schedule, pattern=pattern, **given)
        return pattern if isinstance(pattern, Dense) or schedule == StepSchedule(pattern) else schedule

    def build_correction(self) -> Correction | None:
        """What is added back for dropped tiles.

        Raises:
            ValueError: an unknown correction.
        """
        return self.recipe.correction if self.correction is None else build_correction(self.correction)


def integers(option: str, text: str) -> tuple[int, ...]:
    """The whole numbers of an option, such as "0,1".

    Raises:
        ValueError: something else; names the option.
    """
    try:
        return tuple(int(number) for number in text.split(",") if number.strip())
    except ValueError:
        raise ValueError(f"{option} {text!r} must be whole numbers with commas, such as 0,1") from None


def takes_request(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer shall see it: with an option for each field of its first argument in place of that."""
    first, *others = inspect.signature(command, eval_str=True).parameters.values()
    cls: Any = first.annotation
    hints = get_type_hints(cls, include_extras=True)
    empty = inspect.Parameter.empty
    asked = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(cls)
    ]

    @functools.wraps(command)
    def run(**options: Any) -> None:
        command(cls(**{field.name: options.pop(field.name) for field in fields(cls)}), **options)

    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*asked, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in others)]
    )
    return run
