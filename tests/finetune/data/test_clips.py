"""The clips of a fine-tuning: videos and captions from a folder, or drawn."""

from __future__ import annotations

import json
import random
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from imageio_ffmpeg import get_ffmpeg_exe
from small_videos import SMALL, leaves_pipes, write_video

from vidsparse.finetune.data.captions import read_captions
from vidsparse.finetune.data.clips import Bucket, choose_bucket, fit
from vidsparse.finetune.data.folder import folder_clips
from vidsparse.finetune.data.synthetic import drawn_clips
from vidsparse.generation.media import decode
from vidsparse.shapes.judge import score
from vidsparse.shapes.scene import parse_prompt

pytestmark = leaves_pipes


def write_metadata(folder: Path, *lines: dict[str, Any] | str) -> None:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")


def counted(video: torch.Tensor) -> list[int]:
    """The frame numbers that a video of `write_video` shows."""
    return [round(float(level)) for level in (video.mean(dim=(0, 2, 3)) + 1) * 127.5 / 6]


# Buckets


@pytest.mark.parametrize(
    ("frames", "height", "width", "expected"),
    [
        (200, 1080, 1920, Bucket(129, 480, 832)),
        (128, 1920, 1080, Bucket(81, 832, 480)),
        (33, 700, 700, Bucket(33, 512, 512)),
        (81, 60, 64, Bucket(81, 256, 256)),
        (81, 400, 400, Bucket(81, 512, 512)),
    ],
)
def test_a_video_gets_the_longest_and_the_most_alike(frames: int, height: int, width: int, expected: Bucket) -> None:
    sizes = [(480, 832), (832, 480), (256, 256), (512, 512)]
    assert choose_bucket(frames, height, width, sizes, [33, 129, 81]) == expected


def test_a_short_video_has_no_bucket() -> None:
    with pytest.raises(ValueError, match="it has 32 frames, and the shortest clips have 33"):
        choose_bucket(32, 64, 64, [(64, 64)], [33, 81])


def test_a_bucket_fits_the_vae_or_says_what_does() -> None:
    Bucket(81, 480, 832).check(temporal=4, spatial=16)
    Bucket(1, 16, 16).check(temporal=4, spatial=16)
    with pytest.raises(ValueError, match=r"80 frames .* use 77 or 81"):
        Bucket(80, 480, 832).check(temporal=4, spatial=16)
    with pytest.raises(ValueError, match=r"width 840 .* multiple of 16"):
        Bucket(81, 480, 840).check(temporal=4, spatial=16)


def test_fit_keeps_the_aspect_and_the_middle() -> None:
    wide = torch.full((3, 20, 60), -1.0)
    wide[:, :, 20:40] = 1.0
    assert fit(wide, 20, 20).mean() > 0.999
    assert fit(wide, 10, 10)[:, :, 1:-1].mean() > 0.99  # smaller, its edges blurred
    assert fit(wide.transpose(1, 2), 30, 30).shape == (3, 30, 30)
    assert torch.equal(fit(wide, 20, 60), wide)


def test_fit_does_not_alias() -> None:
    stripes = torch.ones(3, 64, 64)
    stripes[:, :, ::2] = -1.0
    assert fit(stripes, 13, 13).abs().max() < 0.1


# Video files


def test_frames_are_resampled_to_a_rate(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames=12, fps=24)

    def seen(fps: float | None) -> list[int]:
        return [round(frame.mean() / 6) for frame in decode(tmp_path / "a.mp4", fps)]

    assert seen(None) == seen(24) == list(range(12))
    assert seen(12) == list(range(0, 12, 2))
    assert seen(48) == [i // 2 for i in range(24)]


def test_a_clip_is_the_beginning_of_its_video(tmp_path: Path) -> None:
    write_video(tmp_path / "odd.mp4", frames=11, height=35, width=51)
    (tmp_path / "odd.txt").write_text(" it gets lighter\n")
    (clip,), skipped = folder_clips(tmp_path, [(32, 32), (32, 48)], [5, 9, 13])
    assert (clip.bucket, clip.caption, skipped) == (Bucket(9, 32, 48), "it gets lighter", [])
    video = clip.read()
    assert video.shape == (3, 9, 32, 48)
    assert video.dtype == torch.float32
    assert counted(video) == list(range(9))


def test_the_key_is_of_the_content(tmp_path: Path) -> None:
    for name, frames in (("a", 9), ("b", 9), ("c", 10)):
        write_video(tmp_path / f"{name}.mp4", frames=frames)
        (tmp_path / f"{name}.txt").write_text(name)
    a, b, c = folder_clips(tmp_path, [(32, 32)], [5])[0]
    slow = folder_clips(tmp_path, [(32, 32)], [5], fps=12)[0][0]
    assert a.key == b.key
    assert len({a.key, c.key, slow.key}) == 3


def test_frames_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.mp4", frames=9)
    (tmp_path / "a.txt").write_text("grey")
    cache = tmp_path / "cache"
    (clip,), _ = folder_clips(tmp_path, [(32, 32)], [5, 13], cache=cache)
    monkeypatch.setattr("vidsparse.finetune.data.folder.measure_clip", lambda *_: (13, 32, 32))
    (again,), _ = folder_clips(tmp_path, [(32, 32)], [5, 13], cache=cache)
    assert (again.key, again.bucket) == (clip.key, clip.bucket) == (clip.key, Bucket(5, 32, 32))
    (longer,), _ = folder_clips(tmp_path, [(32, 32)], [5, 9], cache=cache)  # other limits count again
    assert longer.bucket.frames == 9


def test_what_cannot_be_used_is_left_out_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write_video(tmp_path / "deep/good.mp4")
    write_video(tmp_path / "mute.MP4")
    write_video(tmp_path / "short.mp4", frames=4)
    write_video(tmp_path / "cut.mp4", frames=40)
    whole = (tmp_path / "cut.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "bytes.mp4").write_bytes(random.Random(0).randbytes(5000))
    (tmp_path / "text.mp4").write_text("this is no video\n" * 50)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "._good.mp4").touch()
    names = ("deep/good.mp4", "short.mp4", "cut.mp4", "bytes.mp4", "text.mp4", "empty.mp4", "gone.mp4", "photo.jpg")
    (tmp_path / "photo.jpg").touch()
    write_metadata(tmp_path, *({"file_name": name, "text": "grey"} for name in names))
    calls = []
    clips, skipped = folder_clips(tmp_path, [(32, 32)], [5, 37], progress=lambda *numbers: calls.append(numbers))
    assert [clip.path for clip in clips] == [tmp_path / "deep/good.mp4"]
    reasons = {s.path.name: s.reason for s in skipped}
    assert reasons.keys() == {"mute.MP4", *(Path(name).name for name in names[1:])}
    assert reasons["mute.MP4"] == "it has no caption: neither in metadata.jsonl nor in mute.txt beside it"
    assert reasons["short.mp4"] == "it has 4 frames, and the shortest clips have 5"
    assert "no such file" in reasons["gone.mp4"]
    assert "line 7 of" in reasons["gone.mp4"]
    assert "damaged" in reasons["cut.mp4"] or "cannot be decoded" in reasons["cut.mp4"]
    for name in ("bytes.mp4", "text.mp4", "empty.mp4"):
        assert "cannot be decoded: Error opening input files: Invalid data" in reasons[name]
    assert "cannot be decoded" in reasons["photo.jpg"]
    assert calls == [(i, 7) for i in range(1, 8)]


def test_sound_may_last_longer_than_the_pictures(tmp_path: Path) -> None:
    write_video(tmp_path / "silent.mp4", frames=12)
    sound = ["-f", "lavfi", "-i", "sine=duration=3", "-c:v", "copy", tmp_path / "film.mp4"]
    subprocess.run([get_ffmpeg_exe(), "-v", "error", "-i", tmp_path / "silent.mp4", *sound], check=True)
    (tmp_path / "film.txt").write_text("grey")
    (tmp_path / "silent.mp4").unlink()
    (clip,), skipped = folder_clips(tmp_path, [(32, 32)], [9, 37])
    assert not skipped and counted(clip.read()) == list(range(9))


def test_damage_behind_the_clip_does_no_harm(tmp_path: Path) -> None:
    write_video(tmp_path / "cut.mp4", frames=40)
    whole = (tmp_path / "cut.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "cut.txt").write_text("grey")
    (clip,), _ = folder_clips(tmp_path, [(32, 32)], [5])
    assert counted(clip.read()) == list(range(5))


def test_frames_that_ffmpeg_would_make_up_are_not_taken(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    imageio.mimwrite(tmp_path / "a.mp4", list(noise), format="FFMPEG", fps=24, macro_block_size=1)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = random.Random(0).randbytes(2000)
    (tmp_path / "a.mp4").write_bytes(content)
    frames = []
    with pytest.raises(ValueError, match=r"it is damaged: its frames end after .* of about 40"):
        frames.extend(decode(tmp_path / "a.mp4"))


# Captions


def test_captions_of_metadata_and_of_text_files(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for name in ("a.mp4", "b.mp4", "train/c.webm", "train/d.mov"):
        (tmp_path / name).touch()
    write_metadata(tmp_path, {"file_name": "./b.mp4", "caption": "b\u2028é", "fps": 8}, "", {"file_name": "a.mp4"})
    write_metadata(tmp_path / "train", {"file_name": "c.webm", "text": "c"})
    (tmp_path / "a.txt").write_text("\ufeff a\nof two lines \n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("b\u2028é", encoding="utf-8")  # twice the same is no contradiction
    captions, skipped = read_captions(tmp_path)
    assert {path.relative_to(tmp_path).as_posix(): text for path, text in captions.items()} == {
        "a.mp4": "a\nof two lines",
        "b.mp4": "b\u2028é",
        "train/c.webm": "c",
    }
    assert [s.path.name for s in skipped] == ["d.mov"]


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        (['{"file_name": "a.mp4", "caption": "a"}', '{"file_name": '], "line 2 of .*metadata.jsonl is not valid JSON"),
        (['["a.mp4", "a"]'], "line 1 of .* has no file_name; write a line such as"),
        (['{"caption": "a"}'], "line 1 of .* has no file_name"),
        (['{"file_name": "a.mp4", "caption": ["a"]}'], r"line 1 of .* has the caption \['a'\]"),
        (
            ['{"file_name": "a.mp4", "caption": "a"}', '{"file_name": "./a.mp4", "caption": "b"}'],
            "two captions for .*a.mp4: 'a' in line 1 of .*, 'b' in line 2 of",
        ),
        (['{"file_name": "a.mp4", "caption": "b"}'], "two captions for .*'b' in line 1 of .*, 'from text' in .*a.txt"),
    ],
)
def test_captions_that_cannot_be_meant(tmp_path: Path, lines: list[str], match: str) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.txt").write_text("from text" if "'from text'" in match else "")
    write_metadata(tmp_path, *lines)
    with pytest.raises(ValueError, match=match):
        read_captions(tmp_path)


def test_a_caption_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 text"):
        read_captions(tmp_path)


def test_a_folder_without_a_usable_video_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        folder_clips(tmp_path / "nowhere", [(32, 32)], [5])
    with pytest.raises(ValueError, match="it has no files"):
        folder_clips(tmp_path, [(32, 32)], [5])
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ValueError, match=r"it has 1 \.jpg"):
        folder_clips(tmp_path, [(32, 32)], [5])
    write_video(tmp_path / "a.mp4", frames=4)
    with pytest.raises(ValueError, match=r"1 left out \(a.mp4: it has no caption"):
        folder_clips(tmp_path, [(32, 32)], [5])
    with pytest.raises(ValueError, match="need at least one each"):
        folder_clips(tmp_path, [], [5])
    with pytest.raises(ValueError, match="fps=0 must be above 0"):
        folder_clips(tmp_path, [(32, 32)], [5], fps=0)


# Drawn clips


def test_a_long_drawn_clip_is_what_its_caption_says_all_along() -> None:
    for clip in drawn_clips(3, Bucket(129, 64, 64), seed=3):
        video, scene = clip.read(), parse_prompt(clip.caption)
        for part in (video, video[:, 40:], video[:, 96:]):
            assert score(part, scene).mean > 0.97, clip.caption


def test_drawn_clips_are_those_of_their_seed() -> None:
    few, many = drawn_clips(3, SMALL, seed=1), drawn_clips(200, SMALL, seed=1)
    assert [c.key for c in few] == [c.key for c in many[:3]]
    assert torch.equal(few[0].read(), many[0].read())
    assert many[0].read().shape == (3, 5, 32, 32)
    others = [*drawn_clips(3, SMALL, seed=2), *drawn_clips(3, replace(SMALL, frames=9), seed=1)]
    assert len({c.key for c in (*many, *others)}) == 206
    assert not any(parse_prompt(c.caption).held_out for c in drawn_clips(2000, Bucket(1, 64, 64)))
