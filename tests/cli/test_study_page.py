"""The page of a study: which videos it holds, its plot, and that the same command writes it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import PROMPT, small_sample, tiny_pipeline, vidsparse_in_a_folder
from page_examples import read

from vidsparse.cli import study_page
from vidsparse.cli.study_page import _ranked
from vidsparse.generation.models import Model

vidsparse = pytest.fixture(vidsparse_in_a_folder)
tiny = pytest.fixture(scope="session")(tiny_pipeline)
small = pytest.fixture(small_sample)
OTHERS = "a green square bouncing on a white background", "a cyan cross moving up on a black background"


def test_the_worst_the_median_and_the_best(vidsparse: Any, small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("p.jsonl").write_text(
        "\n".join(json.dumps({"prompt": p, "name": f"v{n}"}) for n, p in enumerate((PROMPT, *OTHERS)))
    )
    words = ["compare", "--prompts", "p.jsonl", "--out", "out", *small, "--frames", 5, "--rivals"]
    words += ["--sweep", "density=0.1,0.6", "--set", "tile=1,4,4", "--report", "out/page.html"]
    done = vidsparse(*words)
    assert done.code == 0 and done.out.rstrip().endswith("out/page.html"), done.err
    page, summary = read(Path("out/page.html").read_text()), json.loads(Path("out/summary.json").read_text())
    assert page.island("report") == summary
    data = page.island("data")
    names = ["dense", "density=0.1", "density=0.6", "dense-1-steps"]
    assert [one["name"] for one in data["settings"]] == names
    assert [one["kind"] for one in data["settings"]] == ["dense", "sparse", "sparse", "fewer steps"]
    reports = {
        (setting, video): json.loads(Path(f"out/{setting}/{video}-seed0.json").read_text())
        for setting in names
        for video in ("v0", "v1", "v2")
    }

    def mean(video: str) -> float:
        return sum(float(reports[setting, video]["difference"]["psnr"]) for setting in names[1:3]) / 2

    order = sorted(("v0", "v1", "v2"), key=mean)
    assert page.videos == [
        Path(f"out/{setting}/{video}-seed0.mp4").read_bytes() for video in order for setting in names
    ]
    for scene, video in zip(data["scenes"], order, strict=True):
        for clip, setting in zip(scene["clips"][1:], names[1:], strict=True):
            assert clip["curves"]["PSNR, dB"] == reports[setting, video]["difference"]["frame_psnr"]
    few = data["settings"][1]
    assert few["psnr"][0] == summary["rows"]["density=0.1"]["measures"]["psnr"]["mean"]
    assert few["seconds"][0] == summary["rows"]["density=0.1"]["seconds"]["median"]
    assert few["heat"] and data["settings"][0]["heat"] is None and data["settings"][0]["psnr"] is None
    assert data["another_seed"] == summary["rows"]["another seed"]["measures"]["psnr"]["mean"]
    assert "12 of 15 videos are in this file" in page.text and "All are in the folder out." in page.text
    assert "--density 0.1" in page.text and "worst: " in page.text

    monkeypatch.setattr(Model, "load", lambda *_: pytest.fail("the model was loaded"))
    sizes = [Path(f"out/{setting}/{order[0]}-seed0.mp4").stat().st_size for setting in names]
    monkeypatch.setattr(study_page, "MOST_BYTES", sum(sizes[:3]))
    assert vidsparse(*words).code == 0
    fewer = read(Path("out/page.html").read_text())
    assert [len(scene["clips"]) for scene in fewer.island("data")["scenes"]] == [3]
    monkeypatch.setattr(study_page, "MOST_BYTES", 1)
    assert vidsparse(*words[:-1], "other.html").code == 0
    assert read(Path("other.html").read_text()).videos == page.videos[:2], "two of the worst, whatever their size"
    refused = vidsparse(*words[:-1], "out/page.txt")
    assert refused.code == 1 and "its name must end in .html" in refused.err


def test_ranks() -> None:
    assert _ranked({"a": 3.0}) == [("", "a")]
    assert _ranked({"a": 3.0, "b": 1.0}) == [("worst", "b"), ("best", "a")]
    found = _ranked({"a": 3.0, "b": 1.0, "c": 2.0, "d": float("inf")})
    assert found == [("worst", "b"), ("median", "c"), ("best", "d")]
