"""`--report page.html` of `generate` and `compare`: a page with the very videos and the figures that were printed."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
from command_line import PROMPT, refused, small_sample, tiny_pipeline, vidsparse_in_a_folder
from page_examples import read

from vidsparse.generation.models import Model, Shapes

vidsparse = pytest.fixture(vidsparse_in_a_folder)
tiny = pytest.fixture(scope="session")(tiny_pipeline)
small = pytest.fixture(small_sample)


def test_generate_writes_a_page(vidsparse: Any, small: list[str]) -> None:
    words = "generate", PROMPT, *small, "--density", 0.4, "-o", "a.mp4", "--report", "a.html"
    done = vidsparse(*words)
    assert done.code == 0 and "wrote a.mp4 and a.html" in done.out, done.err
    page = read(Path("a.html").read_text())
    assert page.videos == [Path("a.mp4").read_bytes()]
    report = page.island("report")
    assert report["request"]["prompt"] == PROMPT and report["attention"]["calls"]
    assert report["seconds"]["choosing"] >= 0 and (report["peak_bytes"] is None or report["peak_bytes"] > 1e7)
    (setting,) = page.island("data")["settings"]
    assert setting["heat"]["transformers"][0]["steps"] == 2 and setting["kind"] == "sparse"
    assert sum(setting["split"].values()) == pytest.approx(report["seconds"]["total"], rel=0.01)
    assert shlex.join(map(str, ("vidsparse", *words))) in page.text
    assert "vidsparse.Radial(density=0.4)" in page.text and "--density 0.4" in page.text
    assert vidsparse("generate", PROMPT, *small, "--density", 0.4, "-o", "b.mp4", "--report", "b.json").code == 0
    assert json.loads(Path("b.json").read_text()).keys() == report.keys(), "the same figures as JSON"


def test_compare_writes_a_page(vidsparse: Any, small: list[str]) -> None:
    files = "-o", "both.mp4", "--dense-output", "d.mp4", "--sparse-output", "s.mp4", "--json", "c.json"
    done = vidsparse("compare", PROMPT, *small, *files, "--report", "c.html")
    assert done.code == 0 and done.out.rstrip().endswith("c.json, c.html"), done.err
    page = read(Path("c.html").read_text())
    assert page.videos == [Path("d.mp4").read_bytes(), Path("s.mp4").read_bytes()]
    report = page.island("report")
    assert report == json.loads(Path("c.json").read_text())
    data = page.island("data")
    dense, sparse = data["scenes"][0]["clips"]
    assert sparse["curves"]["PSNR, dB"] == report["frame_psnr"] and sparse["worst"] == report["worst_frame"]
    assert sparse["curves"]["SSIM"] == report["frame_ssim"] and not dense["curves"]["SSIM"]
    assert [one["kind"] for one in data["settings"]] == ["dense", "sparse"]
    assert "--pattern dense" in page.text and f"{report['psnr']:.1f} dB" in page.text
    for side, one in zip(("dense", "sparse"), data["settings"], strict=True):
        assert list(one["split"]) == ["choosing tiles", "attention layers", "rest of denoising", "text and decoding"]
        assert report[side]["peak_bytes"] is None or f"{report[side]['peak_bytes'] / 1e9:.2f} GB" in page.text


def test_a_page_alone_leaves_no_other_file(vidsparse: Any, small: list[str]) -> None:
    done = vidsparse(
        "compare", PROMPT, *small, "--pattern", "dense", "-o", "c.mp4", "--report", "c.html", "--repeat", 1
    )
    assert done.code == 0, done.err
    assert sorted(os.listdir()) == ["c.html", "c.mp4"]
    page = read(Path("c.html").read_text())
    assert len(page.videos) == 2 and "identical" in page.text
    assert page.island("data")["scenes"][0]["clips"][1]["worst"] is None


@pytest.mark.parametrize(
    ("command", "words", "says"),
    [
        ("generate", ["--report", "a.txt"], "cannot write a.txt: its name must end in .json or .html"),
        ("generate", ["--report", "none/a.html"], "the folder none does not exist"),
        ("compare", ["--report", "a.json"], "cannot write a.json: its name must end in .html"),
        ("compare", ["--report", "none/a.html"], "the folder none does not exist"),
    ],
)
def test_other_names_are_refused_before_the_model_is_loaded(
    vidsparse: Any, monkeypatch: pytest.MonkeyPatch, command: str, words: list[str], says: str
) -> None:
    for kind in (Model, Shapes):
        monkeypatch.setattr(kind, "load", lambda *_: pytest.fail("the model was loaded"))
    refused(vidsparse(command, PROMPT, *words), says)
