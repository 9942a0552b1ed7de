"""What `generate` and `compare` are asked for, and the checks that need no weights."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument

from vidsparse.cli.attention import biased, scheduled_pattern, tuned_pattern
from vidsparse.cli.generation_options import GenerationOptions
from vidsparse.cli.messages import note

if TYPE_CHECKING:
    from vidsparse import Correction, LoraRecipe, Pattern
    from vidsparse.generation.forecast import Forecast
    from vidsparse.generation.inputs import Inputs, Plan
    from vidsparse.generation.models import Model
    from vidsparse.presets import Preset


@dataclass(frozen=True)
class Request(GenerationOptions):
    """What is asked for, and the checks that need no weights."""

    @functools.cached_property
    def known(self) -> Model:
        """The model, before its weights are loaded. Raises: see `find_model` and `Model.serving`."""
        from vidsparse.generation.models import find_model

        return find_model(self.model).serving(self.inputs.given)

    @property
    def inputs(self) -> Inputs:
        """The files that the video starts from."""
        from vidsparse.generation.inputs import Inputs

        return Inputs(*(None if file is None else Path(file) for file in (self.image, self.last_image, self.video)))

    @functools.cached_property
    def plan(self) -> Plan:
        """The size of the video, and what is known of the files that it starts from. Raises: see `Inputs.plan`."""
        frames = self.frames or (self.recipe.frames if self.video is None else None)  # a video has its own
        return self.inputs.plan(self.known, frames, self.height, self.width)

    @functools.cached_property
    def loras(self) -> dict[str, LoraRecipe]:
        """Recipe of each LoRA, by what was asked for.

        Raises:
            OSError: no such LoRA.
            ValueError: its file is not a LoRA, or of a later vidsparse.
        """
        from vidsparse.lora.asked import AskedLora
        from vidsparse.lora.files import read_recipe
        from vidsparse.lora.source import checkpoint_of
        from vidsparse.patterns.foreign import foreign_class

        foreign_class(self.pattern)  # imported first: a LoRA may name a class that the user names, and no other
        asked = {lora: AskedLora.parse(lora).source for lora in self.lora or []}
        for lora, source in asked.items():
            if (file := checkpoint_of(source)) is not None:
                note(f"{lora} has no finished LoRA; the one of its checkpoint {file.parent.name} is used")
        return {lora: read_recipe(source) for lora, source in asked.items()}

    @property
    def recipe(self) -> LoraRecipe:
        """The recipe of the first LoRA that has one; an empty recipe otherwise. Raises: see `loras`."""
        from vidsparse import LoraRecipe

        return LoraRecipe.first_known(self.loras.values())

    @functools.cached_property
    def chosen(self) -> Preset | None:
        """The preset that --preset names, else that of the model, unless a LoRA or other options decide the pattern.

        Raises:
            ValueError: an unknown preset, or one beside a pattern.
            OSError: the settings of the model cannot be read.
        """
        from vidsparse.generation.transformers import preset_of
        from vidsparse.presets import preset

        if self.profile is not None:
            return None
        if self.preset is not None:
            if self.pattern is not None:
                raise ValueError(f"--preset {self.preset} has a pattern of its own; leave out --pattern {self.pattern}")
            return preset(self.preset)
        asked = (self.pattern, self.density, self.settings, self.budget, self.recipe.pattern, self.recipe.correction)
        return None if any(x is not None for x in asked) else preset_of(self.model)

    @functools.cached_property
    def tuned(self) -> Pattern | None:
        """The pattern of --profile, for the size of the video. Raises: see `vidsparse.cli.attention.tuned_pattern`."""
        return None if self.profile is None else tuned_pattern(self, self.profile)

    @property
    def start(self) -> tuple[Pattern | None, Correction | None]:
        """Pattern and correction that the other options change: the profile's, the preset's, else the LoRA's.

        Raises: see `chosen` and `vidsparse.cli.attention.tuned_pattern`.
        """
        if self.tuned is not None:
            return self.tuned, None
        known = self.chosen or self.recipe
        return known.pattern, known.correction

    @property
    def denoising_steps(self) -> int:
        """The steps that run: those of `asked_steps`, or with a strength below 1 the last ones of them."""
        from vidsparse.generation.strength import steps_run

        return steps_run(self.known.pipeline_class, self.asked_steps, self.strength)

    @property
    def asked_steps(self) -> int:
        """The steps that the pipeline is asked for: what is given, else the LoRA's, else the model's."""
        steps: int = self.steps or self.recipe.inference_steps or self.known.default("num_inference_steps")
        return steps

    @property
    def frame_rate(self) -> int:
        """Frames a second of the result: what is given, else those of the video that is changed, else the model's."""
        return self.fps or round(self.plan.fps or 0) or self.known.fps

    def with_options(self, **options: Any) -> Request:
        """The request with other options of a video; model, LoRAs and preset are not looked up again."""
        other = replace(self, **options)
        kept = ("loras", "chosen") + (("known",) if other.inputs.given == self.inputs.given else ())
        other.__dict__.update({name: self.__dict__[name] for name in kept if name in self.__dict__})
        return other

    def build_arguments(self) -> dict[str, Any]:
        """The keyword arguments for `pipe(...)`: what is given, else what LoRA and model were made for.

        Raises:
            ValueError: a prompt that the model cannot read, what its pipeline does not take, or a file that is no image
                or no video.
            OSError: the settings of the model, or a file, cannot be read.
        """
        from vidsparse.generation.strength import check_strength

        prompt, cls = self.read_prompt(self.prompt), self.known.pipeline_class
        asked = {
            "negative_prompt": None if self.negative_prompt is None else self.read_prompt(self.negative_prompt),
            "strength": self.strength,
            "num_inference_steps": self.steps or self.recipe.inference_steps,
            "guidance_scale": self.guidance,
        }
        given = {name: value for name, value in asked.items() if value is not None}
        check_strength(cls, self.strength, self.asked_steps)
        arguments = {**self.known.sampling, "prompt": prompt, **given, **self.plan.settings(cls)}
        self.known.check_arguments(arguments | self.plan.stand_ins(cls))
        return arguments

    def pixels(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments for `pipe(...)` that hold the images and the video that the video starts from.

        Raises:
            ValueError: a file that can no longer be read.
        """
        return self.plan.read(self.known.pipeline_class, self.size(arguments)[0])

    def build_pattern(self) -> Pattern:
        """The pattern, in its schedule and under its bias. Raises: see `scheduled_pattern` and `biased`."""
        return biased(scheduled_pattern(self), self.temporal_bias)

    def build_correction(self) -> Correction | None:
        """The correction: what is given, else that of `start`.

        Raises:
            ValueError: an unknown correction, or one whose learned proxies no LoRA brings.
        """
        from vidsparse.lora.proxies import check_brought
        from vidsparse.patterns.names import build_correction

        correction = self.start[1] if self.correction is None else build_correction(self.correction)
        check_brought(correction, self.loras.values())
        return correction

    def check(self, pattern: Pattern, arguments: dict[str, Any]) -> None:
        """Refuse before loading what would be refused later, and note where nothing would be sparse.

        Raises:
            ValueError: an implementation, a layer, a size or a budget that is not possible.
            NotImplementedError: an implementation that is missing here, or a model without an adapter.
            OSError: the settings of the model cannot be read.
        """
        import torch

        from vidsparse.attention import check_impl
        from vidsparse.generation.dense_steps import default_dense_steps, has_sparse_step
        from vidsparse.generation.frames import geometry
        from vidsparse.generation.pipeline import check_device
        from vidsparse.generation.transformers import check_pattern
        from vidsparse.lora.base import check_base

        for lora, recipe in self.loras.items():
            check_base(lora, recipe.base, self.model)
        check_impl(self.impl, torch.device(check_device(self.device)))
        check_pattern(self.model, pattern)
        positions = self.positions or self.recipe.positions
        frames, height, width = self.size(arguments)
        latents = 1
        if frames and height and width:
            known = geometry(self.model)
            known.check(frames, height, width, any_frames=positions is not None)
            _, latents = known.frames(frames)
        steps = self.denoising_steps
        if not has_sparse_step(pattern, steps, latents):
            fewer = default_dense_steps(steps)  # of a run of one step: 0
            advice = f"--dense-steps {fewer}, or more --steps" if self.budget is None else "a lower --budget"
            note(f"all {steps} steps are dense, so nothing will be sparse; use {advice}")

    def size(self, arguments: dict[str, Any]) -> tuple[int | None, int | None, int | None]:
        """Frames, height and width of the video of these arguments; None where the pipeline decides by itself."""
        frames, height, width = (arguments.get(x) or self.known.default(x) for x in ("num_frames", "height", "width"))
        return frames or self.plan.frames, height, width

    def read_prompt(self, prompt: str) -> str:
        """The prompt as the model knows it.

        Raises:
            ValueError: an empty prompt, or one that the model cannot read; says where others are read.
        """
        from vidsparse.generation.models import ships

        known = self.known
        try:
            return known.read_prompt(prompt)
        except ValueError as error:
            if not ships(self.model) or not prompt.strip():
                raise
            raise ValueError(f"{error}. For any other prompt give --model, the folder or Hub id of a model") from None

    def resolved(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Arguments of `pipe(...)`, and for those that decide a video and were left out, what the pipeline takes.

        Images and videos are the paths of their files.
        """
        names = "negative_prompt", "height", "width", "num_frames", "num_inference_steps", "guidance_scale"
        files = {name: str(file.path) for name, file in self.plan.files.items()}
        strength = {"strength": self.known.default("strength")} if self.video is not None else {}
        defaults = {name: self.known.default(name) for name in names} | strength
        return defaults | {"num_frames": self.size(arguments)[0]} | arguments | files

    def forecast(self, pattern: Pattern, arguments: dict[str, Any]) -> Forecast | None:
        """What the video will cost; None where the pipeline decides its size. Raises: see `forecast`."""
        from vidsparse.generation.forecast import forecast

        frames, height, width = self.size(arguments)
        if frames and height and width:
            shift = self.flow_shift or self.recipe.flow_shift
            return forecast(self.model, pattern, frames, height, width, self.denoising_steps, shift)
        return None

    @property
    def place(self) -> tuple[str, str]:
        """The device and the dtype of the model: what is given, else what this machine is best at.

        Raises:
            ValueError: the device is not available.
        """
        from vidsparse.generation.pipeline import check_device, default_dtype

        device = check_device(self.device)
        return device, self.dtype or default_dtype(device)

    def check_shared(self, gpus: int) -> None:
        """Refuse, before anything is loaded, what several GPUs cannot share.

        Raises:
            ValueError: heads that their number does not divide.
            OSError: the settings of the model cannot be read.
        """
        from vidsparse.generation.frames import geometry

        if (heads := geometry(self.model).heads) % gpus:
            possible = ", ".join(str(n) for n in range(2, heads + 1) if heads % n == 0)
            raise ValueError(
                f"--ulysses {gpus} does not divide the {heads} heads of {self.model}; these do: {possible}"
            )

    def checked(self) -> tuple[Pattern, Correction | None, dict[str, Any]]:
        """Pattern, correction and arguments of `pipe(...)`, after all checks that need no weights.

        Raises: see the builders.
        """
        arguments = self.build_arguments()
        pattern, correction = self.build_pattern(), self.build_correction()
        for text in self.plan.notes:
            note(text)
        self.check(pattern, arguments)
        return pattern, correction, arguments

    def load(self, pattern: Pattern, correction: Correction | None) -> tuple[Any, Correction | None]:
        """The pipeline, and the correction of `fitting_correction`. Raises: see `load_pipe`."""
        if self.chosen is not None and self.preset is None:
            note(f"preset {self.chosen.name}, which is the model's: {self.chosen.summary}")
        pipe = self.load_pipe()
        return pipe, self.fitting_correction(pipe, pattern, correction)

    def load_pipe(self) -> Any:
        """The pipeline. Raises: see `vidsparse.generation.pipeline.load_pipeline`."""
        from vidsparse.cli.messages import live_console
        from vidsparse.generation.allocator import keep_freed_memory
        from vidsparse.generation.pipeline import check_device, load_pipeline
        from vidsparse.generation.pipeline_inputs import option_of

        if self.known.pipeline is not None:
            own, given = self.known.parts["_class_name"], " or ".join(map(option_of, self.inputs.given))
            note(f"{own} takes no {given}: its parts run as {self.known.pipeline}")
        if check_device(self.device) == "cpu":
            keep_freed_memory()
        with live_console().status(f"loading {self.model}"):
            return load_pipeline(
                self.known,
                loras=self.lora or [],
                dtype=self.dtype,
                device=self.device,
                offload=self.offload,
                sampler=self.sampler,
                flow_shift=self.flow_shift,
                positions=self.positions,
                frames=self.frames,
                trained_frames=self.trained_frames,
                note=note,
            )

    def fitting_correction(self, pipe: Any, pattern: Pattern, correction: Correction | None) -> Correction | None:
        """The correction, which is `GatedCoarse` by default for a model that was trained with it."""
        from vidsparse import Dense, GatedCoarse, TemporalBias
        from vidsparse.generation.pipeline import is_gated
        from vidsparse.patterns.schedule import bare

        pattern = pattern.pattern if isinstance(pattern, TemporalBias) else pattern
        may_be_gated = self.correction is None and correction is None and not isinstance(bare(pattern), Dense)
        if may_be_gated and is_gated(pipe):
            note(
                f"{self.model} was trained with a gated coarse branch: --correction is gated-coarse, none leaves it out"
            )
            return GatedCoarse()
        return correction


@dataclass(frozen=True)
class OneOrMany(Request):
    """A request whose prompt is missing where a file has many."""

    prompt: Annotated[str, Argument(help="What the video shows.", show_default=False)] = ""
