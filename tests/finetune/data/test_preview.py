"""The preview of a training's data, as a picture and as a page."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from data_folders import grey
from small_videos import leaves_pipes, write_video

from vidsparse.finetune.data.clips import Skipped
from vidsparse.finetune.data.contact_page import contact_page
from vidsparse.finetune.data.contact_sheet import MARGIN, PADDING, WIDTH, contact_sheet
from vidsparse.finetune.data.folder import folder_clips
from vidsparse.finetune.data.preview import Preview, preview

pytestmark = leaves_pipes


def previewed(folder: Path, most: int = 100) -> Preview:
    (folder / "cats@2").mkdir(parents=True)
    write_video(folder / "cats@2/a.mp4", frames=20, height=32, width=48)
    (folder / "cats@2/a.txt").write_text("one <b>\ntwo & 猫")
    grey(30).save(folder / "photo.png")
    (folder / "photo.txt").write_text("a photo")
    (folder / "notes.md").touch()
    clips, skipped = folder_clips(folder, [(32, 48)], [1, 9], fps=12, caption_lines=True)
    return preview(folder, clips, skipped, 12, most)


def test_a_card_says_what_is_learnt(tmp_path: Path) -> None:
    found = previewed(tmp_path / "data")
    video, photo = found.cards
    assert video.name == "cats@2/a.mp4" and video.captions == ("one <b>", "two & 猫")
    assert video.facts == ("48 × 32", "9 frames", "0.00 to 0.67 s", "24 → 12 fps", "2 times")  # noqa: RUF001
    assert [round(frame.mean() / 6) for frame in video.frames] == [0, 8, 16], "first, middle, last"
    assert photo.facts == ("48 × 32", "1 frame") and len(photo.frames) == 1  # noqa: RUF001
    assert found.left_out == (("notes.md", "its ending .md is not that of a video or an image"),)
    assert found.summary == "2 clips of 2 files, 2 sizes, 12 frames a second" and found.more == 0


def test_of_many_clips_some_are_drawn_and_all_are_counted(tmp_path: Path) -> None:
    found = previewed(tmp_path / "data", most=1)
    assert len(found.cards) == 1 and found.more == 1
    assert "1 more clips" in contact_page(found)


def test_a_clip_that_breaks_is_left_out_with_its_reason(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    (tmp_path / "a.txt").write_text("x")

    def damaged() -> torch.Tensor:
        raise ValueError("it is damaged")

    clips, _ = folder_clips(tmp_path, [(32, 32)], [5])
    found = preview(tmp_path, [replace(clips[0], read=damaged)], [Skipped(tmp_path / "b.mp4", "gone")])
    assert found.cards == () and found.left_out == (("b.mp4", "gone"), ("a.mp4", "it is damaged"))
    assert contact_sheet(found).width == WIDTH


def test_the_picture_has_the_frames_as_they_are_learnt(tmp_path: Path) -> None:
    found = previewed(tmp_path / "data")
    sheet = np.asarray(contact_sheet(found))
    top = next(
        y for y in range(MARGIN, sheet.shape[0]) if (sheet[y, MARGIN + PADDING : MARGIN + PADDING + 50] < 3).all()
    )
    left = MARGIN + PADDING
    third = (((WIDTH - 2 * MARGIN - 24) // 2) - 2 * PADDING - 16) // 3
    shown = [round(sheet[top + 20, left + index * (third + 8) + 30].mean() / 6) for index in range(3)]
    assert shown == [0, 8, 16]
    long = replace(found.cards[0], captions=("word " * 500, "x" * 3000), name="n" * 500)
    assert contact_sheet(replace(found, cards=(long,))).height < 900, "captions are cut, and nothing runs over"


def test_the_page_needs_nothing_else_and_escapes_what_it_shows(tmp_path: Path) -> None:
    page = contact_page(previewed(tmp_path / "data"))
    assert "one &lt;b&gt;" in page and "two &amp; 猫" in page and "<b>" not in page
    assert len(re.findall(r'src="data:image/jpeg;base64,', page)) == 4
    assert not re.search(r"""(src|href)=["'](?!data:)""", page) and "notes.md" in page
