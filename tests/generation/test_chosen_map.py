"""The map that a pattern chose in a real step is the one that a whole generation runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import tiny_lora

from vidsparse import Context, Dense, HeadModes, MixtureOfBlocks, Pattern, Radial, Reuse, StepSchedule, TopBlocks
from vidsparse.generation.chosen_map import chosen_map
from vidsparse.generation.sample import sample
from vidsparse.patterns.names import build_pattern, pattern_classes

ARGUMENTS: dict[str, Any] = {
    "prompt": "a red circle",
    "num_frames": 9,
    "height": 64,
    "width": 64,
    "num_inference_steps": 3,
    "max_sequence_length": 32,
}


@dataclass(frozen=True)
class Recording(Pattern):
    """Keeps every map that `pattern` chooses."""

    pattern: Pattern
    chosen: dict[tuple[int, int, int], Any] = field(default_factory=dict, compare=False)

    def plan(self, grid: Any, context: Context | None = None) -> Any:
        return self.pattern.plan(grid, context)

    def select(self, query: Any, key: Any, grid: Any, context: Context) -> Any:
        found = self.pattern.select(query, key, grid, context)
        self.chosen[context.layer, context.step, context.branch] = found
        return found


@pytest.mark.parametrize("pattern", [TopBlocks(0.3), Reuse(TopBlocks(0.3))], ids=["each-step", "kept"])
def test_the_chosen_map_is_that_of_a_whole_generation(pattern: Pattern) -> None:
    pipe, recording = tiny_lora.pipeline(), Recording(pattern)
    pipe.set_progress_bar_config(disable=True)
    processors = dict(pipe.transformer.attn_processors)
    sample(pipe, recording, {**ARGUMENTS, "output_type": "latent"}, seed=3)
    for layer, step in ((0, 0), (1, 2)):
        found = chosen_map(pipe, StepSchedule(pattern, 3), ARGUMENTS, layer=layer, step=step, seed=3)
        assert (found.layer, found.step, found.branch) == (layer, step, 0)
        assert found.plan == recording.chosen[layer, step, 0]
        assert all(pipe.transformer.attn_processors[name] is processor for name, processor in processors.items())
    other = chosen_map(pipe, pattern, ARGUMENTS, layer=1, step=0, seed=4)
    assert other.plan != recording.chosen[1, 0, 0]


def test_what_does_not_exist_is_refused() -> None:
    pipe = tiny_lora.pipeline()
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="layer 9 does not exist: the model has layers 0 to"):
        chosen_map(pipe, TopBlocks(0.3), ARGUMENTS, layer=9, step=0)
    with pytest.raises(ValueError, match="chose no map in layer 0 of step 7: step 7 does not exist"):
        chosen_map(pipe, TopBlocks(0.3), ARGUMENTS, layer=0, step=7)


def test_which_patterns_choose_by_content() -> None:
    found = {name for name in pattern_classes() if name != "head-modes" and build_pattern(name).reads_content}
    assert found >= {"exact-blocks", "mixture-of-blocks", "reuse", "top-blocks", "video-sparse"}
    assert not found & {"dense", "gridded", "power-of-two", "radial", "radial-raster", "sliding-tile"}
    assert StepSchedule(Reuse(TopBlocks(0.3)), 2).reads_content and not Reuse(Radial(0.2)).reads_content
    for pattern in (Dense(), HeadModes(((("full",),),)), StepSchedule(Radial(0.2), 1)):
        assert not pattern.reads_content
    assert MixtureOfBlocks.training_free().reads_content
