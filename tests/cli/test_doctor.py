"""`vidsparse doctor`: what it prints, what it writes, and its exit code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from broken_adapters import dense_steps_of_our_own
from twins import ignores_warnings

import vidsparse_pipelines
from vidsparse.cli import app
from vidsparse.doctor import CHECKS
from vidsparse.doctor.support import END, START, put_support_table
from vidsparse.generation.transformers import configured_transformers
from vidsparse_pipelines import ADAPTERS

pytestmark = ignores_warnings


@pytest.fixture
def vidsparse(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in an empty folder, with three checks: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    few = {check: CHECKS[check] for check in ("grid", "dense", "LoRA")}
    monkeypatch.setattr("vidsparse.doctor.CHECKS", few)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            app(["doctor", *map(str, arguments)], prog_name="vidsparse")
        code = stop.value.code
        return (code if isinstance(code, int) else 0, *capsys.readouterr())

    return run


def write_settings(path: Path, **settings: Any) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(settings))


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """The folder of a pipeline of two experts, without weights."""
    for name in ("transformer", "transformer_2"):
        write_settings(tmp_path / "model" / name / "config.json", _class_name="WanTransformer3DModel", num_layers=30)
    return tmp_path / "model"


def test_a_folder_is_diagnosed_without_weights(vidsparse: Any, pipeline: Path) -> None:
    code, out, err = vidsparse(pipeline, "--json", "found.json")
    assert code == 0, err
    assert "transformer: WanTransformer3DModel" in out and "transformer_2: WanTransformer3DModel" in out
    assert out.count("bit for bit, 2 layers") == 2
    data = json.loads(Path("found.json").read_text())
    assert data["versions"] == {"diffusers": diffusers.__version__, "torch": torch.__version__}
    assert set(data["found"]) == {"transformer", "transformer_2"} and data["not checked"] == {}
    dense = {"check": "dense", "outcome": "ok", "detail": "bit for bit, 2 layers"}
    assert data["found"]["transformer"][1] == dense


def test_a_folder_of_the_transformer_alone(vidsparse: Any, pipeline: Path) -> None:
    assert list(configured_transformers(str(pipeline / "transformer"))) == ["transformer"]
    assert configured_transformers("WanTransformer3DModel") == {
        "WanTransformer3DModel": (diffusers.WanTransformer3DModel, {})
    }


def test_the_model_that_ships_with_the_package(vidsparse: Any) -> None:
    code, out, err = vidsparse("shapes")
    assert code == 0, err
    assert "transformer: WanTransformer3DModel" in out and "bit for bit, 2 layers" in out
    assert configured_transformers("shapes")["transformer"][1]["num_layers"] == 6


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")], ids=["ctrl-c", "full"])
def test_a_support_table_is_written_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any) -> None:
    path, old = tmp_path / "README.md", f"before\n{START}\nold\n{END}\nafter\n"
    path.write_text(old)
    write = Path.write_text

    def broken(self: Path, text: str, **settings: Any) -> int:
        write(self, text[:10], **settings)
        raise error

    monkeypatch.setattr(Path, "write_text", broken)
    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        put_support_table(path, {})
    assert path.read_text() == old and os.listdir(tmp_path) == ["README.md"]


def test_a_failure_says_what_should_be_and_exits_with_one(vidsparse: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dense_steps_of_our_own(monkeypatch)
    code, out, err = vidsparse("WanTransformer3DModel")
    text = " ".join(out.replace("│", " ").split())
    assert code == 1 and not err and "✗ failed" in out
    assert "should be: dense steps give what the model gives itself, bit for bit. output 0 is" in text


def test_all_families_are_one_table(vidsparse: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: ADAPTERS[name] for name in ("AllegroTransformer3DModel", "WanTransformer3DModel")}
    future = {"FutureTransformer3DModel": ("vidsparse_pipelines.wan", "WanAdapter")}
    monkeypatch.setattr(vidsparse_pipelines, "ADAPTERS", few)
    Path("README.md").write_text("before\n<!-- support -->\nold\n<!-- /support -->\nafter\n")
    code, _, err = vidsparse("--support", "README.md")
    assert code == 0, err
    before, *rows, after = Path("README.md").read_text().splitlines()
    assert (before, after) == ("before", "after") and rows[1].startswith("| family |") and "old" not in rows
    assert rows[3].startswith("| Allegro | `AllegroTransformer3DModel` | text to video |")
    assert rows[3].endswith("| all but LoRA |")
    monkeypatch.setattr(vidsparse_pipelines, "ADAPTERS", few | future)
    code, out, err = vidsparse("--json", "found.json")
    assert code == 0, err
    lines = [line.split() for line in out.splitlines()]
    assert ["Allegro", "✓", "✓", "-"] in lines and ["Wan", "2.1,", "2.2", "✓", "✓", "✓"] in lines
    assert any(line.startswith("not applicable: Allegro, LoRA: without vidsparse too: ") for line in out.splitlines())
    reason = f"diffusers {diffusers.__version__} has no FutureTransformer3DModel; a newer one has it"
    assert f"not checked: FutureTransformer3DModel: {reason}" in out.splitlines()
    assert json.loads(Path("found.json").read_text())["not checked"] == {"FutureTransformer3DModel": reason}


def test_a_support_table_that_would_lose_a_family_is_refused(vidsparse: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    future = {"FutureTransformer3DModel": ("vidsparse_pipelines.wan", "WanAdapter")}
    monkeypatch.setattr(vidsparse_pipelines, "ADAPTERS", ADAPTERS | future)
    monkeypatch.setattr("vidsparse.doctor.diagnose", lambda *_: pytest.fail("work began"))
    Path("README.md").write_text(text := "<!-- support -->\nold\n<!-- /support -->\n")
    code, _, err = vidsparse("--support", "README.md")
    assert code == 1 and "FutureTransformer3DModel from the table, since diffusers" in err
    assert "install a newer diffusers, or leave out --support" in err and Path("README.md").read_text() == text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["NoSuchTransformer"],
            "model 'NoSuchTransformer' is unknown; give 'shapes', a folder, a Hub id such as",
        ),
        (["AutoencoderKLWan"], "no adapter for AutoencoderKLWan; vidsparse serves AllegroTransformer3DModel; "),
        (["."], "model . has no transformer: neither transformer/config.json nor config.json"),
        (["foreign"], f"diffusers {diffusers.__version__} has no Foreign; vidsparse.doctor.diagnose takes classes"),
        (["nameless"], "config.json of nameless names no class of diffusers"),
        (
            ["nobody/nothing"],
            "cannot reach huggingface.co, and model_index.json of model 'nobody/nothing'",
        ),
        (["WanTransformer3DModel", "--json", "missing/a.json"], "the folder missing does not exist"),
        (["WanTransformer3DModel", "--support", "README.md"], "--support writes a table of all classes; leave out"),
        (["--support", "README.md"], "README.md has no place for the table; put <!-- support -->"),
    ],
    ids=[
        "unknown",
        "no adapter",
        "no transformer",
        "foreign",
        "nameless",
        "hub",
        "json",
        "support of one",
        "no markers",
    ],
)
def test_bad_input_is_one_line(
    vidsparse: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    name = "AllegroTransformer3DModel"
    monkeypatch.setattr(vidsparse_pipelines, "ADAPTERS", {name: ADAPTERS[name]})
    write_settings(Path("foreign/config.json"), _class_name="Foreign")
    write_settings(Path("nameless/config.json"), model_type="umt5")
    Path("README.md").write_text("no markers")
    before = sorted(os.listdir())
    code, _, err = vidsparse(*arguments)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(errors) == 1 and says in errors[0] and "Traceback" not in err
    assert sorted(os.listdir()) == before
