"""The command line without a model: patterns built from words, `inspect`, `patterns` and `bench`."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import vidsparse_in_a_folder
from PIL import Image

from vidsparse.cli.patterns import PATTERNS

vidsparse = pytest.fixture(vidsparse_in_a_folder)


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


def test_the_command_line_takes_a_file(vidsparse: Any, tmp_path: Path) -> None:
    path = tmp_path / "pattern.json"
    path.write_text('{"class": "GriddedHeads", "heads": [{"class": "Gridded", "sink": 2}, {"class": "Gridded"}]}')
    done = vidsparse("inspect", "--frames", 33, "--heads", 2, "--pattern", path, "--model-family", "shapes")
    assert done.code == 0, done.err
    done = vidsparse("inspect", "--frames", 33, "--heads", 2, "--pattern", path, "--density", 0.2)
    assert done.code == 1 and "takes no --density" in done.err


TINY_GRID = ("--frames", 9, "--height", 128, "--width", 144, "--heads", 1, "--head-dim", 16, "--device", "cpu")


def test_bench_times_dense_and_sparse(vidsparse: Any) -> None:
    done = vidsparse("bench", *TINY_GRID, "--dtype", "float32", "--json")
    result = json.loads(done.out)
    assert result["tokens"] == 3 * 8 * 9 and result["impl"] == "cpu" and result["dense"] == "sdpa"
    assert result["R"] == pytest.approx(result["sparse_seconds"] / result["dense_seconds"] / result["density"])
    lines = vidsparse("bench", *TINY_GRID, "--impl", "reference", "--density", 0.5).out.splitlines()
    assert lines[0].startswith("Radial(density=0.5") and "216 tokens, 1 heads of 16, bfloat16 on cpu" in lines[0]
    assert "impl reference" in lines[2] and "R = " in lines[3]
