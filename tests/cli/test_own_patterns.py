"""A pattern of the user's own in every command that takes a pattern, in a LoRA, and `vidsparse patterns NAME`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_lora
from command_line import PROMPT, small_sample, tiny_pipeline, vidsparse_in_a_folder

from vidsparse import LoraRecipe, Pattern, StepSchedule, load_lora, save_lora
from vidsparse.cli.request import Request
from vidsparse.patterns.names import build_pattern, words_of

vidsparse = pytest.fixture(vidsparse_in_a_folder)
tiny = pytest.fixture(scope="session")(tiny_pipeline)
EXAMPLE = Path(__file__).parents[2] / "examples/custom_pattern.py"
OWN = f"{EXAMPLE}:SpaceThenTime"
SIZE = ("--frames", 9, "--height", 64, "--width", 64)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    sys.modules.pop("custom_pattern", None)


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A LoRA that was trained with the example, whose module is not loaded any more."""
    pattern = StepSchedule(build_pattern(OWN, None, ["tile=1,4,4"]), dense_steps=1)
    save_lora(tmp_path / "lora", tiny_lora.trained_pipeline(), LoraRecipe(pattern=pattern))
    del sys.modules["custom_pattern"]
    return tmp_path / "lora"


def test_generate_and_compare(vidsparse: Any, tiny: Path) -> None:
    options = [PROMPT, *small_sample(tiny), "--pattern", OWN, "--set", "tile=1,4,4"]
    done = vidsparse("generate", *options, "-o", "a.mp4", "--report", "a.json")
    assert done.code == 0, done.err
    report = json.loads(Path("a.json").read_text())
    assert "SpaceThenTime(tile=(1, 4, 4))" in report["attention"]["pattern"] and report["attention"]["sparse_calls"]
    assert report["request"]["pattern"] == OWN
    done = vidsparse("compare", *options, "-o", "b.mp4", "--repeat", 1)
    assert done.code == 0 and "dense and SpaceThenTime" in done.out, done.err


@pytest.mark.parametrize("command", ["inspect", "bench"])
def test_inspect_and_bench(vidsparse: Any, command: str) -> None:
    options = ["--model", "shapes", *SIZE, "--pattern", OWN, "--set", "tile=1,8,4"]
    options += ["--png", "own.png"] if command == "inspect" else ["--device", "cpu", "--dtype", "float32"]
    done = vidsparse(command, *options)
    assert done.code == 0, done.err
    assert "SpaceThenTime(tile=(1, 8, 4))" in done.out
    assert Path("own.png").is_file() == (command == "inspect")


def test_finetune_and_prompts_build_it(vidsparse: Any, tiny: Path) -> None:
    done = vidsparse("finetune", "-o", "run", "--pattern", OWN, "--set", "tiles=1,8,8")
    assert done.code == 1 and f"pattern '{OWN}' has no tiles; its fields are tile" in done.err
    done = vidsparse("generate", PROMPT, *small_sample(tiny), "--pattern", OWN, "--dry-run")
    assert done.code == 0 and "SpaceThenTime" in done.out + done.err


@pytest.mark.parametrize("command", ["generate", "compare", "inspect", "bench", "finetune"])
def test_each_command_says_what_is_wrong(vidsparse: Any, command: str) -> None:
    before = {"generate": [PROMPT], "compare": [PROMPT], "finetune": ["-o", "run"]}.get(command, [])
    done = vidsparse(command, *before, "--pattern", "absent.py:Mine")
    assert done.code == 1 and "error: pattern 'absent.py:Mine': there is no file" in done.err
    Path("broken_one.py").write_text("raise RuntimeError('of mine')")
    done = vidsparse(command, *before, "--pattern", "broken_one.py:Mine")
    assert done.code == 1 and "failed: RuntimeError: of mine (line 1 of" in done.err and "Traceback" not in done.err


def test_a_lora_does_not_import_code(lora: Path, vidsparse: Any, tiny: Path) -> None:
    done = vidsparse("generate", PROMPT, *small_sample(tiny), "--lora", lora)
    says = "was trained with 'custom_pattern:SpaceThenTime', which is not part of vidsparse, and its code is not"
    assert done.code == 1 and re.search(says, done.err) and "pass --pattern custom_pattern:SpaceThenTime" in done.err
    with pytest.raises(ValueError, match=says):
        load_lora(tiny_lora.pipeline(), lora)
    assert "custom_pattern" not in sys.modules


def test_a_lora_has_its_settings_once_its_pattern_is_named(lora: Path) -> None:
    def built(**options: Any) -> Pattern:
        return Request(PROMPT, lora=[str(lora)], **options).build_pattern()

    own = type(build_pattern(OWN))
    trained = StepSchedule(own((1, 4, 4)), dense_steps=1)  # type: ignore[call-arg]
    assert built(pattern=OWN) == trained
    assert built(pattern=OWN, settings=["tile=1,2,2"]) == StepSchedule(own((1, 2, 2)), dense_steps=1)  # type: ignore[call-arg]
    assert built() == trained  # its module is loaded now
    assert built(pattern="radial") == StepSchedule(build_pattern("radial"), dense_steps=1)
    assert load_lora(tiny_lora.pipeline(), lora).pattern == trained


@pytest.mark.parametrize("name", [*words_of(), OWN])
def test_patterns_explains_one(vidsparse: Any, name: str) -> None:
    done = vidsparse("patterns", name)
    assert done.code == 0, done.err
    shown = " ".join(done.out.split())
    cls = type(build_pattern(OWN)) if name == OWN else words_of()[name]
    assert f"{name}: {cls.__name__}" in shown and "Example: " in shown
    assert not issubclass(cls, Pattern) or f"--pattern {name}" in shown or f"help(vidsparse.{cls.__name__})" in shown


def test_patterns_draws_what_shapes_tell(vidsparse: Any) -> None:
    shown = vidsparse("patterns", "radial").out
    assert "Source: arXiv 2506.19852" in shown and "(0, 1]: the fraction to" in shown
    picture = [line for line in shown.splitlines() if re.fullmatch("  [ .:=+*#@-]{30}", line)]
    assert len(picture) == 15 and all(line[2 + 2 * row] == "@" for row, line in enumerate(picture))
    assert "draws a real choice" in vidsparse("patterns", "top-blocks").out
    assert "after the name" in vidsparse("patterns", "reshaped").out
    assert "Nothing can be set" in vidsparse("patterns", "rectified").out
    done = vidsparse("patterns", "topblocks")
    assert done.code == 1 and "did you mean top-blocks?" in done.err
    assert "did you mean radial?" in vidsparse("inspect", "--pattern", "raidal").err


def test_the_examples_of_patterns_parse(vidsparse: Any) -> None:
    import shlex

    import typer

    from vidsparse.cli import app

    commands: Any = typer.main.get_command(app)
    for name in words_of():
        _, _, line = vidsparse("patterns", name).out.partition("Example: ")
        program, command, *words = shlex.split(line.splitlines()[0]) if line.startswith("vidsparse") else ("", "")
        if program:
            asked = commands.commands[command].make_context(command, words).params
            if asked["pattern"] and asked["pattern"] != "head-modes":  # needs a table
                assert build_pattern(asked["pattern"], asked["density"], asked["settings"])
