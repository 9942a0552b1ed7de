"""The command line without a model: patterns built from words, `inspect`, `patterns` and `bench`."""

from __future__ import annotations

import inspect
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import vidsparse_in_a_folder
from PIL import Image

import vidsparse as library
from vidsparse import (
    ExactBlocks,
    Gridded,
    GriddedHeads,
    HeadModes,
    MixtureOfBlocks,
    Pattern,
    Radial,
    RadialRaster,
    Reuse,
    SlidingTile,
    SpatialTemporal,
    StepSchedule,
    TopBlocks,
)
from vidsparse.cli.patterns import PATTERNS, build_pattern, change_pattern, name_of
from vidsparse.serialize import to_data

vidsparse = pytest.fixture(vidsparse_in_a_folder)


def test_patterns_are_changed_as_they_are_built() -> None:
    assert change_pattern(SlidingTile(), settings=["window=3,8,8"]) == SlidingTile(window=(3, 8, 8))
    heads = GriddedHeads((Gridded(),))
    assert (name_of(heads), name_of(StepSchedule(Radial(0.1), 4))) == ("GriddedHeads", "radial")
    for pattern, density, settings, says in (
        (heads, 0.2, [], "pattern 'GriddedHeads' takes no --density; --set takes heads"),
        (Radial(decay=1.0), 0.2, [], r"give one of density=0\.2 and decay=1\.0"),
        (Radial(0.2), None, ["window=3"], "pattern 'radial' has no window"),
        (Radial(0.2), None, ["density=much"], "pattern 'radial' with {'density': 'much'}"),
    ):
        with pytest.raises(ValueError, match=says):
            change_pattern(pattern, density, settings)


@pytest.mark.parametrize("pattern", ["dense", "radial", "radial-raster", "sliding-tile"])
def test_inspect_shows_and_draws_every_pattern(vidsparse: Any, pattern: str) -> None:
    size = ["--frames", 17, "--height", 240, "--width", 400]
    done = vidsparse("inspect", *size, "--pattern", pattern, "--png", "map.png")
    assert done.code == 0, done.err
    assert "5x15x25 (latent frames x height x width), 1,875 tokens" in done.out
    assert re.search(r"attention FLOPs +72 GFLOP dense", done.out)  # 4 x 1875^2 x 40 x 128
    assert os.listdir() == ["map.png"]
    with Image.open("map.png") as picture:
        colours = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)
    assert picture.width > 1000 and len(colours) > 50


def test_inspect_takes_other_heads_and_notes_odd_sizes(vidsparse: Any) -> None:
    size = ["--model-family", "shapes", "--frames", 35, "--height", 66, "--width", 64]
    done = vidsparse("inspect", *size, "--heads", 1, "--head-dim", 250, "--density", 0.5)
    assert done.code == 0, done.err
    assert "9x16x16" in done.out and "5.31 GFLOP dense" in done.out
    assert "using 33" in done.err and "using 64x64" in done.err


def test_patterns_lists_every_pattern(vidsparse: Any) -> None:
    done = vidsparse("patterns")
    assert done.code == 0, done.err
    for word in (*PATTERNS, "2506.19852", "density=0.3", "window=9,24,24"):
        assert word in done.out


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


def test_every_pattern_has_a_name_and_its_defaults_are_legal(tmp_path: Path) -> None:
    classes = {getattr(library, entry.cls) for entry in PATTERNS.values()}
    public = {getattr(library, name) for name in library.__all__}
    concrete = {p for p in public if isinstance(p, type) and issubclass(p, Pattern) and not inspect.isabstract(p)}
    assert classes == concrete - {StepSchedule, GriddedHeads}
    HeadModes(((("full", "temporal"),) * 2,)).to_json(tmp_path / "table.json")
    for name, entry in PATTERNS.items():
        settings = [f"table={tmp_path}/table.json"] if name == "head-modes" else []
        assert type(build_pattern(name, None, settings)) is getattr(library, entry.cls)


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


def test_the_command_line_takes_a_file(vidsparse: Any, tmp_path: Path) -> None:
    path = tmp_path / "pattern.json"
    path.write_text('{"class": "GriddedHeads", "heads": [{"class": "Gridded", "sink": 2}, {"class": "Gridded"}]}')
    done = vidsparse("inspect", "--frames", 33, "--heads", 2, "--pattern", path, "--model-family", "shapes")
    assert done.code == 0, done.err
    done = vidsparse("inspect", "--frames", 33, "--heads", 2, "--pattern", path, "--density", 0.2)
    assert done.code == 1 and "takes no --density" in done.err


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


TINY_GRID = ("--frames", 9, "--height", 128, "--width", 144, "--heads", 1, "--head-dim", 16, "--device", "cpu")


def test_bench_times_dense_and_sparse(vidsparse: Any) -> None:
    done = vidsparse("bench", *TINY_GRID, "--dtype", "float32", "--json")
    result = json.loads(done.out)
    assert result["tokens"] == 3 * 8 * 9 and result["impl"] == "cpu" and result["dense"] == "sdpa"
    assert result["R"] == pytest.approx(result["sparse_seconds"] / result["dense_seconds"] / result["density"])
    lines = vidsparse("bench", *TINY_GRID, "--impl", "reference", "--density", 0.5).out.splitlines()
    assert lines[0].startswith("Radial(density=0.5") and "216 tokens, 1 heads of 16, bfloat16 on cpu" in lines[0]
    assert "impl reference" in lines[2] and "R = " in lines[3]
