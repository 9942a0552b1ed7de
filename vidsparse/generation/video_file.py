"""Video files: when each stored frame is shown, and the frames themselves, as a player shows them."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from vidsparse.generation import ffmpeg

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SUFFIXES = (
    *(".3g2", ".3gp", ".asf", ".avi", ".f4v", ".flv", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg"),
    *(".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".qt", ".ts", ".vob", ".webm", ".wmv", ".y4m"),
)
# Containers with the time of every frame, and an index to seek by.
INDEXED = ("mov,", "matroska,")
INEXACT = "vp8"  # some of its packets show nothing
CUT = re.compile(r"partial file|ended prematurely|corrupt input packet|[Tt]runcat")
CORRUPT, DISCARD = 2, 4  # flags of packets
PQ_OR_HLG = re.compile(r"smpte2084|arib-std-b67")
TRANSPARENT = re.compile(r"(yuva|gbra|rgba|bgra|argb|abgr|ya|pal8)")
# Colours of up to 10,000 candela a square metre become those of an ordinary screen.
TONE_MAP = (
    "format=yuv444p10,zscale=t=linear:npl=100,format=gbrpf32le,zscale=p=bt709,tonemap=hable:desat=0,"
    "zscale=t=bt709:m=bt709:r=tv,format=yuv444p"
)


@dataclass(frozen=True)
class Footage:
    """What a video file holds.

    Attributes:
        times: seconds at which each stored frame is shown, ascending; the first need not be 0.
        height, width: in pixels as a player shows them: upright, and square.
        fps: frames a second as the file has them on average.
        start: seconds at which the file begins, which may be before its first frame.
        indexed: whether any frame can be found without decoding those before it.
        transparent: whether pixels may be transparent; frames are then composited on black.
        hdr: whether its colours are PQ or HLG; frames are then tone-mapped.
        decoder: of ffmpeg; None is the one that it takes by itself.
        cut: whether the file ends before its frames do.
    """

    times: tuple[float, ...]
    height: int
    width: int
    fps: float
    start: float = 0.0
    indexed: bool = True
    transparent: bool = False
    hdr: bool = False
    decoder: str | None = None
    cut: bool = False

    @property
    def frames(self) -> int:
        """How many frames are stored."""
        return len(self.times)


def look(path: Path) -> Footage:
    """Read when the frames of a video are shown, without decoding them where the container knows it.

    Damage between the frames is found when they are decoded. Of a file that was cut off, frames that depend on the lost
    part do not count.

    Raises:
        ValueError: not a video, with the reason.
    """
    source = ["-i", f"file:{path}", "-map", "0:V:0", "-copyts"]
    out, said = ffmpeg.run(*source, "-c", "copy", "-f", "framecrc", "-")
    header, packets = _parse(out)
    chosen = re.search(r"Stream #0:(\d+) -> #0:0", said)
    if not header or chosen is None:
        raise ValueError(ffmpeg.reason(said))
    described = re.search(rf"Stream #0:{chosen[1]}\b.*?: (Video: .*(?:\n {{4,}}.*)*)", said)
    text = described[1] if described else ""
    pixels = re.search(r", (\w+)(\([^()]*\))?, \d+x\d+", text)
    form, colours = (pixels[1], pixels[2] or "") if pixels else ("", "")
    alpha = re.search(r"alpha_mode\s*: 1", text) is not None
    decoder = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(header["codec_id"]) if alpha else None
    container = re.search(r"Input #0, (\S+)", said)
    indexed = container is not None and container[1].startswith(INDEXED) and header["codec_id"] != INEXACT
    indexed = indexed and all(pts is not None for _, pts, _ in packets)
    tick = Fraction(header["tb"])
    shown = [pts * tick for _, pts, flags in packets if pts is not None and not flags & (CORRUPT | DISCARD)]
    decoded = [dts * tick for dts, _, flags in packets if dts is not None and not flags & CORRUPT]
    found = shown if indexed else _decoded(source)
    times = _whole(found, decoded, cut=CUT.search(said) is not None)
    if not times:
        raise ValueError("it has no frames")
    seconds = tuple(float(time) for time in times)
    rate, began = re.search(r"([\d.]+) fps", text), re.search(r"Duration: .*?start: (-?[\d.]+)", said)
    height, width = _upright(header, text)
    told, spread = float(rate[1]) if rate else 0.0, seconds[-1] - seconds[0]
    mean = (len(seconds) - 1) / spread if spread else told or 1.0
    return Footage(
        times=seconds,
        height=height,
        width=width,
        fps=told if told and abs(told / mean - 1) < 0.01 else round(mean, 2),
        start=float(began[1]) if began else 0.0,
        indexed=indexed,
        transparent=alpha or TRANSPARENT.match(form) is not None,
        hdr=PQ_OR_HLG.search(colours) is not None,
        decoder=decoder,
        cut=len(times) < len(set(found)),
    )


def read(
    path: Path, footage: Footage, frames: Sequence[int], height: int | None = None, width: int | None = None
) -> Iterator[NDArray[np.uint8]]:
    """Decode frames of a video, uint8 [height, width, 3] each.

    Args:
        path: of the video.
        footage: from `look`.
        frames: indices of stored frames, ascending.
        height, width: size in pixels: frames are resized (bicubic, antialiased) until they cover it, and their centre
            is cropped to it. None: as a player shows them.

    Raises:
        ValueError: some of them cannot be decoded, or are HDR and this ffmpeg cannot tone-map.
    """
    import numpy as np

    height, width = height or footage.height, width or footage.width
    arguments = ["-map", "0:V:0", "-fps_mode", "passthrough", "-pix_fmt", "rgb24"]
    arguments += ["-vf", ",".join([_selection(footage.times, frames), *_filters(footage, height, width)])]
    first, last = footage.times[frames[0]], footage.times[frames[-1]]
    starts = [None] if frames[0] == 0 or not footage.indexed else [(footage.times[frames[0] - 1] + first) / 2, None]
    shape, done = (height, width, 3), 0
    for start in starts:
        seek = [] if start is None else ["-ss", f"{start - footage.start:.6f}"]
        # What comes later is not read, so that damage there does no harm.
        spare = 0.4 * _gap(footage.times) if footage.indexed else 1.0  # without an index, times are estimates
        until = last - (footage.start if start is None else start) + spare
        source = [*seek, "-t", f"{until:.6f}", *(["-c:v", footage.decoder] if footage.decoder else [])]
        source += ["-copyts", "-xerror", "-i", f"file:{path}"]
        failed = None
        try:
            for number, piece in enumerate(ffmpeg.stream(height * width * 3, *source, *arguments)):
                if number == done:
                    done += 1
                    yield np.frombuffer(bytearray(piece), np.uint8).reshape(shape)
                if done == len(frames):
                    return
        except ValueError as error:
            failed = error
        # From the middle of a file, a decoder may lack what it needs; from its beginning it does not.
    raise ValueError(f"it is damaged: {done} of {len(frames)} frames can be decoded") from failed


def _parse(out: str) -> tuple[dict[str, str], list[tuple[int | None, int | None, int]]]:
    """The header that ffmpeg's `framecrc` writes, and (decoding time, presentation time, flags) of each packet."""
    header: dict[str, str] = {}
    packets: list[tuple[int | None, int | None, int]] = []
    for line in out.splitlines():
        if line.startswith("#"):
            name, _, value = line[1:].partition(":")
            header[name.removesuffix(" 0")] = value.strip()
        elif len(parts := [part.strip() for part in line.split(",")]) >= 6:
            flags = next((int(part[2:], 16) for part in parts[6:] if part.startswith("F=")), 0)
            dts, pts = (int(part) if part.lstrip("-").isdigit() else None for part in parts[1:3])
            packets.append((dts, pts, flags))
    return header, packets


def _whole(shown: Sequence[Fraction], decoded: Sequence[Fraction], cut: bool) -> list[Fraction]:
    """The times, ascending, of the frames that nothing is missing for, where a file may have been cut off.

    Args:
        shown: times at which frames are shown.
        decoded: times at which they are decoded.
        cut: whether ffmpeg says so. It says nothing of a cut between two packets, which leaves a gap instead.
    """
    times = sorted(set(shown))
    # No frame is shown before it is decoded, so all that are shown up to the last decoding time are there.
    sure = sum(time <= max(decoded, default=times[-1]) for time in times) if times else 0
    gaps = [after - before for before, after in pairwise(times)]
    if cut or any(gap > 1.5 * statistics.median(gaps) for gap in gaps[max(0, sure - 1) :]):
        return times[:sure]
    return times


def _decoded(source: list[str]) -> list[Fraction]:
    """The times in seconds of the frames of a video that is decoded for them, up to the first damage."""
    quick = ["-fps_mode", "passthrough", "-vf", "scale=16:16:flags=neighbor", "-enc_time_base", "1:90000"]
    quick += ["-f", "framecrc", "-"]
    out, said = ffmpeg.run(*source, *quick)
    if re.search(r"corrupt decoded frame|[Ee]rror while decoding|Error submitting packet|Invalid data found", said):
        # One thread does not meet the damage before it has written the frames that come before.
        out, said = ffmpeg.run("-xerror", "-threads", "1", *source, *quick)
    header, packets = _parse(out)
    return [pts * Fraction(header["tb"]) for _, pts, _ in packets if pts is not None]


def _upright(header: dict[str, str], text: str) -> tuple[int, int]:
    """Height and width in square pixels, after the rotation that the file asks for."""
    width, height = (int(side) for side in header["dimensions"].split("x"))
    wide, _, high = header.get("sar", "1/1").partition("/")
    if int(wide) and int(high):
        width = max(1, round(width * int(wide) / int(high)))
    turned = re.search(r"rotation of (-?[\d.]+) degrees", text)
    if turned and round(float(turned[1]) / 90) % 2:
        height, width = width, height
    return height, width


def _gap(times: Sequence[float]) -> float:
    """The shortest time between two frames."""
    return min((after - before for before, after in pairwise(times)), default=1.0)


def _selection(times: Sequence[float], frames: Sequence[int]) -> str:
    """A filter of ffmpeg that lets these frames through, and no others."""
    near, spans = 0.4 * _gap(times), list[list[int]]()
    for frame in frames:
        if spans and spans[-1][1] == frame - 1:
            spans[-1][1] = frame
        else:
            spans.append([frame, frame])
    terms = (f"between(t,{times[first] - near:.6f},{times[last] + near:.6f})" for first, last in spans)
    return f"select='{'+'.join(terms)}'"


def _filters(footage: Footage, height: int, width: int) -> list[str]:
    """Filters of ffmpeg that make a frame opaque, ordinary in its colours, and of a size.

    Raises:
        ValueError: HDR, where a filter is missing.
    """
    scale = max(height / footage.height, width / footage.width)
    high, wide = max(height, round(footage.height * scale)), max(width, round(footage.width * scale))
    found = ["format=gbrap,premultiply=inplace=1,format=gbrp"] if footage.transparent else []
    found.append(f"scale={wide}:{high}:flags=bicubic+accurate_rnd+full_chroma_int")
    if footage.hdr:
        if missing := {"zscale", "tonemap"} - ffmpeg.filters():
            raise ValueError(
                f"it is HDR, and this ffmpeg lacks the filter {min(missing)} to tone-map it; convert it to SDR"
            )
        found.append(TONE_MAP)
    # Where colours are halved in size, ffmpeg would crop at even pixels only.
    return [*found, f"format=rgb24,crop={width}:{height}:{(wide - width) // 2}:{(high - height) // 2}", "setsar=1"]
