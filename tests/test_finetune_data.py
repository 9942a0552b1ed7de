"""The data of a fine-tuning: videos and captions from a folder or drawn, encoded once and kept on disk."""

from __future__ import annotations

import copy
import errno
import json
import os
import random
import resource
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
import torch

from vidsparse.finetune import stored
from vidsparse.finetune.cache import Encoded, encode
from vidsparse.finetune.captions import read_captions
from vidsparse.finetune.clips import Bucket, Clip, choose_bucket, fit
from vidsparse.finetune.decode import decode
from vidsparse.finetune.drawn import drawn_clips
from vidsparse.finetune.encoders import WanEncoders
from vidsparse.finetune.fingerprint import fingerprint
from vidsparse.finetune.folder import folder_clips
from vidsparse.shapes.judge import score
from vidsparse.shapes.model import MAX_WORDS, build_vae, load_pipeline
from vidsparse.shapes.scene import parse_prompt

# imageio-ffmpeg leaves the pipes of a process to the garbage collector, whose warning names whoever runs then.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

SMALL = Bucket(5, 32, 32)


def write_video(path: Path, frames: int = 10, height: int = 32, width: int = 48, fps: int = 24) -> None:
    """A video whose brightness counts its frames, six levels each."""
    pictures = [np.full((height, width, 3), 6 * i, np.uint8) for i in range(frames)]
    options: dict[str, Any] = {"macro_block_size": 1, "ffmpeg_params": ["-movflags", "+faststart"]}
    if height % 2 or width % 2:
        options["pixelformat"] = "yuv444p"
    imageio.mimwrite(path, pictures, format="FFMPEG", fps=fps, **options)


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
    with pytest.raises(ValueError, match="it has 32 frames, and the shortest clips are of 33"):
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
    monkeypatch.setattr("vidsparse.finetune.folder.look", lambda *_: (13, 32, 32))
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
    assert reasons["short.mp4"] == "it has 4 frames, and the shortest clips are of 5"
    assert "no such file" in reasons["gone.mp4"]
    assert "line 7 of" in reasons["gone.mp4"]
    assert "damaged" in reasons["cut.mp4"] or "cannot be decoded" in reasons["cut.mp4"]
    for name in ("bytes.mp4", "text.mp4", "empty.mp4"):
        assert "cannot be decoded: Error opening input files: Invalid data" in reasons[name]
    assert "cannot be decoded" in reasons["photo.jpg"]
    assert calls == [(i, 7) for i in range(1, 8)]


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
        (['{"file_name": "a.mp4", "caption": "a"}', '{"file_name": '], "line 2 of .*metadata.jsonl is no JSON"),
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
    with pytest.raises(ValueError, match=r"a\.txt is no UTF-8 text"):
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


# The cache


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_pipeline()


def clip_of(seed: int, bucket: Bucket = SMALL) -> Clip:
    return drawn_clips(1, bucket, seed)[0]


def unreadable() -> torch.Tensor:
    raise ValueError("it is damaged")


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_latents_decode_to_the_video_as_the_pipeline_decodes(pipe: Any, tmp_path: Path) -> None:
    clip = clip_of(0, Bucket(9, 64, 64))
    encoded, _ = encode(pipe, [clip], tmp_path)
    latents = encoded.latents(0)
    assert latents.shape == (8, 3, 16, 16)
    assert latents.dtype == torch.float32
    mean, std = (
        torch.tensor(v).view(1, -1, 1, 1, 1) for v in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std)
    )
    with torch.no_grad():
        video = pipe.vae.decode(latents[None] * std + mean).sample[0]
    assert -10 * torch.log10((video - clip.read()).square().mean() / 4) > 25


def test_texts_are_those_of_the_pipeline(pipe: Any, tmp_path: Path) -> None:
    clip = clip_of(0)
    encoded, _ = encode(pipe, [clip], tmp_path)
    with torch.no_grad():
        said, empty = pipe.encode_prompt(clip.caption, max_sequence_length=MAX_WORDS)
    assert torch.equal(encoded.text(0), said[0])
    assert torch.equal(encoded.empty_text, empty[0])
    assert encoded.captions == [clip.caption]


def test_what_is_cached_is_not_encoded_again(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [clip_of(0), clip_of(1), clip_of(2, Bucket(9, 32, 16)), clip_of(3)]
    calls = []
    first, _ = encode(pipe, [*clips, replace(clips[0], caption="another")], tmp_path, lambda *n: calls.append(n))
    assert len(first) == 5
    assert calls == [(i, 10) for i in range(11)]
    assert torch.equal(first.latents(0), first.latents(4))
    assert not torch.equal(first.text(0), first.text(4))

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("encoded again")

    monkeypatch.setattr(WanEncoders, "encode_video", refuse)
    monkeypatch.setattr(WanEncoders, "encode_text", refuse)
    again, skipped = encode(pipe, [replace(clip, read=refuse) for clip in clips], tmp_path)
    assert skipped == []
    for index in range(4):
        assert torch.equal(again.latents(index), first.latents(index))
        assert torch.equal(again.text(index), first.text(index))


def test_another_clip_caption_size_or_model_is_another_entry(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, encoders = clip_of(0), WanEncoders(pipe)
    keys = [
        encoders.video_key(clip),
        encoders.video_key(clip_of(1)),
        encoders.video_key(replace(clip, bucket=Bucket(9, 32, 32))),
        encoders.text_key("a red circle"),
        encoders.text_key("a red square"),
    ]
    assert encoders.video_key(replace(clip, caption="another")) == keys[0]
    monkeypatch.setattr(pipe.tokenizer, "model_max_length", 16)
    keys.append(WanEncoders(pipe).text_key("a red circle"))
    monkeypatch.setattr(pipe.vae, "use_tiling", True)
    keys.append(WanEncoders(pipe).video_key(clip))
    assert len(set(keys)) == len(keys)


def test_a_fingerprint_is_of_weights_and_settings() -> None:
    def built(seed: int, **settings: Any) -> torch.nn.Module:
        torch.manual_seed(seed)
        return build_vae(**settings)

    vae = built(0)
    assert fingerprint(vae) == fingerprint(built(0))
    vae.register_to_config(_name_or_path="elsewhere")
    assert fingerprint(vae) == fingerprint(built(0))
    others = [built(1), built(0, std=[2.0] * 8), built(0).half()]
    assert len({fingerprint(v) for v in (vae, *others)}) == 4


@pytest.mark.parametrize("at", ["write_bytes", "replace"])
def test_a_run_killed_while_it_writes_leaves_nothing_half_there(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*((Path, "write_bytes") if at == "write_bytes" else (os, "replace")), killed)
        encode(pipe, [clip_of(0)], tmp_path)
    assert files(tmp_path) == set()
    assert len(encode(pipe, [clip_of(0)], tmp_path)[0]) == 1


def test_what_dead_runs_left_is_removed_and_what_is_damaged_is_encoded_again(pipe: Any, tmp_path: Path) -> None:
    expected = encode(pipe, [clip_of(0)], tmp_path)[0].latents(0)
    complete = files(tmp_path)
    (path,) = tmp_path.glob("latents-*")
    path.write_bytes(path.read_bytes()[:-100])
    dead, living = tmp_path / ".latents-0.safetensors", tmp_path / ".latents-1.safetensors"
    for leftover in (dead, living):
        leftover.write_bytes(b"half")
    old = living.stat().st_mtime - 2 * stored.STALE
    os.utime(dead, (old, old))
    assert torch.equal(encode(pipe, [clip_of(0)], tmp_path)[0].latents(0), expected)
    assert files(tmp_path) == complete | {living.name}


def test_a_full_disk_is_said_and_what_was_encoded_is_kept(pipe: Any, tmp_path: Path) -> None:
    small, large = clip_of(0), clip_of(1, Bucket(9, 64, 64))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match=f"cannot write .*latents-.*{os.strerror(errno.EFBIG)}; what was written"):
            encode(pipe, [small, large], tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(files(tmp_path)) == 1
    assert len(encode(pipe, [small, large], tmp_path)[0]) == 2


def test_processes_share_the_work_and_see_all_of_it(pipe: Any, tmp_path: Path) -> None:
    clips = [clip_of(i) for i in range(3)]
    clips.insert(1, replace(clips[0], key="broken", read=unreadable, path=Path("broken.mp4")))
    read: dict[int, list[int]] = {0: [], 1: []}
    results: dict[int, Any] = {}
    barrier = threading.Barrier(2, timeout=60)

    def reading(rank: int, index: int) -> Callable[[], torch.Tensor]:
        def read_clip() -> torch.Tensor:
            read[rank].append(index)
            return clips[index].read()

        return read_clip

    # A process has models of its own; Wan's VAE keeps the frame before in itself.
    pipes = [pipe, type(pipe)(**{**pipe.components, "vae": copy.deepcopy(pipe.vae)})]

    def process(rank: int) -> None:
        mine = [replace(clip, read=reading(rank, i)) for i, clip in enumerate(clips)]
        results[rank] = encode(pipes[rank], mine, tmp_path, rank=rank, world=2, wait=lambda: (barrier.wait(), None)[1])

    threads = [threading.Thread(target=process, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == {0: [0, 2], 1: [1, 3]}
    for encoded, skipped in results.values():
        assert encoded.captions == [clips[i].caption for i in (0, 2, 3)]
        assert [(s.path.name, s.reason) for s in skipped] == [("broken.mp4", "it is damaged")]


def test_a_video_that_breaks_while_it_is_read_is_left_out(pipe: Any, tmp_path: Path) -> None:
    good = clip_of(0)
    bad = replace(good, key="broken", read=unreadable, path=Path("broken.mp4"))
    assert encode(pipe, [bad, good], tmp_path)[0].captions == [good.caption]
    with pytest.raises(ValueError, match=r"none of the 1 videos can be read; broken.mp4: it is damaged"):
        encode(pipe, [bad], tmp_path)
    mended, skipped = encode(pipe, [replace(bad, read=good.read)], tmp_path)
    assert (len(mended), skipped) == (1, [])
    with pytest.raises(ValueError, match="it is damaged"):  # a drawn clip has no file to blame
        encode(pipe, [replace(good, key="drawn", read=unreadable)], tmp_path)


def test_what_cannot_be_encoded_is_refused_before_anything_is(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class WanImageToVideoPipeline:
        pass

    with pytest.raises(NotImplementedError, match="WanImageToVideoPipeline"):
        encode(WanImageToVideoPipeline(), [clip_of(0)], tmp_path / "cache")
    with pytest.raises(ValueError, match="no clips"):
        encode(pipe, [], tmp_path / "cache")
    with pytest.raises(ValueError, match="use 5 or 9"):
        encode(pipe, [clip_of(0), clip_of(0, Bucket(6, 32, 32))], tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(pipe.vae, "encode", _of_nan)
    with pytest.raises(ValueError, match=r"not finite in torch\.float32"):
        encode(pipe, [clip_of(0)], tmp_path / "cache")


def _of_nan(video: torch.Tensor) -> Any:
    from types import SimpleNamespace

    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    return SimpleNamespace(latent_dist=DiagonalGaussianDistribution(torch.full((1, 16, 2, 8, 8), float("nan"))))


def test_examples_outlive_the_encoders(pipe: Any, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    (tmp_path / "a.txt").write_text("a white square standing still on a black background")
    clips, _ = folder_clips(tmp_path, [(32, 32)], [5])
    encoded: Encoded = encode(pipe, clips, tmp_path / "cache")[0]
    assert not [v for v in vars(encoded).values() if isinstance(v, torch.nn.Module)]
    assert encoded.latents(0).isfinite().all()
    assert encoded.text(0).shape == (MAX_WORDS, 64)
