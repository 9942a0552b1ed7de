"""`vidsparse tune`: from a target to a profile, what it prints, and what it refuses before the model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import refused, tiny_pipeline, vidsparse_in_a_folder

from vidsparse import load_profile
from vidsparse.generation.models import Model

vidsparse = pytest.fixture(vidsparse_in_a_folder)
tiny = pytest.fixture(scope="session")(tiny_pipeline)
PROMPTS = "a red circle\na blue square moving up\na green cross\n"


def options(tiny: Path) -> list[str]:
    Path("prompts.txt").write_text(PROMPTS)
    size = ["--frames", "9", "--height", "32", "--width", "48", "--steps", "3"]
    return ["--model", str(tiny), "--prompts", "prompts.txt", *size, "--dtype", "float32"]


def test_a_profile_is_found_and_kept(vidsparse: Any, tiny: Path) -> None:
    done = vidsparse("tune", *options(tiny), "--density", "0.6", "-o", "p.json")
    assert done.code == 0, done.err
    assert "wrote p.json; p.tuning keeps what was measured" in done.out and "PSNR to dense" in done.out
    profile = load_profile("p.json")
    assert (profile.frames, profile.height, profile.width, profile.steps) == (9, 32, 48, 3)
    assert profile.model == str(tiny) and profile.expected is not None and profile.expected.videos == 1
    assert profile.found["prompts"] == PROMPTS.splitlines()[:2]
    assert profile.found["held_out"] == PROMPTS.splitlines()[2:]

    again = vidsparse("tune", *options(tiny), "--density", "0.6", "-o", "p.json")
    assert again.code == 1 and "--overwrite" in again.err
    other = vidsparse("tune", *options(tiny), "--target-speedup", "90", "-o", "p.json", "--overwrite")
    assert other.code == 2 and "no pattern that was tried reaches speedup 90" in other.err
    assert load_profile("p.json").found["reached"] is False
    seeded = vidsparse("tune", *options(tiny), "--density", "0.6", "-o", "p.json", "--overwrite", "--seed", "1")
    assert seeded.code == 1 and "holds a search with other settings (seed differ)" in seeded.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give one target of psnr, ssim, speedup and density, not none"),
        (["--density", "0.5", "--target-psnr", "30"], "not psnr and density"),
        (["--target-ssim", "1"], "target ssim=1.0 must be between 0 and 1"),
        (["--density", "0.5", "--cost", "money"], "--cost money is unknown; choose seconds or density"),
        (["--density", "0.5", "--search", "3"], "3 prompts with --search 3 leave none to decide"),
        (["--density", "0.5", "-o", "p.txt"], "must end in .json"),
        (["--density", "0.5", "--prompts", "none.txt"], "No such file"),
        (["--density", "0.5", "--prompts", "empty.txt"], "line 2 of empty.txt is empty; every line must be a prompt"),
        (["--density", "0.5", "--prompts", "twice.txt"], "line 3 of twice.txt repeats the prompt 'a red circle'"),
    ],
    ids=str,
)
def test_refused_before_anything_is_loaded(
    vidsparse: Any, tiny: Path, arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "load", lambda *a: pytest.fail("loaded"))
    given = options(tiny)
    Path("empty.txt").write_text("a red circle\n\na blue square\n")
    Path("twice.txt").write_text("a red circle\na blue square\na red circle\n")
    output = [] if "-o" in arguments else ["-o", "p.json"]
    refused(vidsparse("tune", *given, *arguments, *output), says)
    assert not list(Path().glob("p.*"))


def test_another_model_needs_prompts(vidsparse: Any, tiny: Path) -> None:
    refused(vidsparse("tune", "--model", str(tiny), "--density", "0.5", "-o", "p.json"), "give --prompts FILE")


def test_the_file_is_plain_json(vidsparse: Any, tiny: Path) -> None:
    vidsparse("tune", *options(tiny), "--density", "0.9", "-o", "p.json")
    data = json.loads(Path("p.json").read_text())
    assert data["version"] == 1 and data["found"]["target"] == "density 0.9"
