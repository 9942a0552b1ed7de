"""`Run.record` and `Run.maps`: what is kept of what a pattern chose, and that it is no more than asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tiny_wan import SIZES, SPARSE, WITHOUT_PROMPT, call, generate, tiny, tokens_of, wan_pipeline

from vidsparse import (
    BlockMap,
    ChosenMap,
    Context,
    HeadGroup,
    Pattern,
    Radial,
    RadialRaster,
    Reshaped,
    Reuse,
    StepSchedule,
    TopBlocks,
    VideoGrid,
    sparsify,
)
from vidsparse.runtime.chosen import ChosenMaps

TOP = TopBlocks(0.3, tile=(1, 4, 4))


@dataclass(frozen=True)
class Recording(Pattern):
    """Keeps every map that `pattern` chooses."""

    pattern: Pattern
    chosen: dict[tuple[str, int, int, int], Any] = field(default_factory=dict, compare=False)

    def plan(self, grid: Any, context: Context | None = None) -> Any:
        return self.pattern.plan(grid, context)

    def select(self, query: Any, key: Any, grid: Any, context: Context) -> Any:
        found = self.pattern.select(query, key, grid, context)
        self.chosen[context.transformer, context.layer, context.step, context.branch] = found
        return found


@dataclass(frozen=True)
class Halves(Pattern):
    """Different tiles for the two heads."""

    def plan(self, grid: VideoGrid, context: Context | None = None) -> tuple[HeadGroup, ...]:
        maps = [Radial(0.3, tile=tile).plan(grid) for tile in ((1, 4, 4), (2, 4, 2))]
        return HeadGroup((1,), maps[0]), HeadGroup((0,), maps[1])


def places(maps: tuple[ChosenMap, ...]) -> list[tuple[int, int, int]]:
    return [(m.layer, m.step, m.branch) for m in maps]


def test_what_was_asked_for_is_kept_and_no_more() -> None:
    pipe, recording = wan_pipeline(), Recording(TOP)
    with sparsify(pipe, recording) as run:
        run.record(layers=(-1,), steps=(1, 3), branches=(0, 1))
        generate(pipe)
    assert places(run.maps) == [(1, 1, 0), (1, 1, 1), (1, 3, 0), (1, 3, 1)]
    for found in run.maps:
        chosen = recording.chosen["transformer", found.layer, found.step, found.branch]
        assert found.plan == chosen and found.transformer == "transformer" and found.grid == chosen.grid
    assert run.maps[0].plan != run.maps[2].plan  # content moves on from step to step


def test_without_asking_nothing_is_kept() -> None:
    with sparsify(wan := wan_pipeline(), TOP) as run:
        generate(wan)
    assert run.maps == ()


def test_branches_are_the_calls_of_a_step() -> None:
    with sparsify(transformer := tiny(), TOP) as run:
        run.record(layers=(0,), steps=(0,), branches=(1,))
        call(transformer)
        call(transformer, **WITHOUT_PROMPT)
        assert places(run.maps) == [(0, 0, 1)]
        run.record(layers=(0,), steps=(0,))
        assert run.maps == ()


def test_a_static_map_is_kept_once() -> None:
    with sparsify(pipe := wan_pipeline(), SPARSE) as run:
        run.record(layers=(0, 1), steps=range(4))
        generate(pipe)
    assert len(run.maps) == 8
    assert len({id(found.plan) for found in run.maps}) == 1
    assert run.maps[0].plan is SPARSE.plan(run.maps[0].grid)


def test_equal_maps_in_other_objects_are_kept_once() -> None:
    """As Reuse gives them on a GPU."""
    maps, grid = ChosenMaps(), VideoGrid(5, 8, 8)
    maps.ask((0,), (0, 1, 2), (0,))
    for step, density in enumerate((0.3, 0.3, 0.6)):
        plan = Radial(density).plan(grid)
        again = BlockMap(grid, plan.query_tile, plan.key_tile, plan.counts.clone(), plan.indices.clone())
        maps.add(Context(step=step), grid, (HeadGroup((0, 1), again),))
    first, second, third = (found.plan for found in maps.found())
    assert first is second and second != third


def test_a_later_video_replaces_an_earlier_one() -> None:
    with sparsify(pipe := wan_pipeline(), TOP) as run:
        run.record(layers=(0,), steps=(3,))
        generate(pipe, guidance_scale=1.0)
        (first,) = run.maps
        generate(pipe, guidance_scale=1.0, prompt_embeds=None, size=48)
        (second,) = run.maps
    assert first.grid != second.grid


def test_groups_of_heads_and_maps_in_raster_order() -> None:
    for pattern in (Halves(), RadialRaster(block=16)):
        with sparsify(transformer := tiny(), pattern) as run:
            run.record(layers=(0,), steps=(0,))
            call(transformer)
        (found,) = run.maps
        assert found.grid == tokens_of(SIZES["5x7x11"]) and found.plan == pattern.plan(found.grid)


def test_heads_of_one_gpu_have_their_numbers_in_the_layer() -> None:
    maps, grid = ChosenMaps(), VideoGrid(5, 8, 8)
    maps.ask((0,), (0,), (0,))
    block_map = Radial(0.3).plan(grid)
    maps.add(Context(local_heads=(3, 1)), grid, (HeadGroup((0, 1), block_map),))
    (found,) = maps.found()
    assert found.plan == (HeadGroup((3, 1), block_map),)


def test_dense_steps_have_no_map_and_corrections_do_not_hide_it() -> None:
    with sparsify(pipe := wan_pipeline(), StepSchedule(SPARSE, dense_steps=2), correction=Reshaped()) as run:
        run.record(layers=(0,), steps=range(4))
        generate(pipe)
    # Step 2 refreshes Reshaped, which runs dense attention: what the pattern chose is the sparse map all the same.
    assert places(run.maps) == [(0, 2, 0), (0, 3, 0)] and {found.plan for found in run.maps} == {run.maps[0].plan}
    assert run.maps[0].plan.density == pytest.approx(0.3, abs=0.1)  # type: ignore[union-attr]


def test_reuse_keeps_one_map() -> None:
    with sparsify(pipe := wan_pipeline(), Reuse(TOP)) as run:
        run.record(layers=(0,), steps=range(4))
        generate(pipe)
    assert len(run.maps) == 4 and len({id(found.plan) for found in run.maps}) == 1


def test_compiled_layers() -> None:
    transformer = tiny()
    call(transformer)
    with sparsify(transformer, TOP) as run, torch.no_grad():
        run.record(layers=(0, 1), steps=(0,))
        expected = call(transformer)
        plain, _ = run.maps, run.record(layers=(0, 1), steps=(0,))
        for block in transformer.blocks:
            block.compile(backend="eager")
        torch.testing.assert_close(call(transformer), expected)
        assert run.maps == plain and len(plain) == 2


def test_reset_forgets_the_maps_and_goes_on_keeping() -> None:
    with sparsify(transformer := tiny(), TOP) as run:
        run.record(layers=(0,), steps=(0, 1))
        call(transformer)
        assert len(run.maps) == 1
        run.reset()
        assert run.maps == ()
        call(transformer, timestep=400.0)
        assert len(run.maps) == 1


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"layers": (2,), "steps": (0,)}, "layer 2 does not exist: the model has layers 0 to 1"),
        ({"layers": (-3,), "steps": (0,)}, "layer -3 does not exist"),
        ({"layers": (0,), "steps": (-1,)}, r"steps=\(-1,\) must be whole numbers of at least 0"),
        ({"layers": (0.5,), "steps": (0,)}, r"layers=\(0.5,\) must be whole numbers"),
        ({"layers": (0,), "steps": (0,), "branches": ("prompt",)}, "branches=.*must be whole numbers"),
    ],
    ids=str,
)
def test_what_is_refused(asked: dict[str, Any], says: str) -> None:
    with sparsify(tiny(), TOP) as run, pytest.raises(ValueError, match=says):
        run.record(**asked)
    with pytest.raises(RuntimeError, match="restored; call sparsify again"):
        run.record(layers=(0,), steps=(0,))
