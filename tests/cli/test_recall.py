"""`vidsparse inspect --recall`, on a random model."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from command_line import refused, tiny_pipeline, vidsparse_in_a_folder
from PIL import Image

from vidsparse.generation.models import Model, Shapes

vidsparse = pytest.fixture(vidsparse_in_a_folder)
tiny = pytest.fixture(scope="session")(tiny_pipeline)
SIZE = ["--frames", 9, "--height", 32, "--width", 48, "--set", "tile=1,4,4"]


def test_it_is_said_and_drawn(vidsparse: Any, tiny: Path) -> None:
    words = ["--model", tiny, *SIZE, "--pattern", "top-blocks", "--density", 0.3, "--prompt", "a red circle"]
    done = vidsparse("inspect", *words, "--recall", "r.png")
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    found = re.search(r"recall: ([\d.]+)% of dense attention's mass is in the kept tiles, ([\d.]+)% of all pairs", said)
    assert found and 100 > float(found[1]) > float(found[2]) > 10
    assert re.search(r"least in layer [01], step \d: ", said) and "wrote r.png" in said
    with Image.open("r.png") as picture:
        assert picture.width > 1000
    assert os.listdir() == ["r.png"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--recall", "r.png"],
            "recall is measured in a video, so it needs queries and keys of a real model, and 'wan'",
        ),
        (["--model", "shapes", "--recall", "r.jpg"], "its name must end in .png"),
        (["--model", "shapes", "--recall", "r.png", "--png", "r.png"], "two outputs would both be"),
        (["--gpu", "abacus"], "GPU 'abacus' is unknown"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(
    vidsparse: Any, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    for kind in (Model, Shapes):
        monkeypatch.setattr(kind, "load", lambda *_: pytest.fail("the model was loaded"))
    refused(vidsparse("inspect", *words), says)
