"""A block of diffusers' modular pipelines that makes the attention of the blocks after it sparse."""

from __future__ import annotations

from typing import Any

from diffusers.modular_pipelines import InputParam, ModularPipelineBlocks

import vidsparse
from vidsparse.patterns.names import build_pattern


class SparsifyStep(ModularPipelineBlocks):
    """Sparsifies the transformers of its pipeline, each time the pipeline runs, with the pattern of that call.

    The run of `vidsparse.sparsify` is then `pipe.sparse_run`: `pipe.sparse_run.report()` says what ran, and
    `pipe.sparse_run.restore()` makes the transformers dense again.
    """

    _requirements = {"vidsparse": ">=0.1"}  # noqa: RUF012 (diffusers' own attribute)

    @property
    def description(self) -> str:
        return "Makes the video self-attention of the pipeline's transformers sparse. Put it before the denoising."

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam(
                "pattern", default="radial", description="A name that `vidsparse patterns` lists, or a pattern."
            ),
            InputParam(
                "density", type_hint=float, description="Share of tile pairs to keep, with the name of a pattern."
            ),
            InputParam("dense_steps", type_hint=int, default=0, description="How many first steps stay dense."),
        ]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        asked = self.get_block_state(state)
        pattern = asked.pattern
        if isinstance(pattern, str):
            pattern = build_pattern(pattern, asked.density)
        elif asked.density is not None:
            raise ValueError(f"density={asked.density} is for the name of a pattern; set it in {pattern!r} instead")
        earlier = vars(components).get("sparse_run")
        if earlier is not None:
            earlier.restore()
        schedule = vidsparse.StepSchedule(pattern, dense_steps=asked.dense_steps)
        components.sparse_run = vidsparse.sparsify(components, schedule)
        return components, state
