"""Every field of every pattern and correction, tried with wrong values: a new field without a check fails here."""

from __future__ import annotations

import math
import types
from dataclasses import dataclass, fields, replace
from inspect import isabstract
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import torch

from vidsparse import (
    BlockMap,
    Correction,
    Dense,
    ExactBlocks,
    FreeSwim,
    Gridded,
    GriddedHeads,
    HeadModes,
    InwardWindow,
    LearnedGate,
    LightForcing,
    MixtureOfBlocks,
    Pattern,
    PerHead,
    PerLayer,
    PerPhase,
    PooledComplement,
    PowerOfTwo,
    ProxyTokens,
    Radial,
    RadialRaster,
    Rectified,
    Reshaped,
    Reuse,
    ShiftedWindows,
    SlidingClip,
    SlidingTile,
    SpatialTemporal,
    StepBudget,
    StepSchedule,
    TemporalBias,
    TopBlocks,
    VideoGrid,
    VideoSparse,
    corrections,
    patterns,
)
from vidsparse.block_map import HeadGroup, head_groups
from vidsparse.corrections import GatedCoarse

CLASSES = [
    cls
    for module in (patterns, corrections)
    for cls in vars(module).values()
    if isinstance(cls, type) and issubclass(cls, (Pattern, Correction)) and not isabstract(cls)
]
# At least one of each; more where fields exclude each other.
VALID: list[Any] = [
    Dense(),
    ExactBlocks(),
    FreeSwim(Dense()),
    Gridded(phases=((0, 0, 0),)),
    GriddedHeads((Gridded(),)),
    HeadModes(((("full",),), (("diagonal",),))),
    InwardWindow(native=(1, 1)),
    InwardWindow(scale=2.0),
    LearnedGate("gate", density=0.2),
    LearnedGate("gate", threshold=0.01, tile=(1, 4, 4)),
    LightForcing(window=9, tile=(1, 4, 4)),
    MixtureOfBlocks(top_k=(2, 2, 2)),
    MixtureOfBlocks(threshold=0.5),
    PerHead((Dense(),), (0,)),
    PerLayer((Dense(),), (0,)),
    PerPhase((Dense(),), ()),
    PowerOfTwo(),
    Radial(density=0.2),
    Radial(decay=0.5),
    RadialRaster(),
    Reuse(Dense()),
    ShiftedWindows(),
    ShiftedWindows(window=(1, 8, 8)),
    SlidingClip(Dense()),
    SlidingTile(),
    SpatialTemporal(),
    SpatialTemporal(None, frames=2, radius=8.0),
    StepBudget(Dense()),
    StepSchedule(Dense()),
    TemporalBias(Dense()),
    TopBlocks(density=0.2),
    TopBlocks(top_k=3),
    TopBlocks(top_p=0.5),
    TopBlocks(threshold=0.1),
    VideoSparse(),
    PooledComplement(),
    ProxyTokens(),
    Rectified(),
    Reshaped(),
    GatedCoarse(),
]
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2.5, -0.5, math.nan, math.inf, "0.3", "no", b"", object(), {}, set(), Dense),
    *((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), (True, 8, 8), (1.5, 8, 8), ("1", "2", "3"), (None, None), (0.5, "1")),
    *([], [1], [0.5, 1.0], [1, 2, 3], ((1, 2),), ((0, 0, True),), ((0, 0, 0.5),), [(0, 0, 0)], ((("full",),),), "full"),
    *(torch.tensor(1), torch.tensor([1, 8, 8])),
]
Field = tuple[Any, str, Any]


def conforms(value: Any, hint: Any) -> bool:
    """Whether a value has exactly the annotated type: a bool is not a number, a whole number may be a float."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(conforms(value, arg) for arg in args)
    if origin is Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if origin is tuple:
        if type(value) is not tuple:
            return False
        items = [args[0]] * len(value) if args[-1] is Ellipsis else args
        return len(items) == len(value) and all(map(conforms, value, items))
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint if hint in (int, bool, str, type(None)) else isinstance(value, hint)


def below(hint: Any) -> list[Any]:
    """Numbers that no field of this type may have: none of them counts anything below 0, or is not finite."""
    types_of = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [-1] * (int in types_of) + [-1.0, math.nan, math.inf] * (float in types_of)


def wrong_values(cls: type, name: str) -> list[Any]:
    hint = get_type_hints(cls)[name]
    return [value for value in VALUES if not conforms(value, hint)] + below(hint)


def refused(example: Any, name: str, value: Any) -> str | None:
    """The error's text; None where the value was accepted."""
    try:
        replace(example, **{name: value})
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def example_of(cls: type, name: str) -> Any:
    """A valid instance, with the field set where one has it."""
    examples = [example for example in VALID if type(example) is cls]
    return next((example for example in examples if getattr(example, name) is not None), examples[0])


EVERY_FIELD = [(cls, f.name) for cls in CLASSES for f in fields(cls)]


def test_every_pattern_and_correction_has_an_example() -> None:
    assert {type(example) for example in VALID} == set(CLASSES)


@pytest.mark.parametrize(("cls", "name"), EVERY_FIELD, ids=[f"{cls.__name__}-{name}" for cls, name in EVERY_FIELD])
def test_wrong_values_are_refused(cls: type, name: str) -> None:
    for value in wrong_values(cls, name):
        message = refused(example_of(cls, name), name, value)
        assert message is not None, f"{cls.__name__}({name}={value!r}) was accepted"
        assert name in message, f"the error does not name the field: {message}"
        assert "\n" not in message and ("must be" in message or "give" in message or "unknown" in message), message


def test_a_field_without_a_check_would_be_noticed() -> None:
    @dataclass(frozen=True)
    class Unchecked:
        rows: int = 1

    assert {repr(v) for v in wrong_values(Unchecked, "rows") if refused(Unchecked(), "rows", v) is None} >= {
        "True",
        "2.5",
    }


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [
        (SpatialTemporal, "rows", 0),
        (RadialRaster, "block", 0),
        (Reuse, "refresh_every", 0),
        (Reshaped, "refresh_every", 0),
        (TopBlocks, "top_k", 0),
        (PooledComplement, "box", 0),
        (Radial, "density", 0),
        (Radial, "density", 1.5),
        (Radial, "decay", 0),
        (TopBlocks, "top_p", 1.5),
        (TopBlocks, "threshold", 0.0),
        (MixtureOfBlocks, "threshold", 1.5),
        (Reuse, "min_recall", 1.5),
        (ExactBlocks, "ratio", (0.5, 0.5, 1.5)),
        (ExactBlocks, "ratio", (0.5, 0.5, 0)),
        (StepSchedule, "steps", (5, 2)),
        (StepSchedule, "steps", (-1, 2)),
        (StepSchedule, "sigmas", (1.0, 0.5)),
        (StepSchedule, "sigmas", (0.5, math.nan)),
        (TopBlocks, "neighbours", (0, -1, 0)),
        (SlidingTile, "window", (0, 8, 8)),
        (MixtureOfBlocks, "top_k", (0, 1, 1)),
        (MixtureOfBlocks, "spatial", (0, 1)),
        (PowerOfTwo, "axes", 4),
        (HeadModes, "bounds", (1.0,)),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_values_out_of_range_are_refused(cls: type, name: str, value: Any) -> None:
    message = refused(example_of(cls, name), name, value)
    assert message is not None and name in message, message


GRID = VideoGrid(2, 8, 8)


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (None, "a plan must be a BlockMap or a tuple of HeadGroups, got None"),
        (torch.ones(2, 2, dtype=torch.bool), r"got Tensor.*BlockMap\.from_dense\(kept, grid, tile\)"),
        ((), "hold heads"),
        ((Dense().plan(GRID),), r"got \(BlockMap,\)"),
        ([HeadGroup((0, 1), Dense().plan(GRID))], r"got list"),
    ],
    ids=["none", "tensor", "no-groups", "maps-without-heads", "list"],
)
def test_a_plan_of_another_type_is_refused(plan: Any, says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        head_groups(plan, 2)


def test_a_map_that_leaves_a_query_tile_without_keys_is_refused() -> None:
    kept = torch.eye(4, dtype=torch.bool)
    kept[2] = False
    empty = BlockMap.from_dense(kept, GRID, (1, 8, 4))
    with pytest.raises(ValueError, match=r"query tile 2 of head 0 .* no key tile; .* own tile"):
        head_groups(empty, 2)
    # Groups say what such a query gives.
    assert head_groups((HeadGroup((0, 1), empty, "mean"),), 2)[0].block_map is empty
    assert head_groups(BlockMap.from_dense(torch.eye(4, dtype=torch.bool), GRID, (1, 8, 4)), 2)
