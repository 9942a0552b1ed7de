"""`--config` and `--save-config`: a request from a file, and into one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from command_line import PROMPT, refused, small_sample, tiny_pipeline, vidsparse_in_a_folder

from vidsparse.cli import app
from vidsparse.generation.models import Model, Shapes

vidsparse = pytest.fixture(vidsparse_in_a_folder)
tiny = pytest.fixture(scope="session")(tiny_pipeline)
small = pytest.fixture(small_sample)
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_a_saved_request_runs_again_and_so_does_a_report(vidsparse: Any, small: list[str]) -> None:
    asked = [*small, "--pattern", "radial", "--set", "sink=false", "--set", "tile=1,2,2", "--dense-layers", -1]
    asked += ["--seed", 5, "--negative-prompt", "no: #rain", "--num-frames", 9]
    done = vidsparse("generate", PROMPT, *asked, "-o", "a.mp4", "--report", "a.json", "--save-config", "a.yaml")
    assert done.code == 0, done.err
    saved = yaml.safe_load(Path("a.yaml").read_text())
    assert saved["set"] == ["sink=false", "tile=1,2,2"] and saved["dense-layers"] == "-1" and saved["seed"] == 5
    assert "impl" not in saved and "output" not in saved, "defaults, and where results go, are not of a request"
    for config in ("a.yaml", "a.json"):
        done = vidsparse("generate", "--config", config, "-o", "b.mp4", "--report", "b.json", "--overwrite")
        assert done.code == 0, done.err
        assert Path("a.mp4").read_bytes() == Path("b.mp4").read_bytes()
        requests = [json.loads(Path(name).read_text())["request"] for name in ("a.json", "b.json")]
        assert requests[0] == requests[1]


def asked(command: str, *arguments: str) -> dict[str, Any]:
    params: dict[str, Any] = COMMANDS[command].make_context(command, list(arguments)).params
    return params


@pytest.mark.parametrize("command", ["generate", "compare", "finetune"])
def test_the_command_line_goes_before_the_file(tmp_path: Path, command: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("density: 0.25\nset: sink=false\nnum_frames: 5\ndense-layers: 0,1\nseed: 7\ncorrection:\n")
    given = ["-o", "out"] if command == "finetune" else [PROMPT]
    found = asked(command, *given, "--config", str(file), "--seed", "8")
    assert (found["density"], found["settings"], found["seed"]) == (0.25, ["sink=false"], 8)
    assert found["frames"] == ([5] if command == "finetune" else 5) and found["dense_layers"] == "0,1"
    assert found["correction"] == asked(command, *given)["correction"], "nothing is no value"


def test_a_report_of_another_version_and_machine_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    request = {"prompt": PROMPT, "seed": 3, "device": "cuda:7", "offload": True, "settings": ["sink=false"], "new": 1}
    file.write_text(json.dumps({"request": request, "judge": None}))
    found = asked("compare", "--config", str(file))
    assert (found["prompt"], found["seed"], found["settings"]) == (PROMPT, 3, ["sink=false"])
    assert found["device"] is None and not found["offload"]


BAD = {
    "unknown": ("densty: 0.3", "unknown option 'densty'; known are budget, config, correction"),
    "twice": ("frames: 5\nnum-frames: 5", "'num-frames' is given twice"),
    "itself": ("config: b.yaml", "unknown option 'config'"),
    "no option": ("- 1", "holds no options, such as density: 0.3"),
    "empty": ("", "holds no options"),
    "not YAML": ("a: [", "is not YAML"),
    "dtype": ("dtype: int4", "dtype 'int4' is unknown"),
}


@pytest.mark.parametrize(("text", "says"), BAD.values(), ids=BAD)
def test_bad_files_are_refused_in_one_line(
    vidsparse: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    for kind in (Model, Shapes):
        monkeypatch.setattr(kind, "load", lambda *_: pytest.fail("the model was loaded"))
    file = tmp_path_factory.mktemp("config") / "a.yaml"
    file.write_text(text)
    refused(vidsparse("generate", PROMPT, "--config", file), says)


def test_files_that_cannot_be_read_or_written(vidsparse: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    refused(vidsparse("generate", PROMPT, "--config", "no.yaml"), "--config no.yaml cannot be read: No such file")
    refused(vidsparse("generate", PROMPT, "--config", "no.toml"), "must end in one of .yaml, .yml, .json")
    refused(vidsparse("generate", PROMPT, "--save-config", "a.toml"), "its name must end in .yaml")
    refused(vidsparse("generate", PROMPT, "--save-config", "a.yaml", "--pattern", "spiral"), "is unknown")
    file = tmp_path_factory.mktemp("config") / "a.yaml"
    file.write_text("seed: many")
    done = vidsparse("generate", PROMPT, "--config", file)
    assert done.code == 2 and "Invalid value for '--seed'" in done.err and os.listdir() == []
