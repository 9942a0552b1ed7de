"""Videos of a page: made, compared, stopped and refused, with one pipeline that stays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import imageio.v3 as imageio
import pytest
from command_line import PROMPT, tiny_pipeline

from vidsparse.cli.request import Request
from vidsparse.cli.ui import command_line
from vidsparse.ui.form import Form
from vidsparse.ui.studio import Stopped, Studio

tiny = pytest.fixture(scope="module")(tiny_pipeline)


def silent(task: str, done: int, steps: int) -> None:
    """Shows no progress."""


@pytest.fixture
def studio() -> Iterator[Studio]:
    made = Studio(command_line(("--device", "cpu")))
    yield made
    made.close()
    assert not made.folder.exists()


@pytest.fixture
def small(tiny: Path) -> Form:
    return Form(PROMPT, str(tiny), frames="9", height="32", width="48", steps="2", dense_steps="1")


def test_generate(studio: Studio, small: Form) -> None:
    told: list[tuple[str, int, int]] = []
    made = studio.make("generate", small, "me", lambda *step: told.append(step))
    assert list(made.videos) == ["sparse"] and made.table[0] == ("", "sparse")
    assert imageio.imread(made.videos["sparse"], plugin="FFMPEG").shape == (9, 4 * 32, 4 * 48, 3)
    assert made.videos["sparse"].name == f"{PROMPT.replace(' ', '-')}-0-sparse.mp4"
    assert made.notes[0].startswith("sparse: 9 frames of 48x32 in ")
    assert [step for step in told if step[0] == "sparse"] == [("sparse", n, 2) for n in range(3)]
    assert told[0] == (f"loading {small.model}", 0, 0)
    assert "2 of 8 attention calls sparse" in made.report and "the pattern asks for it" in made.report
    assert made.command.startswith(f"vidsparse generate '{PROMPT}' --model {small.model} --dense-steps 1 --frames 9")
    assert "vidsparse.sparsify(pipe, pattern" in made.python


def test_compare(studio: Studio, small: Form) -> None:
    made = studio.make("compare", replace(small, attention="top-blocks", density="0.2"), "me", silent)
    assert list(made.videos) == ["dense", "sparse"] and made.table[0] == ("", "dense", "sparse")
    assert all(imageio.imread(path, plugin="FFMPEG").shape[0] == 9 for path in made.videos.values())
    names = [row[0] for row in made.table]
    assert {"seconds denoising", "speed-up of denoising", "PSNR to dense", "SSIM to dense"} < {*names}
    assert all(len(row) == 3 for row in made.table)
    assert made.command.startswith("vidsparse compare")


def test_frames_that_the_model_does_not_make_are_noted(studio: Studio, small: Form) -> None:
    made = studio.make("generate", replace(small, frames="8"), "me", silent)
    assert any("8" in text for text in made.notes[1:]), made.notes


def test_the_pipeline_stays_until_another_model_comes(
    studio: Studio, small: Form, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened: list[str] = []
    load = Request.load_pipe

    def counted(self: Request) -> object:
        opened.append(self.model)
        return load(self)

    monkeypatch.setattr(Request, "load_pipe", counted)
    other = tmp_path / "other"
    other.symlink_to(small.model)
    for form in (small, replace(small, seed="1"), replace(small, model=str(other)), small):
        studio.make("generate", form, "me", silent)
    assert opened == [small.model, str(other), small.model]


def test_stop_ends_a_video_at_its_next_step(studio: Studio, small: Form) -> None:
    def stop(task: str, done: int, steps: int) -> None:
        assert done < 1, "it went on"
        if task == "sparse":
            studio.stop("me")

    studio.begin("me")
    with pytest.raises(Stopped):
        studio.make("generate", replace(small, steps="4"), "me", stop)
    with pytest.raises(Stopped):
        studio.make("generate", small, "me", silent)  # it waited when "me" stopped
    studio.make("generate", small, "you", silent)
    studio.begin("me")
    assert studio.make("generate", small, "me", silent).videos


def test_the_forecast_loads_nothing(studio: Studio, small: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Request, "load_pipe")
    line, preset = studio.forecast(replace(small, prompt=""))
    assert "288 tokens, radial of density" in line and "1 of 2 steps sparse, attention at most" in line
    assert preset.startswith("preset default: Radial(density=0.3)")
    [line, note] = studio.forecast(replace(small, attention="radial", dense_steps="2"))
    assert "all 2 steps are dense" in note


def test_defaults_are_those_of_the_model(studio: Studio, small: Form) -> None:
    assert studio.defaults("shapes") == {
        "prompt": PROMPT,
        "frames": "33",
        "height": "128",
        "width": "128",
        "steps": "20",
        "guidance": "2.0",
    }
    assert studio.defaults(small.model)["prompt"] == "" and studio.defaults(small.model)["frames"] == "81"


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"model": "shapes", "prompt": "a fox"}, "give --model"),
        ({"model": "no such model"}, "is unknown"),
        ({"attention": "radial", "density": "2"}, "density=2.0"),
        ({"attention": "dense", "density": "0.5"}, "no density"),
        ({"height": "33"}, "33"),
        ({"frames": "0"}, "--frames"),
    ],
)
def test_a_bad_form_is_refused_before_anything_is_loaded(
    studio: Studio, small: Form, changes: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(Request, "load_pipe")
        with pytest.raises(studio.errors, match=says):
            studio.make("generate", replace(small, **changes), "me", silent)
    assert not list(studio.folder.iterdir())


def test_a_video_says_what_it_was_made_with(studio: Studio, small: Form) -> None:
    made = studio.make("generate", small, "me", silent)
    assert json.dumps(PROMPT).encode() in made.videos["sparse"].read_bytes()
