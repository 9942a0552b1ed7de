"""Clips from folders: which files become clips, what they show, and what is remembered of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_folders import counted, grey, write_metadata
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image
from small_videos import leaves_pipes, write_video

from vidsparse.finetune.data import sources
from vidsparse.finetune.data.clips import Bucket
from vidsparse.finetune.data.cutting import Cutting
from vidsparse.finetune.data.folder import folder_clips
from vidsparse.finetune.data.pictures import look
from vidsparse.generation import video_file

pytestmark = leaves_pipes
SIZE = [(32, 32)]


def captioned(*paths: Path) -> None:
    for path in paths:
        path.with_suffix(".txt").write_text("grey")


def test_a_clip_is_the_beginning_of_its_video(tmp_path: Path) -> None:
    write_video(tmp_path / "odd.mp4", frames=11, height=35, width=51)
    (tmp_path / "odd.txt").write_text(" it gets lighter\n")
    (clip,), skipped = folder_clips(tmp_path, [(32, 32), (32, 48)], [5, 9, 13])
    assert (clip.bucket, clip.caption, skipped) == (Bucket(9, 32, 48), "it gets lighter", [])
    assert clip.fps == 24 and clip.span == pytest.approx((0, 8 / 24))
    video = clip.read()
    assert video.shape == (3, 9, 32, 48)
    assert video.dtype == torch.float32
    assert counted(video) == list(range(9))


def test_frames_are_resampled_to_a_rate(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames=12, fps=24)
    captioned(tmp_path / "a.mp4")

    def seen(fps: float | None, frames: int) -> list[int]:
        said: list[str] = []
        (clip,), _ = folder_clips(tmp_path, SIZE, [frames], fps, say=said.append)
        assert said == (
            [] if fps is None else [f"videos are resampled to {fps} frames a second; they have 24 (1 file)"]
        )
        return counted(clip.read())

    assert seen(None, 12) == seen(24, 12) == list(range(12))
    assert seen(12, 6) == list(range(0, 12, 2))
    assert seen(48, 24) == [i // 2 for i in range(24)]


def test_a_long_take_gives_several_clips_and_parts(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames=30, fps=24)
    captioned(tmp_path / "a.mp4")
    found, _ = folder_clips(tmp_path, SIZE, [5, 9], cutting=Cutting("chunk"))
    assert [counted(clip.read()) for clip in found] == [list(range(i, i + 9)) for i in (0, 9, 18)]
    assert len({clip.key for clip in found}) == 3
    write_metadata(tmp_path, {"file_name": "a.mp4", "start": 0.5, "end": 1, "text": ["one", "two"]})
    one, two = folder_clips(tmp_path, SIZE, [5, 9])[0]
    assert (one.caption, two.caption, one.key) == ("one", "two", two.key)
    assert counted(one.read()) == list(range(12, 21)) and one.span == pytest.approx((0.5, 20 / 24))


def test_the_key_is_of_the_content(tmp_path: Path) -> None:
    for name, frames in (("a", 9), ("b", 9), ("c", 10)):
        write_video(tmp_path / f"{name}.mp4", frames=frames)
        captioned(tmp_path / f"{name}.mp4")
    a, b, c = folder_clips(tmp_path, SIZE, [5])[0]
    slow = folder_clips(tmp_path, SIZE, [4], fps=12)[0][0]
    assert a.key == b.key
    assert len({a.key, c.key, slow.key}) == 3


@pytest.mark.parametrize("end", [".gif", ".webp", ".apng"])
def test_an_animation_is_a_video_with_times(tmp_path: Path, end: str) -> None:
    pictures = [grey(index) for index in range(8)]
    format = "PNG" if end == ".apng" else end[1:].upper()
    options: dict[str, Any] = {"lossless": True} if end == ".webp" else {}
    pictures[0].save(
        tmp_path / f"a{end}",
        format,
        save_all=True,
        append_images=pictures[1:],
        duration=[100] * 4 + [200] * 4,
        **options,
    )
    captioned(tmp_path / f"a{end}")
    (clip,), _ = folder_clips(tmp_path, SIZE, [5])
    assert counted(clip.read()) == list(range(5)) and clip.span == pytest.approx((0, 0.4))
    (clip,), _ = folder_clips(tmp_path, SIZE, [10], fps=10)
    assert counted(clip.read()) == [0, 1, 2, 3, 4, 4, 5, 5, 6, 6]


def test_images_and_folders_of_frames_are_clips(tmp_path: Path) -> None:
    (tmp_path / "take").mkdir()
    for index in range(12):
        grey(index).save(tmp_path / f"take/f{index}.PNG")
    grey(7).save(tmp_path / "photo.png")
    captioned(tmp_path / "take", tmp_path / "photo.png")
    clips, skipped = folder_clips(tmp_path, SIZE, [1, 12], fps=16)
    assert [(c.path.name, c.bucket.frames, c.fps, c.span) for c in clips if c.path] == [
        ("photo.png", 1, None, None),
        ("take", 12, None, None),
    ]
    assert [counted(clip.read()) for clip in clips] == [[7], list(range(12))] and not skipped
    skipped = folder_clips(tmp_path, SIZE, [5])[1]
    assert [s.reason for s in skipped] == ["it has 1 frame, and the shortest clips have 5"]


def test_pictures_are_upright_opaque_and_whole(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    grey(3).save(tmp_path / "turned.jpg", exif=exif)
    assert (look(tmp_path / "turned.jpg").height, look(tmp_path / "turned.jpg").width) == (48, 32)
    faint = Image.fromarray(np.full((32, 32, 4), (255, 255, 255, 51), np.uint8))
    faint.save(tmp_path / "faint.png")
    cut = (tmp_path / "turned.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(cut[: len(cut) * 2 // 3])
    (tmp_path / "text.png").write_text("no picture")
    captioned(*(tmp_path / name for name in ("faint.png", "cut.jpg", "text.png")))
    clips, skipped = folder_clips(tmp_path, SIZE, [1])
    found = {clip.path.name: clip for clip in clips if clip.path}
    assert float((found["faint.png"].read() + 1).mean() * 127.5) == pytest.approx(51, abs=1)
    reasons = {s.path.name: s.reason for s in skipped if s.path.name != "turned.jpg"}
    assert reasons.keys() == {"cut.jpg", "text.png"}
    assert all(reason.startswith(f"{name} cannot be read as an image") for name, reason in reasons.items())


def test_what_cannot_be_used_is_left_out_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write_video(tmp_path / "deep/good.mp4")
    write_video(tmp_path / "short.mp4", frames=4)
    (tmp_path / "text.mp4").write_text("this is no video\n" * 50)
    (tmp_path / "notes.pdf").touch()
    names = ("deep/good.mp4", "short.mp4", "text.mp4", "gone.mp4", "notes.pdf")
    write_metadata(tmp_path, *({"file_name": name, "text": "grey"} for name in names))
    calls = []
    clips, skipped = folder_clips(tmp_path, SIZE, [5, 37], progress=lambda *numbers: calls.append(numbers))
    assert [clip.path for clip in clips] == [tmp_path / "deep/good.mp4"]
    reasons = {s.path.name: s.reason for s in skipped}
    assert reasons.keys() == {Path(name).name for name in names[1:]}
    assert reasons["short.mp4"] == "it has 4 frames, and the shortest clips have 5"
    slower = folder_clips(tmp_path, SIZE, [3], fps=10)[1]
    assert {s.path.name: s.reason for s in slower}["short.mp4"] == (
        "it has 2 frames, and the shortest clips have 3 at 10 frames a second"
    )
    assert "cannot be decoded: Error opening input files: Invalid data" in reasons["text.mp4"]
    assert reasons["notes.pdf"] == "its ending .pdf is not that of a video or an image"
    assert calls == [(i, 4) for i in range(1, 5)]


def test_a_file_that_has_not_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, cache = tmp_path / "data", tmp_path / "cache"
    data.mkdir()
    write_video(data / "a.mp4", frames=9)
    captioned(data / "a.mp4")
    (clip,), _ = folder_clips(data, SIZE, [5, 13], cache=cache)
    shutil.copy2(data / "a.mp4", data / "copy.mp4")
    os.replace(data / "copy.mp4", data / "a.mp4")  # another inode

    def refuse(*_: Any) -> Any:
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(video_file, "look", refuse)
        patch.setattr(sources, "_blocks", refuse)
        (again,), _ = folder_clips(data, SIZE, [5, 13], cache=cache)
        assert (again.key, again.bucket) == (clip.key, clip.bucket) == (clip.key, Bucket(5, 32, 32))
        (longer,), _ = folder_clips(data, SIZE, [9], 24, cache)  # other settings need no other look
        assert longer.bucket.frames == 9
    write_video(data / "a.mp4", frames=10)
    assert folder_clips(data, SIZE, [5], cache=cache)[0][0].key != clip.key
    for record in cache.glob("seen-*"):
        record.write_text("{")
    assert folder_clips(data, SIZE, [5], cache=cache)[0][0].read().shape[1] == 5


def test_processes_share_the_looking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, looked = tmp_path / "data", []
    data.mkdir()
    for index in range(8):
        write_video(data / f"{index}.mp4", frames=5 + index)
        captioned(data / f"{index}.mp4")
    both, look_at = threading.Barrier(2, timeout=60), video_file.look

    def counting(path: Path) -> Any:
        looked.append(path.name)
        if len(looked) <= 2:
            both.wait()  # the two begin together, each with its own
        return look_at(path)

    monkeypatch.setattr(video_file, "look", counting)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    found: dict[int, Any] = {}

    def process(rank: int) -> None:
        found[rank] = folder_clips(data, SIZE, [5], cache=tmp_path / "cache", rank=rank, world=2)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {*looked[:2]} == {"0.mp4", "1.mp4"} and len({*looked}) == 8
    assert len(looked) <= 9, "at most the last file twice"
    assert [clip.key for clip in found[0][0]] == [clip.key for clip in found[1][0]]


def test_a_cache_of_an_earlier_version_is_said_to_be_made_again(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    captioned(tmp_path / "a.mp4")
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "look-0-5.safetensors").touch()
    (cache / "latents-0.safetensors").touch()
    said: list[str] = []
    for _ in range(2):
        folder_clips(tmp_path, SIZE, [5], cache=cache, say=said.append)
    assert said == [f"an earlier version read the videos in {cache} in another way; they are encoded again"]
    assert (cache / "latents-0.safetensors").exists(), "it may be of a drawn video, which stays valid"


def test_a_file_of_any_ending_is_used(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames=9)
    for end in ("m4v", "mkv", "ts", "mts", "MOV"):
        copy = [
            "-i",
            tmp_path / "a.mp4",
            "-c",
            "copy",
            *(["-f", "mpegts"] if end == "mts" else []),
            tmp_path / f"b.{end}",
        ]
        subprocess.run([get_ffmpeg_exe(), "-v", "error", *copy], check=True, stdin=subprocess.DEVNULL)
        (tmp_path / "b.txt").write_text("grey")
        captioned(tmp_path / "a.mp4")
    clips, skipped = folder_clips(tmp_path, SIZE, [9])
    assert len(clips) == 6 and not skipped
    assert all(counted(clip.read()) == list(range(9)) for clip in clips)


def test_a_folder_without_a_usable_video_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        folder_clips(tmp_path / "nowhere", SIZE, [5])
    with pytest.raises(ValueError, match="it has no files"):
        folder_clips(tmp_path, SIZE, [5])
    write_video(tmp_path / "a.mp4", frames=4)
    with pytest.raises(ValueError, match=r"1 left out \(a.mp4: it has no caption"):
        folder_clips(tmp_path, SIZE, [5])
    with pytest.raises(ValueError, match="need at least one each"):
        folder_clips(tmp_path, [], [5])
    with pytest.raises(ValueError, match="fps=0 must be above 0"):
        folder_clips(tmp_path, SIZE, [5], fps=0)
