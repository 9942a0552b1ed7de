"""`--verbose` beside `--quiet`: what ran in each step, what libraries say, and where an error comes from."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from command_line import PROMPT, small_sample, tiny_pipeline, vidsparse_in_a_folder

from vidsparse.cli import app

vidsparse = pytest.fixture(vidsparse_in_a_folder)
tiny = pytest.fixture(scope="session")(tiny_pipeline)
small = pytest.fixture(small_sample)


def commands(group: Any, before: str = "") -> Iterator[str]:
    """The commands of a group, and those of the groups in it."""
    for name, found in group.commands.items():
        yield from commands(found, f"{name} ") if hasattr(found, "commands") else [before + name]


COMMANDS = list(commands(typer.main.get_command(app)))
LIBRARIES = (
    "import logging, os, sys, warnings\n"
    "from vidsparse.cli import main\n"
    "sys.argv = ['vidsparse', 'patterns', *sys.argv[1:]]\n"
    "try:\n    main()\nexcept SystemExit:\n    pass\n"
    "print(os.environ.get('DIFFUSERS_VERBOSITY'), os.environ.get('TQDM_DISABLE'), file=sys.stderr)\n"
    "print(logging.getLogger('torchao').level, file=sys.stderr)\n"
    "warnings.warn('soon', FutureWarning)\n"
)


@pytest.fixture
def libraries_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings in this process stay errors, as everywhere in the tests."""
    monkeypatch.setattr("vidsparse.cli.signature.unsilence", lambda: None)


@pytest.mark.usefixtures("libraries_stay")
def test_each_step_says_what_ran(vidsparse: Any, small: list[str]) -> None:
    asked = [*small, "--steps", 3, "--pattern", "radial", "--density", 0.3, "--set", "tile=1,2,2", "--dense-layers", 1]
    done = vidsparse("generate", PROMPT, *asked, "-o", "a.mp4", "--verbose")
    assert done.code == 0, done.err
    told = [line for line in done.err.splitlines() if line.startswith("radial: ")]
    assert told[0] == "radial: step 1 of 3: layers 0-1 dense: the pattern asks for it"
    for step, line in enumerate(told[1:], 2):
        sparse = (
            rf"radial: step {step} of 3: layers 0 sparse, density 0\.\d\d\d; layers 1 dense: the pattern asks for it"
        )
        assert re.fullmatch(sparse, line)
    assert len(told) == 3, "instead of the lines for each tenth"
    done = vidsparse("generate", PROMPT, *asked, "-o", "b.mp4")
    assert "step 1 of 3" not in done.err, "verbose has ended"


@pytest.mark.usefixtures("libraries_stay")
def test_skipped_steps_are_told_too(vidsparse: Any, small: list[str]) -> None:
    done = vidsparse("generate", PROMPT, *small, "--steps", 6, "--budget", 0.6, "-o", "a.mp4", "-v")
    assert done.code == 0 and re.search(r": step \d of 6: 4 calls skipped by the schedule$", done.err, re.M), done.err


@pytest.mark.parametrize("command", COMMANDS)
def test_both_at_once_are_refused_by_every_command(vidsparse: Any, command: str) -> None:
    needed = {
        "generate": [PROMPT],
        "compare": [PROMPT],
        "finetune": ["-o", "a"],
        "tune": ["-o", "a.json"],
        "preview": ["a"],
        "lora show": ["a"],
        "lora convert": ["a", "b", "--format", "comfy"],
    }.get(command, [])
    done = vidsparse(*command.split(), *needed, "--quiet", "--verbose")
    assert done.code == 1 and os.listdir() == []
    assert done.err == "error: --quiet and --verbose contradict each other; give one of them\n"


@pytest.mark.usefixtures("libraries_stay")
def test_an_error_shows_its_traceback_and_its_line(vidsparse: Any) -> None:
    done = vidsparse("inspect", "--pattern", "spiral", "--verbose")
    assert done.code == 1 and done.err.startswith("Traceback (most recent call last)")
    assert done.err.splitlines()[-1].startswith("error: pattern 'spiral' is unknown")
    assert "Traceback" not in vidsparse("inspect", "--pattern", "spiral").err


@pytest.mark.parametrize("asked", [[], ["--verbose"]], ids=["usual", "verbose"])
def test_libraries_speak_when_asked(asked: list[str]) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("DIFFUSERS_VERBOSITY", "TQDM_DISABLE")}
    code = [sys.executable, "-c", LIBRARIES, *asked]
    said = subprocess.run(code, capture_output=True, text=True, env=environment, timeout=120, check=True).stderr
    assert ("None None\n0\n" in said) == ("soon" in said) == bool(asked)
    assert ("error 1\n40\n" in said) != bool(asked)
    kept = subprocess.run(
        code, capture_output=True, text=True, env=environment | {"DIFFUSERS_VERBOSITY": "info"}, timeout=120, check=True
    )
    assert "info " in kept.stderr, "what the environment says holds"
