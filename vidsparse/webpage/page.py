"""What a page shows: scenes of videos, and the settings that made them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidsparse.webpage.heat_map import heat_map

# Okabe and Ito's colours without the yellow: colour-blind readers can tell them apart on light and on dark.
COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
# Dense videos in fewer steps: the fewer, the paler.
GREYS = tuple(f"color-mix(in oklab, var(--muted) {share}%, var(--paper))" for share in (100, 70, 45))


@dataclass(frozen=True)
class Clip:
    """A video.

    Attributes:
        setting: the name of the setting that made it.
        file: the MP4; its bytes go into the page.
        frames: how many it has.
        psnr, ssim: of each frame, to the dense video; None is an infinite PSNR. Empty for the dense video itself.
        worst: the frame with the lowest PSNR; None without one.
    """

    setting: str
    file: Path
    frames: int
    psnr: tuple[float | None, ...] = ()
    ssim: tuple[float, ...] = ()
    worst: int | None = None


@dataclass(frozen=True)
class Scene:
    """Videos of one prompt and seed, which play in step.

    Attributes:
        title: on its tab. text: what the videos show. fps: frames a second.
    """

    title: str
    text: str
    fps: int
    clips: tuple[Clip, ...]


@dataclass(frozen=True)
class Setting:
    """One way of making the videos.

    Attributes:
        name: of the setting. kind: "dense", "sparse", or "fewer steps" for dense videos in fewer steps.
        figures: heading -> text, a row of the table.
        options: words for `vidsparse generate`. python: the call of `sparsify`.
        split: part -> seconds, see `time_split`; empty where nothing was timed.
        attention: what ran, as `Report.to_dict` returns; None: no heat map.
        seconds: of denoising a video: median, least and greatest. psnr: to the dense videos: mean, and half of its
            interval or None. A setting with both is a point in the plot of quality over time.
    """

    name: str
    kind: str
    figures: Mapping[str, str]
    options: str
    python: str
    split: Mapping[str, float] = field(default_factory=dict)
    attention: Mapping[str, Any] | None = None
    seconds: tuple[float, float, float] | None = None
    psnr: tuple[float, float | None] | None = None


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        title: of the page. headlines: what a figure is -> the figure, in large letters.
        scenes: the first is shown. scenes_note: which of all videos these are; "" for all.
        split_note: what the split of time is of.
        facts: heading -> text, on how all was made. command: the line that made it.
        report: what `--json` or `summary.json` has; it is in the page, too.
        another_seed: PSNR in dB between dense videos of two seeds; None: not known.
    """

    title: str
    headlines: Mapping[str, str]
    scenes: tuple[Scene, ...]
    settings: tuple[Setting, ...]
    facts: Mapping[str, str]
    command: str
    report: Mapping[str, Any]
    scenes_note: str = ""
    split_note: str = ""
    another_seed: float | None = None

    @property
    def colours(self) -> dict[str, str]:
        """The colour of each setting, for CSS."""
        found: dict[str, str] = {}
        for kind, palette in (("dense", ("var(--ink)",)), ("sparse", COLOURS), ("fewer steps", GREYS)):
            names = [one.name for one in self.settings if one.kind == kind]
            found |= {name: palette[number % len(palette)] for number, name in enumerate(names)}
        return {one.name: found[one.name] for one in self.settings}

    @property
    def headings(self) -> list[str]:
        """The columns of the table of settings, in the order of the setting that has most of them."""
        fullest = sorted(self.settings, key=lambda one: -len(one.figures))
        return list(dict.fromkeys(heading for one in fullest for heading in one.figures))

    def data(self) -> dict[str, Any]:
        """What the scripts of the page read."""
        colours = self.colours
        return {
            "another_seed": self.another_seed,
            "scenes": [
                {"fps": scene.fps, "clips": [_clip(clip, colours[clip.setting]) for clip in scene.clips]}
                for scene in self.scenes
            ],
            "settings": [
                {
                    "name": one.name,
                    "kind": one.kind,
                    "colour": colours[one.name],
                    "split": dict(one.split),
                    "heat": None if one.attention is None else heat_map(one.attention),
                    "seconds": one.seconds,
                    "psnr": one.psnr,
                }
                for one in self.settings
            ],
        }


def _clip(clip: Clip, colour: str) -> dict[str, Any]:
    curves = {"PSNR, dB": clip.psnr, "SSIM": clip.ssim}
    return {
        "setting": clip.setting,
        "colour": colour,
        "frames": clip.frames,
        "curves": curves,
        "worst": clip.worst,
    }


def time_split(total: float, denoising: float | None, attention: float, choosing: float) -> dict[str, float]:
    """The seconds of each part; without a clock for denoising, "rest" holds all that is not attention.

    Args:
        total, denoising, attention: seconds; each is inside the one before. choosing: inside `attention`.
    """
    parts = {"choosing tiles": choosing, "attention layers": attention - choosing}
    if denoising is None:
        return parts | {"rest": total - attention}
    # Clocks of a GPU and of the program may disagree by microseconds.
    return parts | {
        "rest of denoising": max(0.0, denoising - attention),
        "text and decoding": max(0.0, total - denoising),
    }


def memory_text(peak: int | None) -> str:
    """A peak of memory, such as "1.25 GB"; "" where it is unknown."""
    return "" if peak is None else f"{peak / 1e9:.2f} GB"
