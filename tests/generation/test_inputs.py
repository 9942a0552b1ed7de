"""The size of a video that starts from files, and the arguments that its pipeline gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from PIL import Image
from pipelines_with_inputs import save, write_image, write_video
from small_videos import leaves_pipes

from vidsparse.generation.inputs import Inputs, Plan
from vidsparse.generation.models import Model, find_model

pytestmark = leaves_pipes
RED, GREEN = (200, 0, 0), (0, 200, 0)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder, saved = tmp_path_factory.mktemp("models"), dict[str, str]()

    def model(name: str, *given: str) -> Model:
        if name not in saved:
            saved[name] = str(save(name, folder / name))
        return find_model(saved[name]).serving(given)

    return model


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return {
        "image": write_image(tmp_path / "a.png", 640, 320, RED),
        "last_image": write_image(tmp_path / "b.png", 640, 320, GREEN),
        "video": write_video(tmp_path / "a.mp4", frames=10),
    }


def plan(model: Model, files: dict[str, Path], *names: str, **size: int | None) -> Plan:
    asked = dict.fromkeys(("frames", "height", "width")) | size
    return Inputs(**{name: files[name] for name in names}).plan(model, **asked)


def test_wan_keeps_the_aspect_ratio_at_the_default_area(models: Any, files: dict[str, Path]) -> None:
    model = models("wan_image", "image")
    found = plan(model, files, "image")
    assert (found.height, found.width) == (444, 892), "480 x 832 pixels, as wide as the image, in latents of 4x4"
    assert not found.notes and found.settings(model.pipeline_class) == {"height": 444, "width": 892}


@pytest.mark.parametrize(
    ("asked", "size", "noted"),
    [
        ({"height": 64, "width": 64}, (64, 64), True),
        ({"height": 64}, (64, 128), False),
        ({"width": 64}, (32, 64), False),
    ],
)
def test_what_is_asked_for_goes_first(
    models: Any, files: dict[str, Path], asked: dict[str, int], size: tuple[int, int], noted: bool
) -> None:
    found = plan(models("wan_image", "image"), files, "image", **asked)
    assert (found.height, found.width) == size
    text = f"--image {files['image']} is 640x320: edges are cut off for 64x64"
    assert found.notes == ((text,) if noted else ())


def test_others_have_their_own_size(models: Any, files: dict[str, Path]) -> None:
    found = plan(models("ltx", "image"), files, "image")
    assert (found.height, found.width) == (512, 704) and len(found.notes) == 1
    found = plan(models("cogvideox_image", "image"), files, "image")
    assert (found.height, found.width) == (64, 64), "of the transformer's settings, where the pipeline has no default"


def test_a_video_that_is_changed_has_its_own_frames_and_rate(models: Any, files: dict[str, Path]) -> None:
    model = models("cogvideox", "video")
    assert model.pipeline_class is diffusers.CogVideoXVideoToVideoPipeline
    found = plan(model, files, "video", height=32, width=48)
    assert (found.frames, found.fps) == (9, 24) and "num_frames" not in found.settings(model.pipeline_class)
    assert found.notes == ("10 frames do not fit the VAE's stride of 4 in time: legal are 1, 5, 9, ...; using 9",)
    assert plan(model, files, "video", frames=5).frames == 5
    masked = models("vace", "video")
    assert plan(masked, files, "video").settings(masked.pipeline_class)["num_frames"] == 9
    with pytest.raises(ValueError, match=r"a\.mp4 has 10 frames, and --frames asks for 17; give fewer"):
        plan(model, files, "video", frames=17)


def test_frames_that_would_be_rounded_up_beyond_the_file_are_rounded_down(models: Any, tmp_path: Path) -> None:
    model, files = models("cogvideox", "video"), {"video": write_video(tmp_path / "a.mp4", frames=8)}
    assert plan(model, files, "video").frames == plan(model, files, "video", frames=8).frames == 5
    longer = {"video": write_video(tmp_path / "b.mp4", frames=12)}
    assert plan(model, longer, "video", frames=8).frames == 9, "the nearest, as everywhere"


def test_a_video_that_is_continued_has_the_frames_of_the_model(models: Any, files: dict[str, Path]) -> None:
    for name in ("ltx", "skyreels"):
        found = plan(models(name, "video"), files, "video")
        assert found.frames is None and found.fps is None
    model = models("skyreels", "video")
    given = plan(model, files, "video", height=32, width=48).read(model.pipeline_class, 5)
    assert given["overlap_history"] == 17 and len(given["video"]) == 5
    assert round(np.asarray(given["video"][-1]).mean() / 6) == 9, "it is continued from its end"


def pixel(image: Image.Image) -> list[int]:
    return list(np.asarray(image)[1, 1])


def test_first_and_last_image_of_vace_are_given_and_the_rest_is_masked(models: Any, files: dict[str, Path]) -> None:
    model = models("vace", "image", "last_image")
    found = plan(model, files, "image", "last_image", height=32, width=64).read(model.pipeline_class, 5)
    video, mask = found["video"], found["mask"]
    assert [pixel(frame) for frame in video] == [[*RED], *[[128] * 3] * 3, [*GREEN]]
    assert [int(np.asarray(frame)[0, 0]) for frame in mask] == [0, 255, 255, 255, 0]
    assert {frame.size for frame in (*video, *mask)} == {(64, 32)}
    only = plan(model, files, "last_image", height=32, width=64).read(model.pipeline_class, 5)
    assert [int(np.asarray(frame)[0, 0]) for frame in only["mask"]] == [255, 255, 255, 255, 0]
    assert plan(model, files, "video").read(model.pipeline_class, 9).keys() == {"video"}


def test_conditions_of_ltx_are_at_the_start_and_in_the_last_frame(models: Any, files: dict[str, Path]) -> None:
    model = models("ltx", "image", "last_image")
    found = plan(model, files, "image", "last_image", height=64, width=64).read(model.pipeline_class, 9)["conditions"]
    assert [(pixel(x.image), x.video, x.frame_index) for x in found] == [([*RED], None, 0), ([*GREEN], None, 8)]
    (video,) = plan(model, files, "video", height=64, width=64).read(model.pipeline_class, 9)["conditions"]
    assert len(video.video) == 9 and video.image is None and video.frame_index == 0
    second = Plan(plan(model, files, "image", "last_image").files, height=64, width=64)
    latents = second.read(diffusers.LTX2ConditionPipeline, 9)["conditions"]
    assert [(pixel(x.frames), x.index) for x in latents] == [([*RED], 0), ([*GREEN], -1)]


def test_files_are_refused_by_the_name_of_their_option(models: Any, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    model = models("wan_first_last", "image", "last_image")
    good = write_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"^--last-image .*text\.png is not an image"):
        Inputs(good, tmp_path / "text.png").plan(model, None, None, None)
    with pytest.raises(OSError, match=r"^--image .*no\.png cannot be read: No such file"):
        Inputs(tmp_path / "no.png").plan(model, None, None, None)


def test_without_files_nothing_is_asked_of_the_model() -> None:
    found = Inputs().plan(find_model("owner/name"), 5, 32, None)
    assert (found.frames, found.height, found.width, found.files) == (5, 32, None, {})
    assert found.read(diffusers.WanPipeline, 5) == {}
