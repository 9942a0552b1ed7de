"""The command line without a model: patterns built from words, `inspect`, `patterns` and `bench`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import tiny_pipeline, vidsparse_in_a_folder
from matplotlib.figure import Figure
from needs import needs_weights
from PIL import Image
from twins import class_or_skip

from vidsparse import BlockMap, Context, Reuse, TopBlocks, VideoGrid
from vidsparse.cli import inspect
from vidsparse.patterns.names import correction_classes, pattern_classes
from vidsparse.pictures import plot
from vidsparse.presets import PRESETS

vidsparse = pytest.fixture(vidsparse_in_a_folder)
tiny = pytest.fixture(scope="session")(tiny_pipeline)


@pytest.mark.parametrize("pattern", ["radial", "radial-raster"])  # tiles in space, and tiles in raster order
def test_inspect_shows_and_draws_a_pattern(vidsparse: Any, pattern: str) -> None:
    size = ["--frames", 17, "--height", 240, "--width", 400]
    done = vidsparse("inspect", *size, "--pattern", pattern, "--png", "map.png")
    assert done.code == 0, done.err
    assert "5x15x25 (latent frames x height x width), 1,875 tokens" in done.out
    assert re.search(r"attention FLOPs +72 GFLOP dense", done.out)  # 4 x 1875^2 x 40 x 128
    assert os.listdir() == ["map.png"]
    with Image.open("map.png") as picture:
        colours = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)
    assert picture.width > 1000 and len(colours) > 50


def test_inspect_predicts_memory_and_time(vidsparse: Any) -> None:
    done = vidsparse("inspect", "--gpu", "rtx4090")  # 75,600 tokens, 40 heads of 128, two bytes each, four tensors
    shown = " ".join(done.out.split())
    assert "3.1 GB of query, key, value and output of a layer in bfloat16" in shown and " of map" in shown
    dense, sparse = map(float, re.search(r"time on RTX 4090 ([\d.e+]+) ms dense, ([\d.]+) ms sparse", shown).groups())
    assert dense == pytest.approx(4 * 75600**2 * 5120 / (0.5 * 165.2e12) * 1e3, rel=0.01)
    bound = float(re.search(r"at most ([\d.]+)x faster", shown)[1])
    assert dense / sparse == pytest.approx(bound, rel=0.02)
    assert "time on" not in vidsparse("inspect").out


def test_inspect_takes_other_heads_and_notes_odd_sizes(vidsparse: Any) -> None:
    size = ["--model-family", "shapes", "--frames", 35, "--height", 66, "--width", 64]
    done = vidsparse("inspect", *size, "--heads", 1, "--head-dim", 250, "--density", 0.5)
    assert done.code == 0, done.err
    assert "9x16x16" in done.out and "5.31 GFLOP dense" in done.out
    assert "using 33" in done.err and "using 64x64" in done.err


def test_inspect_shows_query_and_key_tiles_that_differ(capsys: pytest.CaptureFixture[str]) -> None:
    grid = VideoGrid(4, 8, 8)
    inspect._print(grid, BlockMap.from_dense(torch.ones(4, 8, dtype=torch.bool), grid, (1, 8, 8), (2, 4, 4)), "own", 64)
    shown = re.sub(" +", " ", capsys.readouterr().out)
    assert "query tile 1x8x8, 4x1x1 = 4 tiles" in shown and "key tile 2x4x4, 2x2x2 = 8 tiles" in shown
    assert "sees 8 to 8 of 8 key tiles" in shown


def test_a_note_on_frames_names_legal_lengths_where_the_stride_decides(vidsparse: Any) -> None:
    size = ["--height", 256, "--width", 256]
    done = vidsparse("inspect", "--model", "ltxvideo", "--frames", 100, *size)
    assert "stride of 8 in time: legal are 1, 9, 17, ...; using 97" in done.err
    class_or_skip("MiniMaxH3Transformer3DModel")
    done = vidsparse("inspect", "--model", "minimaxh3", "--frames", 100, *size)
    assert "note: 100 frames do not fit the VAE; using 107" in done.err and "legal" not in done.err


def test_patterns_lists_every_pattern(vidsparse: Any) -> None:
    done = vidsparse("patterns")
    assert done.code == 0, done.err
    for word in (*pattern_classes(), *correction_classes(), "2506.19852", "density=0.3", "window=9,24,24"):
        assert word in done.out


def test_presets_lists_every_preset(vidsparse: Any) -> None:
    done = vidsparse("presets")
    assert done.code == 0, done.err
    assert [known.name for known in PRESETS if f" {known.name} " not in done.out] == []
    assert "None of them has run here" in done.out


def test_the_command_line_takes_a_file(vidsparse: Any, tmp_path: Path) -> None:
    path = tmp_path / "pattern.json"
    path.write_text('{"class": "GriddedHeads", "heads": [{"class": "Gridded", "sink": 2}, {"class": "Gridded"}]}')
    done = vidsparse("inspect", "--frames", 33, "--heads", 2, "--pattern", path, "--model-family", "shapes")
    assert done.code == 0, done.err
    done = vidsparse("inspect", "--frames", 33, "--heads", 2, "--pattern", path, "--density", 0.2)
    assert done.code == 1 and "has no density" in done.err


@pytest.mark.parametrize("family", ["hunyuanvideo", "ltxvideo", "mochi", "cogvideox", "kandinsky5"])
def test_inspect_knows_the_grid_of_every_family(vidsparse: Any, family: str) -> None:
    done = vidsparse("inspect", "--model", family, "--frames", 25, "--height", 512, "--width", 768)
    assert done.code == 0, done.err
    assert f"tokens of {family}: " in done.out and " tiles" in done.out


def test_inspect_tells_what_a_density_and_a_tile_really_give(vidsparse: Any) -> None:
    size = ["--model", "wan", "--frames", 17, "--height", 480, "--width", 832]
    done = vidsparse("inspect", *size, "--density", 0.001)
    assert done.code == 0 and "note: density 0.001 is not possible here: the pattern keeps at least 0.0" in done.err
    assert "not possible" not in vidsparse("inspect", *size, "--density", 0.3).err
    done = vidsparse("inspect", *size, "--set", "tile=8,8,8")
    # 5 x 30 x 52 tokens in 1 x 4 x 7 tiles of 512: 14,336 slots.
    assert "45.6% of the slots of tiles are empty" in done.out and "note: 46% of the slots" in done.err
    found = float(re.search(r"at most ([\d.]+)x faster", done.out)[1])
    kept = float(re.search(r"([\d.]+) of tile pairs", done.out)[1])
    assert found == pytest.approx(7800**2 / (14336**2 * kept), rel=0.02)


def test_inspect_draws_one_latent_frame(vidsparse: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = []
    save = Figure.savefig

    def saved(figure: Any, *arguments: Any, **settings: Any) -> None:
        save(figure, *arguments, **settings)
        frames = next(axes for axes in figure.get_axes() if axes.get_xlabel() == "key frame")
        ticks.extend([list(frames.get_xticks()), list(frames.get_yticks())])

    monkeypatch.setattr(Figure, "savefig", saved)
    assert vidsparse("inspect", "--frames", 1, "--png", "one.png").code == 0
    assert ticks == [[0], [0]]


@needs_weights
def test_a_map_that_is_chosen_is_that_of_the_finer_expert(vidsparse: Any) -> None:
    size = ["--model", "shapes", "--frames", 5, "--height", 64, "--width", 64]
    done = vidsparse("inspect", *size, "--pattern", "top-blocks", "--png", "chosen.png")
    assert done.code == 0, done.err
    assert "wrote chosen.png" in done.out


def test_what_a_pattern_chooses_by_content_is_drawn_from_a_real_step(
    vidsparse: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    draw = plot.map_figure
    monkeypatch.setattr(plot, "map_figure", lambda *given: drawn.append(given) or draw(*given))
    size = ["--model", tiny, "--frames", 9, "--height", 64, "--width", 64, "--png", "a.png", "--overwrite"]
    pattern = ["--pattern", "reuse", "--set", "pattern=top-blocks", "--density", 0.3]
    done = vidsparse("inspect", *size, *pattern)
    assert done.code == 1 and "give a --prompt" in done.err and not drawn
    for _ in range(2):
        done = vidsparse("inspect", *size, *pattern, "--prompt", "a red circle")
        assert done.code == 0, done.err
    (first, _, title, _), (second, _, _, _) = drawn
    assert title.endswith(", layer 1, step 5 of 10, head 0")
    made_up = Reuse(TopBlocks(0.3)).plan(first.grid, Context(heads=3))
    assert torch.equal(first.to_dense(), second.to_dense())
    assert first.to_dense().shape[-2:] == made_up.to_dense().shape[-2:]
    assert not torch.equal(first.to_dense()[0, 0], made_up.to_dense()[0, 0])


@pytest.mark.parametrize("columns", [60, 120])
def test_narrow_terminals_show_whole_names(columns: int) -> None:
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "dumb"}
    for arguments in (["patterns"], ["presets"], ["generate", "--help"]):
        command = [sys.executable, "-m", "vidsparse.cli", *arguments]
        text = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
        assert "\u2026" not in text and "..." not in re.sub(r"\[OPTIONS\].*", "", text).replace("{...", "")
    assert "--dense-last-steps" in text and "--trained-frames" in text


def test_output_that_cannot_show_a_name_is_not_a_failure(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "vidsparse.cli", "inspect", "--frames", "5", "--png", "猫.png"]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "猫.png").is_file() and b"wrote " in done.stdout
    command[-1] = "猫/a.png"
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment)
    assert done.returncode == 1 and b"Traceback" not in done.stderr and b"does not exist" in done.stderr


TINY_GRID = ("--frames", 9, "--height", 128, "--width", 144, "--heads", 1, "--head-dim", 16, "--device", "cpu")


def test_bench_times_dense_and_sparse(vidsparse: Any) -> None:
    done = vidsparse("bench", *TINY_GRID, "--dtype", "float32", "--json")
    result = json.loads(done.out)
    assert result["tokens"] == 3 * 8 * 9 and result["impl"] == "cpu" and result["dense"] == "sdpa"
    assert result["R"] == pytest.approx(result["sparse_seconds"] / result["dense_seconds"] / result["density"])
    lines = vidsparse("bench", *TINY_GRID, "--impl", "reference", "--density", 0.5).out.splitlines()
    assert lines[0].startswith("Radial(density=0.5") and "216 tokens, 1 head of 16, bfloat16 on cpu" in lines[0]
    assert "impl reference" in lines[2] and "R = " in lines[3]
