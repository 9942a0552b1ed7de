"""`vidsparse preview`, and the options of data that it shares with `finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import vidsparse_in_a_folder
from PIL import Image
from small_videos import leaves_pipes, write_video
from typer.main import get_command

from vidsparse.cli import app

pytestmark = leaves_pipes
vidsparse = pytest.fixture(vidsparse_in_a_folder)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write_video(tmp_path / "data/a.mp4", frames=20)
    (tmp_path / "data/a.txt").write_text("a video")
    (tmp_path / "data/b.pdf").touch()
    return tmp_path


SMALL = ["--frames", 5, "--size", "32x32"]


def test_a_folder_is_shown_as_it_would_be_learnt(vidsparse: Any, folder: Path) -> None:
    done = vidsparse(
        "preview", folder / "data", *SMALL, "-o", folder / "a.png", "--clips", "chunk", "--cache", folder / "c"
    )
    assert done.code == 0, done.err
    said = done.err
    assert "12 frames a second is the rate of shapes; --fps 0 takes videos as they are" in said
    assert "videos are resampled to 12 frames a second; they have 24 (1 file)" in said
    assert "b.pdf is left out: its ending .pdf" in said and "2 clips of 1 file, 1 file left out" in said
    assert Image.open(folder / "a.png").width == 1600 and done.out.strip().endswith("a.png")
    done = vidsparse("preview", folder / "data", *SMALL, "-o", folder / "a.html", "--fps", 0)
    assert done.code == 0 and "resampled" not in done.err and (folder / "a.html").read_text().startswith("<!doctype")


def test_a_second_picture_has_a_new_name(vidsparse: Any, folder: Path) -> None:
    names = [vidsparse("preview", folder / "data", *SMALL, *more).out.strip() for more in ([], [], ["--overwrite"])]
    assert names == ["wrote preview.png", "wrote preview-2.png", "wrote preview.png"]
    assert {path.name for path in folder.glob("*.png")} >= {"preview.png", "preview-2.png"}


def test_what_cannot_be_meant_is_refused_before_any_work(vidsparse: Any, folder: Path) -> None:
    for options, says in (
        (["-o", folder / "a.gif"], "its name must end in .png or .html"),
        (["--clips", "middle"], "clips='middle' is unknown; choose first, chunk"),
        (["--clip-stride", 3], "stride=3 (--clip-stride) is for clips='slide' alone"),
        (["--size", "big"], "--size 'big' must be WIDTHxHEIGHT"),
        (["--size", "65x64"], "width 65 of the clips must be a multiple of 4"),
        (["--frames", 10], "clips of 10 frames do not fit the VAE's stride of 4 in time; use 9 or 13"),
    ):
        done = vidsparse("preview", folder / "data", *options)
        assert done.code == 1 and says in done.err, options
    done = vidsparse("preview", folder / "nowhere")
    assert done.code == 1 and "no folder" in done.err
    (folder / "alone.mp4").touch()
    done = vidsparse("preview", folder / "alone.mp4")
    assert done.code == 1 and "alone.mp4 is a file; give the folder" in done.err
    done = vidsparse("finetune", "--data", folder / "data", "-o", folder / "run", "--clips", "middle")
    assert done.code == 1 and "clips='middle' is unknown" in done.err


def test_preview_and_finetune_read_a_folder_by_the_same_options() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    options = [{param.name: param for param in commands[name].params} for name in ("preview", "finetune")]
    for name in ("frames", "size", "fps", "clips", "clip_stride", "caption_lines"):
        first, second = (found[name] for found in options)
        assert (first.opts, first.default, first.multiple) == (second.opts, second.default, second.multiple)
