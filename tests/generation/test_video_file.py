"""Video files: each stored frame once, at its time, as a player shows it; checked against ffmpeg's own decoding."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe
from numpy.typing import NDArray

from vidsparse.generation import ffmpeg, video_file
from vidsparse.generation.video_file import look, read

PICTURES = ("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25:duration=2")
FLAGS = "flags=bicubic+accurate_rnd+full_chroma_int"
SCALE = f"scale=64:48:{FLAGS}"


def make(*arguments: object) -> None:
    subprocess.run([get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)], check=True, stdin=subprocess.DEVNULL)


def decoded(path: Path, graph: str = SCALE, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """All frames as ffmpeg alone decodes them."""
    command = [get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-map", "0:V:0", "-vf", graph]
    command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    out = subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL).stdout
    return np.frombuffer(out, np.uint8).reshape(-1, height, width, 3)


def taken(path: Path, frames: range | None = None, **size: int) -> NDArray[np.uint8]:
    footage = look(path)
    return np.stack(list(read(path, footage, range(footage.frames) if frames is None else frames, **size)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 frames with B frames, a key frame every 12, its index at the front."""
    path = tmp_path_factory.mktemp("videos") / "plain.mp4"
    make(*PICTURES, "-pix_fmt", "yuv420p", "-g", 12, "-bf", 3, "-movflags", "+faststart", path)
    return path


ENCODINGS = {
    "mp4": ["a.mp4"],
    "open groups": ["-x264-params", "open-gop=1:keyint=12:bframes=3:scenecut=0", "a.mkv"],
    "ten bits": ["-c:v", "libx265", "-x265-params", "open-gop=1:keyint=12:log-level=error:pools=1", "b.mkv"],
    "vp8": ["-c:v", "libvpx", "-auto-alt-ref", 1, "-lag-in-frames", 16, "a.webm"],
    "vp9": ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-g", 20, "b.webm"],
    "windows": ["-c:v", "wmv2", "a.wmv"],
    "mpeg": ["-c:v", "mpeg2video", "-bf", 2, "a.mpg"],
    "avi": ["-c:v", "mpeg4", "-bf", 2, "a.avi"],
    "transport": ["a.TS"],
    "flash": ["-c:v", "flv", "a.flv"],
    "apple": ["a.m4v"],
    "phone": ["-c:v", "libx264", "a.3gp"],
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_frames_are_those_of_ffmpeg_from_anywhere(tmp_path: Path, encoding: str) -> None:
    *options, name = ENCODINGS[encoding]
    path = tmp_path / str(name)
    colours = "yuv420p10le" if encoding == "ten bits" else "yuv420p"
    make(*PICTURES, "-pix_fmt", colours, *options, *(["-f", "mpegts"] if name == "a.TS" else []), path)
    whole, found = taken(path), look(path)
    assert np.array_equal(whole, decoded(path)) and len(whole) == 50
    assert np.allclose(np.diff(found.times), 0.04, atol=0.0011) and found.fps == 25
    for first in (1, 17, 41):
        assert np.array_equal(taken(path, range(first, first + 9)), whole[first : first + 9])
    assert np.array_equal(taken(path, range(3, 50, 7)), whole[3::7])


def test_a_pause_is_a_time_and_no_copies(tmp_path: Path, plain: Path) -> None:
    make("-i", plain, "-vf", "setpts='if(lt(N,20),N,N+200)/25/TB'", "-fps_mode", "vfr", tmp_path / "gap.mp4")
    found = look(tmp_path / "gap.mp4")
    assert found.frames == 50 and found.times[20] - found.times[19] == pytest.approx(8.04)
    whole = taken(tmp_path / "gap.mp4")
    assert np.array_equal(whole, decoded(tmp_path / "gap.mp4")) and len(whole) == 50
    assert np.array_equal(taken(tmp_path / "gap.mp4", range(18, 24)), whole[18:24])


def test_frames_are_upright_and_their_pixels_square(tmp_path: Path, plain: Path) -> None:
    make("-i", plain, "-vf", "setsar=2", tmp_path / "wide.mp4")
    make("-display_rotation", 90, "-i", tmp_path / "wide.mp4", "-c", "copy", tmp_path / "turned.mp4")
    assert (look(tmp_path / "wide.mp4").height, look(tmp_path / "wide.mp4").width) == (48, 128)
    assert (look(tmp_path / "turned.mp4").height, look(tmp_path / "turned.mp4").width) == (128, 48)
    wide, turned = (taken(tmp_path / f"{name}.mp4", range(2)).astype(int) for name in ("wide", "turned"))
    assert np.abs(np.rot90(wide, 1, (1, 2)) - turned).mean() < 1
    small = taken(tmp_path / "wide.mp4", range(1), height=24, width=32)
    assert (
        np.abs(
            small[0].astype(int) - decoded(tmp_path / "wide.mp4", f"scale=64:24:{FLAGS},crop=32:24", 24, 32)[0]
        ).mean()
        < 2
    )


@pytest.mark.parametrize(("height", "width"), [(24, 21), (36, 48), (15, 32), (96, 97)])
def test_frames_cover_a_size_and_their_centre_is_cropped(plain: Path, height: int, width: int) -> None:
    scale = max(height / 48, width / 64)
    high, wide = round(48 * scale), round(64 * scale)
    crop = f"format=rgb24,crop={width}:{height}:{(wide - width) // 2}:{(high - height) // 2}"
    expected = decoded(plain, f"scale={wide}:{high}:{FLAGS},{crop}", height, width)
    assert np.array_equal(taken(plain, height=height, width=width), expected)


def test_what_is_transparent_is_black(tmp_path: Path) -> None:
    half = "format=rgba,geq=r='r(X,Y)':g='g(X,Y)':b='b(X,Y)':a='255*gte(X,32)'"
    make(*PICTURES, "-vf", half, "-c:v", "qtrle", "-pix_fmt", "argb", tmp_path / "a.mov")
    make(
        *PICTURES, "-vf", f"{half},format=yuva420p", "-c:v", "libvpx-vp9", "-deadline", "realtime", tmp_path / "a.webm"
    )
    opaque = decoded(tmp_path / "a.mov")
    for name in ("a.mov", "a.webm"):
        assert look(tmp_path / name).transparent
        frames = taken(tmp_path / name, range(3)).astype(int)
        assert frames[:, :, :28].max() < 12
        assert np.abs(frames[:, :, 36:] - opaque[:3, :, 36:]).mean() < (1 if name == "a.mov" else 14)


def test_hdr_is_tone_mapped_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hdr = "log-level=error:pools=1:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"
    grey = ("-f", "lavfi", "-i", "color=gray:size=64x48:rate=25:duration=0.2")
    path = tmp_path / "hdr.mp4"
    make(*grey, "-c:v", "libx265", "-x265-params", hdr, "-pix_fmt", "yuv420p10le", path)
    assert look(path).hdr
    if {"zscale", "tonemap"} <= ffmpeg.filters():
        # Half of the PQ scale is 92 candela a square metre, close to the white of an ordinary screen.
        assert taken(path).mean() > 150 > decoded(path).mean()
    monkeypatch.setattr(ffmpeg, "filters", frozenset)
    with pytest.raises(ValueError, match="it is HDR, and this ffmpeg lacks the filter tonemap"):
        taken(path)


def test_what_else_is_in_the_file_does_no_harm(tmp_path: Path, plain: Path) -> None:
    (tmp_path / "s.srt").write_text("1\n00:00:00,000 --> 00:00:20,000\nhello\n")
    make(
        "-i", plain, "-i", tmp_path / "s.srt", "-map", "0:v", "-map", "1:s", "-c:v", "copy", tmp_path / "subtitles.mkv"
    )
    make("-itsoffset", 2, "-i", plain, "-c", "copy", tmp_path / "late.mkv")
    sound = ("-f", "lavfi", "-i", "sine=duration=9")
    make("-itsoffset", 2, "-i", plain, *sound, "-c:v", "copy", tmp_path / "sound.mp4")
    red = ("-f", "lavfi", "-i", "color=red:size=32x32:duration=0.04")
    streams = ("-map", 1, "-map", 0, "-c:v:0", "png", "-c:v:1", "copy")
    make("-i", plain, *red, *streams, "-disposition:v:0", "attached_pic", tmp_path / "cover.mp4")
    whole = taken(plain)
    for name in ("subtitles.mkv", "late.mkv", "sound.mp4", "cover.mp4"):
        assert np.array_equal(taken(tmp_path / name), whole), name
        assert np.array_equal(taken(tmp_path / name, range(30, 40)), whole[30:40]), name


@pytest.mark.parametrize("end", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("part", [0.6, 0.95])
def test_of_a_file_that_was_cut_off_only_whole_frames_count(tmp_path: Path, plain: Path, end: str, part: float) -> None:
    make("-i", plain, "-c", "copy", "-movflags", "+faststart", tmp_path / f"a.{end}")
    content = (tmp_path / f"a.{end}").read_bytes()
    (tmp_path / f"cut.{end}").write_bytes(content[: int(len(content) * part)])
    found, frames = look(tmp_path / f"cut.{end}"), taken(tmp_path / f"cut.{end}")
    assert 50 * part - 14 < len(frames) < 50
    assert found.cut or end == "ts"  # which says nothing of a cut between two packets
    assert np.array_equal(frames, taken(plain, range(len(frames)))), "no copies, no damaged frames"


def test_damage_is_named_where_it_is_and_harmless_elsewhere(tmp_path: Path, plain: Path) -> None:
    content = bytearray(plain.read_bytes())
    middle = int(len(content) * 0.6)
    content[middle : middle + 600] = np.random.default_rng(0).bytes(600)
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    assert np.array_equal(taken(path, range(12)), taken(plain, range(12)))
    with pytest.raises(ValueError, match=r"it is damaged: \d+ of 50 frames can be decoded"):
        taken(path)


def test_what_is_no_video_says_so(tmp_path: Path) -> None:
    make("-f", "lavfi", "-i", "sine=duration=1", tmp_path / "sound.mp4")
    (tmp_path / "text.mp4").write_text("no video\n" * 99)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(ValueError, match="it has no video in it"):
        look(tmp_path / "sound.mp4")
    for name in ("text", "empty"):
        with pytest.raises(ValueError, match="it cannot be decoded: Error opening input files: Invalid data"):
            look(tmp_path / f"{name}.mp4")


def test_names_are_taken_as_they_are(tmp_path: Path, plain: Path) -> None:
    for name in ("-a b.mp4", "concat:x|y.mp4", "%03d[é].mp4", "a'$.mp4"):
        (tmp_path / name).write_bytes(plain.read_bytes())
        assert look(tmp_path / name) == look(plain)
    assert ".m4v" in video_file.SUFFIXES
