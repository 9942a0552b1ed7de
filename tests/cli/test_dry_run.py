"""`--dry-run`: all that is known before a model is loaded."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from command_line import PROMPT, refused, small_sample, tiny_pipeline, vidsparse_in_a_folder

from vidsparse.cli.dry_run import ranges
from vidsparse.generation.models import Model, Shapes

vidsparse = pytest.fixture(vidsparse_in_a_folder)
tiny = pytest.fixture(scope="session")(tiny_pipeline)
small = pytest.fixture(small_sample)


@pytest.fixture(autouse=True)
def never_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Model, Shapes):
        monkeypatch.setattr(kind, "load", lambda *_: pytest.fail("the model was loaded"))


def rows(printed: str) -> dict[str, str]:
    """Title and text of each row, on one line."""
    found = re.findall(r"^(\S+(?: \S+)*) {2,}(.*(?:\n {10,}\S.*)*)", printed, re.M)
    return {title: " ".join(text.split()) for title, text in found}


@pytest.mark.parametrize("command", ["generate", "compare"])
def test_settings_and_cost_are_shown_and_nothing_is_written(vidsparse: Any, small: list[str], command: str) -> None:
    done = vidsparse(command, PROMPT, *small, "--steps", 5, "--frames", 6, "--dtype", "half", "--dry-run")
    assert done.code == 0, done.err
    assert os.listdir() == [] and "note: 6 frames do not fit" in done.err
    told = rows(done.out)
    assert told["device"].endswith(", float16") and "of transformer; text encoder and VAE" in told["weights"]
    assert told["sampling"] == "5 steps, guidance 5.0, seed 0" and told["preset"] == "default"
    assert told["pattern"].startswith("StepSchedule(pattern=Radial(density=0.3")
    assert told["grid"] == "2x8x12 (latent frames x height x width), 192 tokens"
    assert told["dense steps"] == "0: 1 of 5" and told["sparse steps"] == "4 of 5, 1 of 2 layers in each"
    assert re.fullmatch(r"attention at most [\d.]+x faster over all steps", told["bound"])


def test_what_is_skipped_is_shown_and_what_is_dense_saves_nothing(vidsparse: Any, small: list[str]) -> None:
    skipping = rows(vidsparse("generate", PROMPT, *small, "--steps", 6, "--budget", 0.6, "--dry-run").out)
    assert re.fullmatch(r"[\d, -]+: [1-4] of 6", skipping["skipped steps"])
    dense = rows(vidsparse("generate", PROMPT, *small, "--pattern", "dense", "--dry-run").out)
    assert dense["dense steps"] == "0-1: 2 of 2" and "bound" not in dense
    assert dense["attention FLOPs"].endswith(" a call of the transformer, all dense")


def test_what_would_be_refused_is_refused(vidsparse: Any, small: list[str], tmp_path_factory: Any) -> None:
    refused(vidsparse("generate", PROMPT, *small, "--dry-run", "--height", 63), "divisible by 16")
    refused(vidsparse("generate", PROMPT, "--dry-run", "--ulysses", 2), "does not divide the 3 heads")
    file: Path = tmp_path_factory.mktemp("prompts") / "p.txt"
    file.write_text(PROMPT)
    refused(vidsparse("generate", "--prompts", file, "--out", "o", "--dry-run"), "--dry-run is for one video")


def test_ranges_are_short() -> None:
    assert [ranges(numbers) for numbers in ((), (3,), (0, 1, 2, 3, 9), (1, 3))] == ["none", "3", "0-3, 9", "1, 3"]
