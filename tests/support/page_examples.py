"""Small pages with videos that really play, and what reads a page back."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from vidsparse.generation.metrics import difference
from vidsparse.generation.video import to_pixels, write_video
from vidsparse.webpage.page import Clip, Page, Scene, Setting

HOSTILE = "a \"red\" 'circle' </script><script>window.hurt=1</script> & <!-- moving"
FRAMES, FPS, WORST = 24, 12, 15
VOID = {"meta", "link", "input", "img", "br"}


def frames_of(shift: float, worst: int | None = None) -> Any:
    """float32 [frames, 48, 64, 3]: a square that moves right; `shift` off, and far off in one frame."""
    made = np.full((FRAMES, 48, 64, 3), 0.2, np.float32)
    for number in range(FRAMES):
        off = shift + (12 if number == worst else 0)
        left = round(2 * number % 50 + off) % 54
        made[number, 18:30, left : left + 10] = (0.9, 0.3, 0.1)
    return made


def attention(layers: int = 3, steps: int = 4) -> dict[str, Any]:
    """What `Report.to_dict` returns: step 0 dense, the last one skipped, the others sparse."""
    call = {"transformer": "transformer", "reason": None, "density": 0.25, "calls": 2}
    calls = [
        call
        | {"layer": layer, "step": step}
        | ({"reason": "the pattern </b> asks", "density": 1.0} if step == 0 else {})
        for step in range(steps - 1)
        for layer in range(layers)
    ]
    skipped = [{"transformer": "transformer", "step": steps - 1, "calls": 6, "by": "the schedule"}]
    return {"calls": calls, "dense_reasons": {"the pattern </b> asks": 2 * layers}, "skipped": skipped}


def example_page(folder: Path, prompt: str = HOSTILE) -> Page:
    """A page with two scenes of three videos, and a plot."""
    dense, scenes = frames_of(0), []
    for number, title in enumerate(("worst: first", "best: second")):
        clips = []
        for name, made in (("dense", dense), ("few", frames_of(3, WORST)), ("many", frames_of(1))):
            file = folder / f"{number}-{name}.mp4"
            write_video(file, to_pixels(made, 2), FPS)
            apart = difference(dense, made)
            measured = () if name == "dense" else (apart.frame_psnr, apart.frame_ssim, apart.worst_frame)
            clips.append(Clip(name, file, FRAMES, *measured))
        scenes.append(Scene(title, f"{prompt} ({number})", FPS, tuple(clips)))
    split = {"choosing tiles": 0.1, "attention layers": 1.0, "rest of denoising": 0.5, "text and decoding": 0.4}
    few = Setting(
        *(
            "few",
            "sparse",
            {"seconds": "1.00", "PSNR": "20.0"},
            "vidsparse generate 'a <fox>' --density 0.1",
            "run = 1",
        ),
        split=split,
        attention=attention(),
        seconds=(1.0, 0.9, 1.2),
        psnr=(20.0, 1.5),
    )
    many = Setting(
        *("many", "sparse", {"seconds": "1.50"}, "vidsparse generate b", "run = 2"),
        seconds=(1.5, 1.5, 1.5),
        psnr=(28.0, None),
    )
    quick = [
        Setting(name, "fewer steps", {}, "c", "d", seconds=(s, s, s), psnr=(p, None))
        for name, s, p in (("dense-3-steps", 1.4, 24.0), ("dense-2-steps", 0.9, 18.0))
    ]
    plain = Setting("dense", "dense", {"seconds": "2.00"}, "e", "f", split=split, seconds=(2.0, 2.0, 2.0))
    return Page(
        title=prompt,
        headlines={"speed-up": "2.00x"},
        scenes=tuple(scenes),
        settings=(plain, few, many, *quick),
        facts={"prompt & more": prompt},
        command=f"vidsparse compare {prompt!r}",
        report={"prompt": prompt, "psnr": None, "rows": [1.5, "</script>"]},
        scenes_note="6 of 8 videos",
        split_note="Means.",
        another_seed=15.0,
    )


class Read(HTMLParser):
    """A page, read back: elements that are balanced, their attributes, and the text of scripts."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.text = ""
        self._open: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in VOID:
            self._open.append((tag, found.get("id") or ""))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1][0] == tag, f"</{tag}> after {self._open[-3:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        tag, name = self._open[-1] if self._open else ("", "")
        if tag == "script" and name:
            self.scripts[name] = self.scripts.get(name, "") + data
        elif tag not in ("script", "style"):
            self.text += data

    def island(self, name: str) -> Any:
        """The JSON of a script."""
        return json.loads(self.scripts[name])

    @property
    def videos(self) -> list[bytes]:
        """The bytes of each video, in order."""
        sources = [str(attributes["src"]) for tag, attributes in self.tags if tag == "video"]
        start = "data:video/mp4;base64,"
        assert all(source.startswith(start) for source in sources)
        return [base64.b64decode(source.removeprefix(start), validate=True) for source in sources]


def read(html: str) -> Read:
    """A page that asks for nothing from elsewhere."""
    found = Read(html)
    for tag, attributes in found.tags:
        for name in ("src", "href", "action", "poster", "srcset"):
            assert (attributes.get(name) or "data:").startswith("data:"), f"{tag} has {name}={attributes[name]!r}"
    own = re.sub(r"data:video/mp4;base64,[A-Za-z0-9+/=]+", "", html)
    asked = {url for url in re.findall(r"https?://[^\s\"'<)]+", own) if url != "http://www.w3.org/2000/svg"}
    assert not asked and not re.search(r"@import|url\((?!#|`)", own), asked
    return found
