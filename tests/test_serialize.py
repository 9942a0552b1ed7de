"""Patterns and corrections as plain data: what is read back equals what was written, and nothing else is read."""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import vidsparse
from vidsparse import (
    Correction,
    Dense,
    ExactBlocks,
    GatedCoarse,
    Gridded,
    GriddedHeads,
    HeadModes,
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
    SlidingTile,
    SpatialTemporal,
    StepBudget,
    StepSchedule,
    TemporalBias,
    TopBlocks,
    VideoGrid,
    VideoSparse,
)
from vidsparse.patterns.names import build_pattern, correction_classes, pattern_classes
from vidsparse.serialize import NotLoaded, from_data, to_data

EXAMPLES: list[Pattern | Correction] = [
    Dense(),
    Dense(tile=(2, 8, 8)),
    ExactBlocks(ratio=0.1, sink=2),
    Gridded(stride=(1, 8, 8), local_frames=1, sink=0, phases=((0, 0, 0), (0, 1, 2))),
    GriddedHeads((Gridded(), Gridded(stride=(1, 4, 4)))),
    HeadModes(((("full", "temporal"), ("stripe", "diagonal")),) * 2, bounds=(0.75,), stripe=(0, -1)),
    MixtureOfBlocks.training_free(),
    MixtureOfBlocks.trained(0.1),
    PerHead((Radial(density=0.2), Dense()), (0, 1, 0)),
    PerLayer((Dense(), PerHead((Gridded(), TopBlocks(top_p=0.9)), (1, 0))), (0, 1)),
    PerPhase((Dense(), Reuse(Radial(density=0.2))), (0.75,)),
    PowerOfTwo(axes=2, window=(1, 2, 2)),
    Radial(density=0.1 + 0.2, sink=False, tile=(1, 8, 8)),
    Radial(decay=1.5),
    RadialRaster(adjacent="half"),
    Reuse.published(steps=20),
    Reuse(TopBlocks(top_p=0.9), refresh_every=5, min_recall=0.8),
    SlidingTile(window=(9, 24, 24), stride=(3, 8, 8)),
    SpatialTemporal(None, 1, 4),
    StepBudget(Radial(density=0.2), 0.4, 0.6, 0.3, 3, 2, 4),
    TemporalBias(Radial(density=0.2), 2.0, 8, (0, -1), (0.2, 0.9)),
    StepSchedule(Reuse(Radial(density=0.2)), 4, 1, dense_layers=(0, -1), steps=(2, 30), sigmas=(0.0, 0.9)),
    VideoSparse(density=0.2),
    GatedCoarse(),
    PooledComplement(),
    ProxyTokens((2, 4, 4), learned=True),
    Rectified(),
    Reshaped(),
]


SHOWN = {type(value) for value in EXAMPLES}
EXAMPLES += [build_pattern(name) for name, cls in pattern_classes().items() if cls not in SHOWN]
EXAMPLES += [cls() for cls in correction_classes().values() if cls not in SHOWN]


@pytest.mark.parametrize("value", EXAMPLES, ids=lambda value: type(value).__name__)
def test_what_is_read_equals_what_was_written(value: Pattern | Correction) -> None:
    found = from_data(json.loads(json.dumps(to_data(value), allow_nan=False)))
    assert found == value and type(found) is type(value)
    assert hash(found) == hash(value), "a list has stayed where a tuple was"


def test_every_pattern_and_correction_has_an_example() -> None:
    public = {getattr(vidsparse, name) for name in vidsparse.__all__}
    kinds = {k for k in public if isinstance(k, type) and issubclass(k, (Pattern, Correction))}
    examples = {type(value) for value in EXAMPLES}
    assert examples == {kind for kind in kinds if not inspect.isabstract(kind)}


def test_the_data_is_names_and_fields() -> None:
    assert to_data(StepSchedule(Dense(tile=(1, 8, 8)), dense_steps=4)) == {
        "class": "StepSchedule",
        "pattern": {"class": "Dense", "tile": [1, 8, 8]},
        "dense_steps": 4,
        "dense_last_steps": 0,
        "dense_layers": [],
        "steps": None,
        "sigmas": None,
    }


def test_a_field_with_a_default_may_be_missing() -> None:
    assert from_data({"class": "Radial", "density": 0.2}) == Radial(density=0.2)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (
            {"class": "Spiral", "turns": 3},
            "class 'Spiral' is neither a pattern nor a correction of vidsparse; known are Dense, ExactB",
        ),
        ({"class": "VideoGrid", "frames": 1, "height": 1, "width": 1}, "class 'VideoGrid' is neither"),
        ({"class": "Pattern"}, "class 'Pattern' is neither"),
        ({"class": "os.system"}, "class 'os.system' is neither"),
        ({"class": ["Radial"]}, "is neither a pattern"),
        ({"density": 0.2}, "class None is neither"),
        ("Radial", "got 'Radial', expected an object with a class"),
        ({"class": "Radial", "density": 0.2, "turns": 3}, "Radial has no turns; its fields are density, decay"),
        (
            {"class": "StepSchedule", "dense_steps": 4},
            "lacks pattern; its fields are pattern, dense",
        ),
        ({"class": "Radial", "density": 2}, r"must be in \(0, 1\]"),
        ({"class": "Radial", "density": "much"}, r"density='much' must be in \(0, 1\]"),
        ({"class": "Reuse", "pattern": 3}, "Reuse with {'pattern': 3}"),
    ],
    ids=str,
)
def test_what_cannot_be_read(data: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        from_data(data)


@dataclass(frozen=True)
class Mine(Dense):
    """A pattern of one's own, in a script."""


Mine.__module__ = "__main__"


@dataclass(frozen=True)
class Importable(Dense):
    """A pattern of one's own, in a module."""

    strength: float = 1.0


def test_a_class_of_a_module_is_named_with_it() -> None:
    data = to_data(StepSchedule(Importable(tile=(1, 8, 8), strength=2.0), dense_steps=1))
    assert data["pattern"] == {"class": f"{__name__}:Importable", "tile": [1, 8, 8], "strength": 2.0}
    assert from_data(json.loads(json.dumps(data))) == StepSchedule(Importable((1, 8, 8), 2.0), dense_steps=1)


@pytest.mark.parametrize("nested", [False, True])
def test_no_code_is_imported_because_data_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nested: bool
) -> None:
    (tmp_path / "innocent_patterns.py").write_text("raise SystemExit('this code has run')")
    monkeypatch.syspath_prepend(tmp_path)
    data: dict[str, Any] = {"class": "innocent_patterns:Mine", "density": 0.2}
    data = {"class": "Reuse", "pattern": data} if nested else data
    with pytest.raises(NotLoaded, match=r"not part of vidsparse.* pass --pattern innocent_patterns:M"):
        from_data(data)
    assert "innocent_patterns" not in sys.modules


@pytest.mark.parametrize(
    "name", ["os:system", "__main__:Mine", "pathlib:Path", "vidsparse.patterns.base:Pattern", ":Radial", "os:", ":"]
)
def test_what_is_loaded_and_is_no_pattern(name: str) -> None:
    with pytest.raises(NotLoaded, match="not part of vidsparse"):
        from_data({"class": name})


def test_reading_asks_no_module_for_what_it_imports_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = ModuleType("lazy_patterns")
    asked: list[str] = []
    monkeypatch.setattr(lazy, "__getattr__", asked.append, raising=False)
    monkeypatch.setitem(sys.modules, "lazy_patterns", lazy)
    with pytest.raises(NotLoaded):
        from_data({"class": "lazy_patterns:Mine"})
    assert not asked


class Words:
    """Something that JSON has no word for."""


def holding(pattern: Any, **fields: Any) -> Any:
    """A pattern with values that its own checks refuse."""
    for name, value in fields.items():
        object.__setattr__(pattern, name, value)
    return pattern


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (Mine(), "Mine is not a pattern or correction of vidsparse, .* pass yours to vidsparse.sparsify"),
        (Reuse(Mine()), "Mine is not a pattern"),
        (VideoGrid(1, 1, 1), "VideoGrid is not a pattern"),
        (type("Radial", (), {})(), "Radial is not a pattern"),
        (holding(PowerOfTwo(), raster=Words()), "PowerOfTwo.raster=.*Words.* cannot be written"),
    ],
    ids=["of-ones-own", "around-one-of-ones-own", "no-pattern", "same-name", "field"],
)
def test_what_cannot_be_written(value: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        to_data(value)
