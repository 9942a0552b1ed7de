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
        pattern = "A name that `vidsparse patterns` lists, or a pattern; by default the preset of the model."
        density = "Share of tile pairs to keep, for the name of a pattern."
        dense_steps = "How many first steps stay dense, or a share of them below 1; by default none."
        return [
            InputParam("pattern", description=pattern),
            InputParam("density", type_hint=float, description=density),
            InputParam("dense_steps", type_hint=float, description=dense_steps),
        ]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        asked = self.get_block_state(state)
        pattern = asked.pattern
        if pattern is None and (asked.density, asked.dense_steps) != (None, None):
            raise ValueError("density and dense_steps are for a pattern; give one, such as pattern='radial'")
        if isinstance(pattern, str):
            pattern = build_pattern(pattern, asked.density)
        elif asked.density is not None:
            raise ValueError(f"density={asked.density} is for the name of a pattern; set it in {pattern!r} instead")
        if asked.dense_steps is not None:
            pattern = vidsparse.StepSchedule(pattern, dense_steps=asked.dense_steps)
        earlier = vars(components).get("sparse_run")
        if earlier is not None:
            earlier.restore()
        components.sparse_run = vidsparse.sparsify(components, pattern)
        return components, state
