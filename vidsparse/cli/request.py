"""What `generate` and `compare` are asked for: the options they share, and the checks that need no model."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from typer import Argument, Option

from vidsparse.cli.patterns import CORRECTIONS, DENSITY_HELP, SET_HELP, build_correction, build_pattern

if TYPE_CHECKING:
    from vidsparse import Correction, Pattern
    from vidsparse.shapes.scene import Scene

ATTENTION, VIDEO, MACHINE = "Attention", "Video", "Machine"
OWN = "that of the model"


@dataclass(frozen=True)
class Request:
    """A prompt, a model, a pattern and how to sample. None: as the model's pipeline has it."""

    prompt: Annotated[str, Argument(help="What the video shows.", show_default=False)]
    model: Annotated[str, Option(help="'shapes', the folder of a diffusers pipeline, or a Hub id.")] = "shapes"

    pattern: Annotated[str, Option(help="See `vidsparse patterns`.", rich_help_panel=ATTENTION)] = "radial"
    density: Annotated[
        float | None, Option(help=DENSITY_HELP, rich_help_panel=ATTENTION, show_default="of the pattern")
    ] = None
    settings: Annotated[list[str] | None, Option("--set", help=SET_HELP, rich_help_panel=ATTENTION)] = None
    correction: Annotated[str, Option(help=f"{', '.join(CORRECTIONS)}.", rich_help_panel=ATTENTION)] = "none"
    dense_steps: Annotated[int, Option(min=0, help="Dense steps at the start.", rich_help_panel=ATTENTION)] = 4
    dense_last_steps: Annotated[int, Option(min=0, help="Dense steps at the end.", rich_help_panel=ATTENTION)] = 0
    dense_layers: Annotated[
        str, Option(help="Layers that stay dense, such as 0,1 or -1.", rich_help_panel=ATTENTION, show_default="none")
    ] = ""
    impl: Annotated[str, Option(help="auto, cpu, flex, reference or triton.", rich_help_panel=ATTENTION)] = "auto"

    frames: Annotated[int | None, Option(min=1, rich_help_panel=VIDEO, show_default=OWN)] = None
    height: Annotated[int | None, Option(min=1, rich_help_panel=VIDEO, show_default=OWN)] = None
    width: Annotated[int | None, Option(min=1, rich_help_panel=VIDEO, show_default=OWN)] = None
    steps: Annotated[int | None, Option(min=1, help="Denoising steps.", rich_help_panel=VIDEO, show_default=OWN)] = None
    guidance: Annotated[
        float | None, Option(help="Classifier-free guidance scale.", rich_help_panel=VIDEO, show_default=OWN)
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
        """The pattern, in its schedule.

        Raises:
            ValueError: an unknown pattern, or an option that it does not take or whose value is wrong.
        """
        pattern = build_pattern(self.pattern, self.density, self.settings)
        layers = _integers("--dense-layers", self.dense_layers)
        if self.pattern == "dense" or not (self.dense_steps or self.dense_last_steps or layers):
            return pattern
        from vidsparse import StepSchedule

        return StepSchedule(pattern, self.dense_steps, self.dense_last_steps, layers)

    def build_correction(self) -> Correction | None:
        """What is added back for dropped tiles.

        Raises:
            ValueError: an unknown correction.
        """
        return build_correction(self.correction)


def _integers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(",") if number.strip())
    except ValueError:
        raise ValueError(f"{option} {text!r} must be whole numbers with commas, such as 0,1") from None


def takes_request(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer shall see it: with the fields of `Request`, an option each, in place of `request`."""
    hints = get_type_hints(Request, include_extras=True)
    empty = inspect.Parameter.empty
    asked = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(Request)
    ]
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    @functools.wraps(command)
    def run(**options: Any) -> None:
        request = Request(**{field.name: options.pop(field.name) for field in fields(Request)})
        command(request, **options)

    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*asked, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own)]
    )
    return run
