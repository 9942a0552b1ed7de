"""Patterns and corrections by name, with settings, and from files."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path

import pytest

import vidsparse as library
from vidsparse import (
    Correction,
    ExactBlocks,
    Gridded,
    GriddedHeads,
    HeadModes,
    MixtureOfBlocks,
    Pattern,
    PerHead,
    PerLayer,
    PerPhase,
    ProxyTokens,
    Radial,
    RadialRaster,
    Reshaped,
    Reuse,
    SlidingTile,
    SpatialTemporal,
    StepBudget,
    StepSchedule,
    TemporalBias,
    TopBlocks,
)
from vidsparse.patterns.names import (
    build_correction,
    build_pattern,
    change_pattern,
    correction_classes,
    name_of,
    pattern_classes,
)
from vidsparse.serialize import to_data


def test_patterns_are_changed_as_they_are_built() -> None:
    assert change_pattern(SlidingTile(), settings=["window=3,8,8"]) == SlidingTile(window=(3, 8, 8))
    heads = GriddedHeads((Gridded(),))
    assert (name_of(heads), name_of(StepSchedule(Radial(0.1), 4))) == ("GriddedHeads", "radial")
    for pattern, density, settings, says in (
        (heads, 0.2, [], "pattern 'GriddedHeads' has no density; its fields are heads"),
        (Radial(0.2), 0.3, ["decay=1.0"], r"give one of density=0\.3 and decay=1\.0"),
        (Radial(0.2), None, ["window=3"], "pattern 'radial' has no window"),
        (Radial(0.2), None, ["density=much"], r"density='much' must be in \(0, 1\]"),
    ):
        with pytest.raises(ValueError, match=says):
            change_pattern(pattern, density, settings)


@pytest.mark.parametrize(
    ("pattern", "density", "settings", "expected"),
    [
        (TopBlocks(density=0.2, sink=1), None, ["top_p=0.9"], TopBlocks(top_p=0.9, sink=1)),
        (TopBlocks(top_p=0.9, sink=1), 0.2, [], TopBlocks(density=0.2, sink=1)),
        (TopBlocks(threshold=0.1), None, ["top_k=3"], TopBlocks(top_k=3)),
        (TopBlocks(top_p=0.9), None, ["variance=true"], TopBlocks(top_p=0.9, variance=True)),
        (Radial(decay=1.0), 0.2, ["sink=false"], Radial(0.2, sink=False)),
        (Radial(0.2), None, ["density=None", "decay=2.0"], Radial(decay=2.0)),
        (MixtureOfBlocks.training_free(), None, ["threshold=0.5"], MixtureOfBlocks(threshold=0.5, scope="query")),
        (MixtureOfBlocks.trained(), None, ["top_k=1,2,3"], MixtureOfBlocks((1, 2, 3))),
        (Reuse(TopBlocks(top_p=0.9)), 0.2, [], Reuse(TopBlocks(0.2))),
    ],
)
def test_a_change_replaces_what_excludes_it(
    pattern: Pattern, density: float | None, settings: list[str], expected: Pattern
) -> None:
    assert change_pattern(pattern, density, settings) == expected


@pytest.mark.parametrize(
    ("name", "density", "settings", "expected"),
    [
        ("radial", None, [], Radial(density=0.3)),
        ("radial", 0.2, ["sink=False", "tile=1,8,8"], Radial(density=0.2, sink=False, tile=(1, 8, 8))),
        ("radial", None, ["decay=1.0"], Radial(decay=1.0)),
        ("radial-raster", None, ["adjacent=half"], RadialRaster(adjacent="half")),
        ("reuse", 0.4, ["refresh_every=5"], Reuse(ExactBlocks(ratio=0.4), refresh_every=5)),
        ("reuse", None, ["pattern=top-blocks"], Reuse(TopBlocks(density=0.3))),
        ("mixture-of-blocks", None, [], MixtureOfBlocks.training_free()),
        ("mixture-of-blocks", None, ["threshold=0.25"], MixtureOfBlocks.trained()),
        ("spatial-temporal", None, ["density=None", "frames=1", "radius=4"], SpatialTemporal(None, 1, 4)),
        ("top-blocks", None, ["top_p=0.9"], TopBlocks(top_p=0.9)),
    ],
)
def test_a_pattern_is_built_from_words(
    name: str, density: float | None, settings: list[str], expected: Pattern
) -> None:
    assert build_pattern(name, density, settings) == expected


def concrete(kind: type) -> set[type]:
    public = {getattr(library, name) for name in library.__all__}
    return {cls for cls in public if isinstance(cls, type) and issubclass(cls, kind) and not inspect.isabstract(cls)}


def test_every_pattern_has_a_name_and_its_defaults_are_legal(tmp_path: Path) -> None:
    assert set(pattern_classes().values()) == concrete(Pattern) - {
        StepSchedule,
        StepBudget,
        GriddedHeads,
        PerHead,
        PerLayer,
        PerPhase,
        TemporalBias,
    }
    assert {"dense", "radial-raster", "top-blocks"} <= set(pattern_classes()) and list(pattern_classes()) == sorted(
        pattern_classes()
    )
    HeadModes(((("full", "temporal"),) * 2,)).to_json(tmp_path / "table.json")
    for name, cls in pattern_classes().items():
        pattern = build_pattern(name, None, [f"table={tmp_path}/table.json"] if name == "head-modes" else [])
        assert type(pattern) is cls and name_of(pattern) == name


def test_every_correction_has_a_name() -> None:
    assert set(correction_classes().values()) == concrete(Correction)
    assert {type(build_correction(name)) for name in correction_classes()} == concrete(Correction)
    assert build_correction("none") is None
    with pytest.raises(ValueError, match="'glasses' is unknown; choose one of none, gated-coarse, pooled-complement"):
        build_correction("glasses")


def test_fields_of_a_correction_follow_its_name() -> None:
    assert build_correction("proxy-tokens box=1,8,8  learned=true") == ProxyTokens((1, 8, 8), learned=True)
    assert build_correction("reshaped refresh_every=10 residual=none") == Reshaped("none", refresh_every=10)
    for text, message in {
        "proxy-tokens boxes=1,2,2": r"correction 'proxy-tokens' has no boxes; its fields are box, learned",
        "gated-coarse box=1,2,2": "correction 'gated-coarse' has no box; it has no fields",
        "proxy-tokens learned": "setting 'learned' must be NAME=VALUE",
        "proxy-tokens learned=maybe": "learned=maybe must be true or false",
        "reshaped refresh_every=0": "refresh_every=0 must be a whole number of at least 1",
        "none box=1,2,2": "is unknown; choose one of none, ",
        "": "correction '' is unknown",
    }.items():
        with pytest.raises(ValueError, match=message):
            build_correction(text)


@pytest.mark.parametrize("change", [False, True], ids=["built", "changed"])
@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("pattern=3", "pattern=3 must be the name of a pattern, such as pattern=top-blocks"),
        ("pattern=None", "pattern=None must be the name of a pattern"),
        ("pattern=spiral", "pattern 'spiral' is unknown"),
        ("pattern=missing.json", "missing.json cannot be read"),
    ],
)
def test_a_pattern_inside_a_pattern_is_given_by_its_name(setting: str, says: str, change: bool) -> None:
    with pytest.raises(ValueError, match=says):
        change_pattern(Reuse(TopBlocks(0.2)), None, [setting]) if change else build_pattern("reuse", None, [setting])
    assert change_pattern(Reuse(TopBlocks(0.2)), 0.4, ["pattern=radial"]) == Reuse(Radial(0.4))
    assert change_pattern(Reuse(TopBlocks(0.2)), 0.4) == Reuse(TopBlocks(0.4))


@pytest.mark.parametrize(
    ("setting", "says"),
    [("table=3", "table=3 must name a file"), ("table=missing", "table=missing cannot be read: No such file")],
)
def test_a_table_is_given_as_a_file(setting: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build_pattern("head-modes", None, [setting])


def test_tables_of_head_modes_have_one_written_form(tmp_path: Path) -> None:
    modes = HeadModes(((("full", "temporal"),) * 2,), window=3)
    written, old = tmp_path / "t.json", tmp_path / "old.json"
    modes.to_json(written)
    assert json.loads(written.read_text()) == json.loads(json.dumps(to_data(modes)))
    old.write_text(json.dumps({name: value for name, value in to_data(modes).items() if name != "class"}))
    for path in (written, old):
        assert HeadModes.from_json(path) == modes == build_pattern(str(path))
        assert build_pattern("head-modes", None, [f"table={path}", "radius=2"]) == replace(modes, radius=2)


@pytest.mark.parametrize(
    "pattern",
    [
        GriddedHeads((Gridded(sink=2), Gridded(), Gridded(stride=(1, 4, 8), phases=((0, 1, 2),)))),
        Reuse(TopBlocks(top_k=3), refresh_every=4),
        Radial(density=0.2),
    ],
    ids=["of-each-head", "nested", "plain"],
)
def test_a_pattern_is_read_from_a_file(pattern: Pattern, tmp_path: Path) -> None:
    path = tmp_path / "pattern.json"
    path.write_text(json.dumps(to_data(pattern)))
    assert build_pattern(str(path)) == pattern
    if isinstance(pattern, Radial):
        assert build_pattern(str(path), 0.4, ["sink=false"]) == Radial(density=0.4, sink=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "pattern.json cannot be read: No such file"),
        ("{", "pattern .*: Expecting property name"),
        ("[]", r"got \[\], expected an object with a class"),
        ('{"class": "Radial", "densty": 0.2}', "Radial has no densty"),
        ('{"class": "Radial", "density": 2}', r"density=2 must be in \(0, 1\]"),
        ('{"class": "Rectified"}', "holds Rectified, expected a pattern"),
        ('{"class": "StepSchedule", "pattern": {"class": "Dense"}}', "holds StepSchedule, expected a pattern without"),
    ],
    ids=["no-file", "broken", "list", "field", "value", "correction", "schedule"],
)
def test_files_that_hold_no_pattern(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "pattern.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        build_pattern(str(path))


@pytest.mark.parametrize(("text", "value"), [("false", False), ("False", False), ("no", False), ("1", True)], ids=str)
def test_a_truth_may_be_written_as_a_word(text: str, value: bool) -> None:
    assert build_pattern("radial", 0.3, [f"sink={text}"]) == Radial(density=0.3, sink=value)
