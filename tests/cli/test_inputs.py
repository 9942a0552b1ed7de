"""`--image`, `--last-image`, `--video` and `--strength`: videos of small random pipelines, and what is refused."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
from command_line import PROMPT, refused, vidsparse_in_a_folder
from PIL import Image
from pipelines_with_inputs import save, write_image, write_still, write_video
from small_videos import leaves_pipes

from vidsparse.generation.models import Model, Shapes

vidsparse = pytest.fixture(vidsparse_in_a_folder)
pytestmark = leaves_pipes
SMALL = ("--steps", "3", "--set", "tile=1,2,2", "--scale", "1")
SIZES = {"ltx": (64, 96), "cogvideox": (64, 64), "cogvideox_image": (64, 64)}
# A case, the files that it starts from, and the pipeline that runs where it is not the folder's own.
CASES = {
    "wan_image": (["image"], None),
    "wan_first_last": (["image", "last_image"], None),
    "wan_expand": (["image"], "WanImageToVideoPipeline"),
    "vace": (["image", "last_image"], None),
    "vace, a video": (["video"], None),
    "ltx": (["image"], "LTXImageToVideoPipeline"),
    "ltx, both images": (["image", "last_image"], "LTXConditionPipeline"),
    "ltx, a video": (["video"], "LTXConditionPipeline"),
    "cogvideox": (["video"], "CogVideoXVideoToVideoPipeline"),
    "cogvideox_image": (["image"], None),
    "skyreels": (["image"], "SkyReelsV2DiffusionForcingImageToVideoPipeline"),
    "hunyuan_skyreels": (["image"], None),
    "framepack": (["image", "last_image"], None),
}


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder, found = tmp_path_factory.mktemp("models"), dict[str, Path]()

    def model(name: str) -> Path:
        if name not in found:
            found[name] = save(name, folder / name)
        return found[name]

    return model


@pytest.fixture
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {
        "image": write_image(folder / "a.png", 96, 64),
        "last_image": write_image(folder / "b.png", 96, 64, (20, 90, 200)),
        "other": write_image(folder / "c.png", 96, 64, (250, 250, 250)),
        "video": write_video(folder / "a.mp4", 9, 96, 64),
        "another": write_still(folder / "b.mp4", 9, 96, 64),
    }


@pytest.fixture
def never_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Model, Shapes):
        monkeypatch.setattr(kind, "load", lambda *_: pytest.fail("the model was loaded"))


def options(files: dict[str, Path], names: list[str]) -> list[str]:
    return [word for name in names for word in (f"--{name.replace('_', '-')}", str(files[name]))]


def size(name: str) -> list[str]:
    height, width = SIZES.get(name, (32, 48))
    return ["--height", str(height), "--width", str(width)]


@pytest.mark.parametrize("case", CASES)
def test_a_video_is_made_of_what_is_given(vidsparse: Any, saved: Any, files: dict[str, Path], case: str) -> None:
    name, (given, pipeline) = case.split(",")[0], CASES[case]
    asked = ["generate", PROMPT, "--model", saved(name), *SMALL, *size(name)]
    asked += [] if given == ["video"] and name in ("vace", "cogvideox") else ["--frames", "9"]
    done = vidsparse(*asked, *options(files, given), "-o", "a.mp4", "--report", "a.json")
    assert done.code == 0, done.err
    assert (f"its parts run as {pipeline}\n" in done.err) == (pipeline is not None)
    video, report = imageio.imread("a.mp4", plugin="FFMPEG"), json.loads(Path("a.json").read_text())
    frames = 37 if name == "framepack" else 9  # FramePack makes whole sections
    assert video.shape == (frames, *SIZES.get(name, (32, 48)), 3)
    assert report["attention"]["sparse_calls"] > 0 and 0 < report["attention"]["density"] < 0.5
    assert {key: report["request"][key] for key in given} == {key: str(files[key]) for key in given}
    assert {key: report["arguments"][key] for key in given} == {key: str(files[key]) for key in given}
    for key in given:  # each of them decides the video
        other = files | {key: files["another" if key == "video" else "other"]}
        assert vidsparse(*asked, *options(other, given), "--frames", 9, "-o", f"{key}.mp4").code == 0
        assert not np.array_equal(imageio.imread(f"{key}.mp4", plugin="FFMPEG"), video), key


def test_a_strength_leaves_out_the_first_steps(vidsparse: Any, saved: Any, files: dict[str, Path]) -> None:
    asked = [
        PROMPT,
        "--model",
        saved("cogvideox"),
        "--set",
        "tile=1,2,2",
        *options(files, ["video"]),
        *size("cogvideox"),
    ]
    asked += ["--steps", "20", "--strength", "0.5", "--pattern", "radial"]
    told = vidsparse("generate", *asked, "--dry-run").out
    assert "the last 10 of 20 steps" in told and re.search(r"dense steps +0-1: 2 of 10", told), told
    assert "24 a second" in told, "the rate of the video"
    done = vidsparse("generate", *asked, "-o", "a.mp4", "--report", "a.json")
    assert done.code == 0, done.err
    assert "8 of 10 steps sparse" in done.err and "radial: 10 of 10, " in done.err
    report = json.loads(Path("a.json").read_text())
    calls = report["attention"]["calls"]
    assert {call["step"] for call in calls} == set(range(10))
    assert {call["step"] for call in calls if call["reason"]} == {0, 1}
    assert report["request"]["strength"] == report["arguments"]["strength"] == 0.5
    assert imageio.immeta("a.mp4", plugin="FFMPEG")["fps"] == 24
    done = vidsparse("compare", *asked, "--strength", "0.05", "--dense-steps", 0, "--repeat", 1, "-o", "b.mp4")
    assert done.code == 0 and "dense: 1 of 1" in done.err, "the warm-up too runs a step"
    assert len(imageio.imread("b.mp4", plugin="FFMPEG")) == 9


def test_a_report_and_a_saved_request_make_the_video_again(vidsparse: Any, saved: Any, files: dict[str, Path]) -> None:
    asked = ["--model", saved("wan_image"), *SMALL, *size("wan_image"), "--frames", 5, "--image", files["image"]]
    done = vidsparse("generate", PROMPT, *asked, "-o", "a.mp4", "--report", "a.json", "--save-config", "a.yaml")
    assert done.code == 0, done.err
    for config in ("a.json", "a.yaml"):
        done = vidsparse("generate", "--config", config, "-o", "b.mp4", "--overwrite")
        assert done.code == 0, done.err
        assert Path("a.mp4").read_bytes() == Path("b.mp4").read_bytes()


def test_many_videos_start_from_files_beside_the_prompts(vidsparse: Any, saved: Any, files: dict[str, Path]) -> None:
    prompts = files["image"].parent / "p.jsonl"
    lines = {"prompt": PROMPT, "name": "a"}, {"prompt": PROMPT, "name": "c", "image": "c.png"}
    prompts.write_text("\n".join(map(json.dumps, lines)))
    asked = ["--model", saved("wan_image"), *SMALL, *size("wan_image"), "--frames", 5]
    many = ["generate", "--prompts", prompts, "--out", "o", *asked, "--image", files["image"]]
    done = vidsparse(*many)
    assert done.code == 0, done.err
    for name, file in (("a", "image"), ("c", "other")):
        assert vidsparse("generate", PROMPT, *asked, "--image", files[file], "-o", f"{name}.mp4").code == 0
        one, among = (imageio.imread(path, plugin="FFMPEG") for path in (f"{name}.mp4", f"o/{name}.mp4"))
        assert np.array_equal(one, among)
    prompts.write_text(json.dumps(lines[0] | {"image": "b.png"}))
    done = vidsparse(*many)
    assert done.code == 1 and re.search(r"o/a\.mp4 was made with image '.*a\.png', not '.*b\.png'", done.err)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"image": "no.png"}, ":2: --image {folder}/no.png cannot be read: No such file"),
        ({"image": 3}, ":2: image=3 must be text in quotes"),
        ({}, ":2: WanImageToVideoPipeline needs --image FILE"),
        ({"video": "a.mp4"}, ":2: WanImageToVideoPipeline takes no --video"),
    ],
    ids=str,
)
def test_bad_lines_are_named(
    vidsparse: Any, saved: Any, files: dict[str, Path], never_loads: None, line: dict[str, Any], says: str
) -> None:
    prompts = files["image"].parent / "p.jsonl"
    lines = {"prompt": PROMPT, "image": "a.png"}, {"prompt": PROMPT, **line}
    prompts.write_text("\n".join(map(json.dumps, lines)))
    asked = "--model", saved("wan_image"), *size("wan_image")
    refused(vidsparse("generate", "--prompts", prompts, "--out", "o", *asked), says.format(folder=prompts.parent))


def test_lines_for_different_pipelines_are_refused(
    vidsparse: Any, saved: Any, files: dict[str, Path], never_loads: None
) -> None:
    prompts = files["image"].parent / "p.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": PROMPT, **line}) for line in ({}, {"image": "a.png"})))
    done = vidsparse("generate", "--prompts", prompts, "--out", "o", "--model", saved("ltx"), *size("ltx"))
    refused(done, ":2: this video is for LTXImageToVideoPipeline, and the one of")


# Words after the prompt, in which names of files stand for their paths, and what the one line says.
REFUSED = {
    "shapes": (
        ["--image", "image"],
        "shapes makes videos from words alone and takes no --image; leave it out, or give",
    ),
    "text alone": (["--model", "cogvideox", "--image", "image"], "CogVideoXPipeline takes no --image; give --model a"),
    "both": (["--model", "ltx", "--image", "image", "--video", "video"], "both say how the video starts"),
    "no image": (["--model", "wan_image"], "WanImageToVideoPipeline needs --image FILE: what its video starts from"),
    "no video": (["--model", "vace", "--strength", "0.5"], "WanVACEPipeline takes none; leave it out"),
    "no step": (["--model", "cogvideox", "--video", "video", "--strength", "0.01"], "of 50 steps leaves no step"),
    "no file": (["--model", "wan_image", "--image", "nowhere.png"], "--image nowhere.png cannot be read: No such file"),
    "a folder": (["--model", "wan_image", "--image", "."], "--image . is a folder; give one file"),
    "a video for an image": (["--model", "wan_image", "--image", "video"], "a.mp4 is not an image"),
    "an image for a video": (["--model", "vace", "--video", "image"], "a.png is not a video: its name must end in"),
    "too short": (
        ["--model", "cogvideox", "--video", "video", "--frames", "17"],
        "has 9 frames, and --frames asks for 17",
    ),
    "size": (["--model", "wan_image", "--image", "image", "--height", "40"], "divisible by 16"),
    "last alone": (["--model", "wan_image", "--last-image", "image"], "needs --image FILE"),
}


@pytest.mark.parametrize("command", ["generate", "compare"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_before_the_model_is_loaded(
    vidsparse: Any, saved: Any, files: dict[str, Path], never_loads: None, command: str, case: str
) -> None:
    words, says = REFUSED[case]
    found = [files.get(word, saved(word) if words[i - 1] == "--model" else word) for i, word in enumerate(words)]
    refused(vidsparse(command, PROMPT, *found), says)


def test_a_strength_out_of_range_is_a_usage_error(vidsparse: Any) -> None:
    assert vidsparse("generate", PROMPT, "--strength", "1.5").code == 2 and os.listdir() == []
    assert vidsparse("generate", PROMPT, "--strength", "-1").code == 2


def test_notes_say_how_files_are_used(vidsparse: Any, saved: Any, files: dict[str, Path], never_loads: None) -> None:
    pictures = [Image.new("RGB", (64, 64), (60 * i, 0, 0)) for i in range(3)]
    gif = files["image"].parent / "a.gif"
    pictures[0].save(gif, save_all=True, append_images=pictures[1:])
    done = vidsparse("generate", PROMPT, "--model", saved("wan_image"), "--image", gif, *size("wan_image"), "--dry-run")
    assert done.code == 0, done.err
    assert f"note: --image {gif} has 3 pictures; the first is used" in done.err
    assert f"note: --image {gif} is 64x64: edges are cut off for 48x32" in done.err
    assert "a.gif,64x64" in "".join(done.out.split())
