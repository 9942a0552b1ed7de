"""`vidsparse tune`: from a target to a profile, what it prints, and what it refuses before the model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import PROMPT, refused, tiny_pipeline, vidsparse_in_a_folder

from vidsparse import Profile, Radial, StepBudget, StepSchedule, load_profile
from vidsparse.cli.request import Request
from vidsparse.generation.models import Model
from vidsparse.generation.transformers import configured_transformers
from vidsparse.serialize import to_data

vidsparse = pytest.fixture(vidsparse_in_a_folder)
tiny = pytest.fixture(scope="session")(tiny_pipeline)
PROMPTS = "a red circle\na blue square moving up\na green cross\n"
SIZE = ["--frames", "9", "--height", "32", "--width", "48", "--steps", "3"]


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files of prompts."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "prompts.txt").write_text(PROMPTS)
    (folder / "empty.txt").write_text("a red circle\n\na blue square\n")
    (folder / "twice.txt").write_text("a red circle\na blue square\na red circle\n")
    return folder


def options(tiny: Path, texts: Path) -> list[str]:
    return ["--model", str(tiny), "--prompts", str(texts / "prompts.txt"), *SIZE, "--dtype", "float32"]


def test_a_profile_is_found_and_kept(vidsparse: Any, tiny: Path, texts: Path) -> None:
    done = vidsparse("tune", *options(tiny, texts), "--target-density", "0.6", "-o", "p.json")
    assert done.code == 0, done.err
    assert "wrote p.json; p.tuning keeps what was measured" in done.out and "PSNR to dense" in done.out
    profile = load_profile("p.json")
    assert (profile.frames, profile.height, profile.width, profile.steps) == (9, 32, 48, 3)
    assert profile.model == str(tiny) and profile.expected is not None and profile.expected.videos == 1
    assert profile.found["prompts"] == PROMPTS.splitlines()[:2]
    assert profile.found["held_out"] == PROMPTS.splitlines()[2:]

    again = vidsparse("tune", *options(tiny, texts), "--target-density", "0.6", "-o", "p.json")
    assert again.code == 1 and "--overwrite" in again.err
    other = vidsparse("tune", *options(tiny, texts), "--target-speedup", "90", "-o", "p.json", "--overwrite")
    assert other.code == 2 and "no pattern that was tried reaches speedup 90" in other.err
    assert load_profile("p.json").found["reached"] is False
    seeded = vidsparse(
        "tune", *options(tiny, texts), "--target-density", "0.6", "-o", "p.json", "--overwrite", "--seed", "1"
    )
    assert seeded.code == 1 and "holds a search with other settings (seed differ)" in seeded.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give one target of psnr, ssim, speedup and density, not none"),
        (["--target-density", "0.5", "--target-psnr", "30"], "not psnr and density"),
        (["--target-ssim", "1"], "target ssim=1.0 must be between 0 and 1"),
        (["--target-density", "0.5", "--cost", "money"], "--cost money is unknown; choose seconds or density"),
        (["--target-density", "0.5", "--search", "3"], "3 prompts with --search 3 leave none to decide"),
        (["--target-density", "0.5", "-o", "p.txt"], "must end in .json"),
        (["--target-density", "0.5", "--prompts", "none.txt"], "No such file"),
        (["--target-density", "0.5", "--prompts", "empty.txt"], "empty.txt is empty; every line must be a prompt"),
        (["--target-density", "0.5", "--prompts", "twice.txt"], "twice.txt repeats the prompt 'a red circle'"),
    ],
    ids=str,
)
def test_refused_before_anything_is_loaded(
    vidsparse: Any, tiny: Path, texts: Path, arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "load", lambda *a: pytest.fail("loaded"))
    given = options(tiny, texts)
    arguments = [str(texts / a) if a.endswith(".txt") and a != "p.txt" else a for a in arguments]
    output = [] if "-o" in arguments else ["-o", "p.json"]
    refused(vidsparse("tune", *given, *arguments, *output), says)


def test_another_model_needs_prompts(vidsparse: Any, tiny: Path) -> None:
    refused(vidsparse("tune", "--model", str(tiny), "--target-density", "0.5", "-o", "p.json"), "give --prompts FILE")


def test_the_file_is_plain_json(vidsparse: Any, tiny: Path, texts: Path) -> None:
    vidsparse("tune", *options(tiny, texts), "--target-density", "0.9", "-o", "p.json")
    data = json.loads(Path("p.json").read_text())
    assert data["version"] == 1 and data["found"]["target"] == "density 0.9"


def test_generate_and_compare_take_a_profile(vidsparse: Any, tiny: Path, texts: Path) -> None:
    vidsparse("tune", *options(tiny, texts), "--target-density", "0.6", "-o", "p.json")
    video = ["a red circle", "--model", str(tiny), *SIZE, "--profile", "p.json", "--dtype", "float32"]
    made = vidsparse("generate", *video, "-o", "a.mp4", "--report", "a.json")
    assert made.code == 0, made.err
    report = json.loads(Path("a.json").read_text())
    assert report["request"]["profile"] == "p.json" and report["attention"]["sparse_calls"] > 0
    longer = ["--frames", "17"]
    planned = vidsparse("generate", *video, *longer, "--dry-run")
    assert planned.code == 0 and "p.json was tuned for 9 frames of 48x32: its windows are scaled to 17" in planned.err
    assert "profile" in planned.out
    both = vidsparse("compare", *video, "-o", "b.mp4", "--repeat", "1")
    assert both.code == 0, both.err

    for arguments, says in (
        ([*video, "--pattern", "radial"], "--profile p.json chooses the pattern; leave out --pattern"),
        ([*video, "--set", "sink=1"], "leave out --set"),
        ([PROMPT, "--profile", "p.json"], "this profile was tuned for"),
        ([*video[:-3], "none.json"], "profile none.json does not exist"),
    ):
        done = vidsparse("generate", *arguments)
        assert done.code == 1 and says in done.err, done.err


def test_a_schedule_keeps_more_steps_of_a_profile_dense(tiny: Path, tmp_path: Path) -> None:
    transformer = next(iter(configured_transformers(str(tiny)).values()))
    profile = Profile(
        model="tiny",
        transformer=transformer[0].__name__,
        config={},
        frames=9,
        height=32,
        width=48,
        steps=3,
        grid=(3, 8, 12),
        pattern=to_data(Radial(density=0.3)),
    )
    profile.save(tmp_path / "p.json")
    request = Request("a red circle", model=str(tiny), profile=str(tmp_path / "p.json"), frames=9, height=32, width=48)
    assert request.build_pattern() == Radial(density=0.3)
    assert request.with_options(dense_steps=2).build_pattern() == StepSchedule(Radial(density=0.3), 2)
    assert request.with_options(budget=0.5).build_pattern() == StepBudget(Radial(density=0.3), 0.5)
