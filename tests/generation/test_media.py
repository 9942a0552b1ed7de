"""Images and videos in files: what is seen of them, how they are read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pipelines_with_inputs import write_image, write_video
from small_videos import leaves_pipes

from vidsparse.generation.media import cover, cropped, look_at_image, look_at_video, read_image, read_video

pytestmark = leaves_pipes


def test_an_image_is_upright_and_without_transparency(tmp_path: Path) -> None:
    picture, exif = Image.open(write_image(tmp_path / "a.png", 64, 48)), Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture.save(tmp_path / "turned.jpg", exif=exif)
    found = look_at_image(tmp_path / "turned.jpg")
    assert (found.width, found.height) == (48, 64) == read_image(tmp_path / "turned.jpg").size
    faint = picture.copy()
    faint.putalpha(3)
    faint.save(tmp_path / "faint.png")
    assert np.array_equal(read_image(tmp_path / "faint.png"), picture.convert("RGB"))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    grey = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (8, 1))
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    image.save(path := tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    found = read_image(path)
    assert found.mode == "RGB" and found.size == (64, 8)
    if mode not in ("1", "P", "CMYK"):
        assert np.array_equal(np.asarray(found)[..., 0], grey), "16 bits are scaled, not cut off"


def test_the_first_picture_of_an_animation_is_read(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (16, 8), (60 * i, 0, 0)) for i in range(3)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:])
    assert look_at_image(tmp_path / "a.gif").frames == 3
    assert np.asarray(read_image(tmp_path / "a.gif")).max() == 0


def test_bad_images_are_refused_with_the_reason(tmp_path: Path) -> None:
    whole = write_image(tmp_path / "a.png", 256, 256).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not a picture")
    write_video(tmp_path / "a.mp4")
    for name, says in (
        ("cut.png", "cannot be read as an image: "),
        ("text.png", "is not an image"),
        ("a.mp4", "is not"),
    ):
        with pytest.raises(ValueError, match=f"{name} {says}"):
            look_at_image(tmp_path / name)
    with pytest.raises(OSError, match=r"no\.png cannot be read: No such file"):
        look_at_image(tmp_path / "no.png")
    with pytest.raises(IsADirectoryError, match="is a folder; give one file"):
        look_at_image(tmp_path)


def test_a_file_that_has_changed_is_looked_at_again(tmp_path: Path) -> None:
    assert look_at_image(write_image(tmp_path / "a.png", 64, 48)).width == 64
    assert look_at_image(write_image(tmp_path / "a.png", 128, 48)).width == 128


def test_a_video_is_counted_and_read_from_either_end(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=10, width=48, height=32, fps=24)
    found = look_at_video(path)
    assert (found.frames, found.height, found.width, found.fps) == (10, 32, 48, 24)
    assert look_at_video(path, 4).frames == 4

    def levels(frames: list[Image.Image]) -> list[int]:
        return [round(np.asarray(frame).mean() / 6) for frame in frames]

    assert levels(read_video(path, 3)) == [0, 1, 2] and levels(read_video(path, 3, last=True)) == [7, 8, 9]
    assert len(read_video(path, 99)) == 10


def test_bad_videos_are_refused_with_the_reason(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is not a video: its name must end in one of \.3g2, "):
        look_at_video(tmp_path / "a.png")
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").touch()
    whole = write_video(tmp_path / "a.mp4", frames=40).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    for name in ("text.mp4", "empty.mp4", "cut.mp4"):
        with pytest.raises(ValueError, match=rf"{name} cannot be used: it (cannot be decoded|is damaged)"):
            look_at_video(tmp_path / name)
    with pytest.raises(OSError, match=r"no\.mp4 cannot be read: No such file"):
        look_at_video(tmp_path / "no.mp4")


def test_a_size_is_covered_and_the_edges_are_cut_off(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", 200, 100)
    small = cover(read_image(path), 40, 40)
    assert small.size == (40, 40)
    left, right = (np.asarray(small)[:, x].mean() for x in (2, -3))
    assert left > 2 * right, "the middle stays in the middle"
    assert cropped(look_at_image(path), 40, 40) == 0.5 and cropped(look_at_image(path), 40, 80) == 0
