"""What is known of a model before its weights are loaded, and what a model that the library knows has besides."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidsparse.shapes.shipped import DEFAULT as DEFAULT, FOLDER, LONGER_FRAMES, SAMPLING

if TYPE_CHECKING:
    import torch

    from vidsparse.generation.video import Frames

SHIPPING = repr(DEFAULT)  # for messages: the model that needs no download


@dataclass(frozen=True)
class Model:
    """A diffusers pipeline in a folder or on the Hub; `find_model` returns one.

    Attributes:
        name: as it was asked for.
        sampling: arguments of `pipe(...)` that are used unless others are given; what is missing here has the default
            of the pipeline.
        longer_frames: frames of the videos that a LoRA for longer ones learns; None: as many as the model makes.
        small: whether it is so small that its weights stay in float32 for a training.
        example_prompt: a prompt for what needs any video; None: the user must give one.
        pipeline: the class of diffusers that loads it; None: the one that its settings name.
    """

    name: str
    sampling: Mapping[str, Any] = field(default_factory=dict)
    longer_frames: int | None = None
    small: bool = False
    example_prompt: str | None = None
    pipeline: str | None = None

    def load(self, dtype: torch.dtype, quantization: Any = None) -> Any:
        """The pipeline, on the CPU.

        Args:
            dtype: of the weights.
            quantization: a `PipelineQuantizationConfig` of diffusers, or None.

        Raises:
            OSError: the model's files are missing or cannot be read.
        """
        import diffusers

        cls = getattr(diffusers, self.pipeline or "DiffusionPipeline")
        more = {} if quantization is None else {"quantization_config": quantization}
        try:
            return cls.from_pretrained(source_of(self.name), torch_dtype=dtype, **more)
        except (OSError, ValueError, AttributeError, KeyError) as error:
            # The last two where model_index.json names a part that this diffusers lacks.
            raise OSError(f"cannot load model {self.name!r}: {error}") from error

    def read_prompt(self, prompt: str) -> str:
        """The prompt as the model knows it.

        Raises:
            ValueError: an empty prompt, or one that the model cannot read.
        """
        if not prompt.strip():
            raise ValueError("the prompt is empty; say what the video shows")
        return prompt

    def prompts(self) -> list[str]:
        """Prompts to try the model with.

        Raises:
            ValueError: nobody knows what the model should show.
        """
        raise ValueError(f"give --prompts FILE, a text file with a prompt for {self.name} on each line")

    def judge(self, frames: Frames, prompt: str) -> dict[str, float] | None:
        """Scores in [0, 1] of how well a video shows its prompt, by attribute and their mean; None without a judge."""
        del frames, prompt
        return None

    @cached_property
    def fps(self) -> int:
        """Frames a second of its videos, as published for its family; read from the settings of its transformer.

        Raises: see `vidsparse.generation.transformers.configured_transformers`.
        """
        from vidsparse.generation.transformers import configured_transformers, defaults
        from vidsparse.runtime.registry import adapter_of

        cls, settings = next(iter(configured_transformers(self.name).values()))
        return adapter_of(cls).fps({**defaults(cls), **settings})

    @cached_property
    def parts(self) -> dict[str, Any]:
        """What the pipeline is made of: its model_index.json.

        Raises:
            OSError: it cannot be read.
        """
        from vidsparse.generation.config_files import INDEX, read_config

        index = read_config(source_of(self.name), INDEX)
        if index is None:
            raise OSError(f"cannot load model {self.name!r}: it has no {INDEX}, so it is not a pipeline")
        return index

    @property
    def transformers(self) -> tuple[str, ...]:
        """Names of its transformers in the pipeline. Raises: see `parts`."""
        from vidsparse.runtime.pipeline import TRANSFORMERS

        return tuple(name for name in TRANSFORMERS if (self.parts.get(name) or [None])[0]) or TRANSFORMERS[:1]

    @cached_property
    def pipeline_class(self) -> Any:
        """The class of the pipeline, from its settings alone.

        Raises:
            OSError: the settings cannot be read, or name a pipeline that this diffusers lacks.
        """
        import diffusers

        name = self.pipeline or self.parts.get("_class_name")
        cls = getattr(diffusers, name, None) if isinstance(name, str) else None
        if cls is None:
            raise OSError(
                f"cannot load model {self.name!r}: model_index.json names the pipeline {name!r}, which diffusers "
                f"{diffusers.__version__} lacks"
            )
        return cls

    def serving(self, given: Collection[str]) -> Model:
        """The model as a pipeline that takes images or a video: its own, or another one of diffusers on the same parts.

        Args:
            given: names of `vidsparse.generation.pipeline_inputs.INPUTS`.

        Raises:
            ValueError: no pipeline takes them.
            OSError: the settings cannot be read.
        """
        from vidsparse.generation.pipeline_inputs import pipeline_for

        if not given:
            return self
        found = pipeline_for(self.pipeline_class, self.parts, given)
        return self if found is self.pipeline_class else replace(self, pipeline=found.__name__)

    def default(self, argument: str) -> Any:
        """What `pipe(...)` gets for an argument unless told otherwise; None where the pipeline decides by itself."""
        if argument in self.sampling:
            return self.sampling[argument]
        known = inspect.signature(self.pipeline_class.__call__).parameters.get(argument)
        return None if known is None or known.default is known.empty else known.default

    def check_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Refuse arguments of `pipe(...)` that the pipeline would refuse once it is loaded.

        Raises:
            ValueError: an argument that it does not take, a size that it cannot make, or a pipeline that needs more
                than a prompt.
        """
        from vidsparse.generation.pipeline_inputs import makes_videos, needed, option_of, taken

        cls = self.pipeline_class
        parameters = list(inspect.signature(cls.__call__).parameters.values())[1:]
        names = [p.name for p in parameters]
        if not makes_videos(cls):
            raise ValueError(f"{cls.__name__} makes images; give --model a pipeline that makes videos")
        if (options := needed(cls)) and not any(taken(cls)[option] in arguments for option in options):
            files = " or ".join(f"{option_of(option)} FILE" for option in options)
            raise ValueError(f"{cls.__name__} needs {files}: what its video starts from")
        required = {p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
        if missing := sorted(required - set(arguments)):
            raise ValueError(
                f"{cls.__name__} needs {', '.join(missing)}, which no option gives; load it in Python and call "
                "vidsparse.sparsify(pipe, ...)"
            )
        if unknown := [name for name in arguments if name not in names]:
            raise ValueError(f"{cls.__name__} takes no {', '.join(unknown)}")
        check = getattr(cls, "check_inputs", None)
        if check is None:
            return
        checked = list(inspect.signature(check).parameters.values())[1:]
        given = {}
        for p in (p for p in checked if p.kind is p.POSITIONAL_OR_KEYWORD):
            value = arguments.get(p.name, self.default(p.name))
            given[p.name] = p.default if value is None and p.default is not p.empty else value
        try:
            check(object.__new__(cls), **given)
        except (AttributeError, TypeError):  # it needs its parts, and checks again when they are there
            return


class Shapes(Model):
    """The model that ships with the package: simple shapes that move, and a judge that measures them."""

    @cached_property
    def fps(self) -> int:
        """Frames a second of its videos."""
        return 12

    def load(self, dtype: torch.dtype, quantization: Any = None) -> Any:
        from vidsparse.shapes.model import load_pipeline

        if quantization is not None:
            return super().load(dtype, quantization)
        return load_pipeline(dtype, self.name)

    def read_prompt(self, prompt: str) -> str:
        from vidsparse.shapes.scene import parse_prompt

        return parse_prompt(prompt).caption

    def prompts(self) -> list[str]:
        import random

        from vidsparse.shapes.scene import held_out_scenes

        scenes = held_out_scenes()
        return [scene.caption for scene in random.Random(0).sample(scenes, 8)]

    def serving(self, given: Collection[str]) -> Model:
        if given:
            from vidsparse.generation.pipeline_inputs import option_of

            options = " and ".join(map(option_of, given))
            raise ValueError(
                f"{self.name} makes videos from words alone and takes no {options}; leave it out, or give --model, the "
                "folder or Hub id of a model"
            )
        return self

    def judge(self, frames: Frames, prompt: str) -> dict[str, float] | None:
        if len(frames) < 2:
            return None
        from dataclasses import asdict

        import torch

        from vidsparse.shapes.judge import score
        from vidsparse.shapes.scene import parse_prompt

        found = score(torch.from_numpy(frames).permute(3, 0, 1, 2) * 2 - 1, parse_prompt(prompt))
        return {**asdict(found), "mean": found.mean}


def find_model(name: str) -> Model:
    """The model of a name. Nothing is loaded, and nothing is asked of the Hub.

    Args:
        name: of the model that ships, the folder of a diffusers pipeline, or a Hub id.

    Raises:
        ValueError: something else.
    """
    if ships(name):
        return Shapes(name, dict(SAMPLING), LONGER_FRAMES, True, "a red circle moving left on a blue background")
    if Path(name).is_dir():
        if not (Path(name) / "model_index.json").is_file():
            raise ValueError(f"model {name!r} is not a diffusers pipeline: the folder has no model_index.json")
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(
            f"model {name!r} is unknown; give {SHIPPING}, the folder of a diffusers pipeline, or a Hub id such as "
            "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
        )
    return Model(name)


def ships(model: str) -> bool:
    """Whether the model of a name ships with the package."""
    return model == DEFAULT


def source_of(model: str) -> str:
    """The folder of the model that ships with the package; other models are their own folder or Hub id."""
    return str(FOLDER) if ships(model) else model
