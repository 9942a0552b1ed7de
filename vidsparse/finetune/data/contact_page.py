"""A preview as one HTML page with its pictures inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from html import escape

import numpy as np
from numpy.typing import NDArray

from vidsparse.finetune.data.preview import Card, Preview

SIDE = 480  # pixels, of the longer side of a picture
STYLE = """
:root { color-scheme: light dark; --paper: #f4f5f7; --card: #fff; --ink: #1b1f24; --faint: #5d6673; --edge: #dfe3e8; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15181c; --card: #1e2227; --ink: #e8eaed; --faint: #9aa3af; --edge: #333941; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem; max-width: 100rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.8rem; overflow-wrap: anywhere; }
.faint { margin: 0; color: var(--faint); font-size: 0.9rem; }
main { display: grid; gap: 1.25rem; margin: 1.5rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 28rem), 1fr)); }
article, section { padding: 1rem; border: 1px solid var(--edge); border-radius: 0.6rem; background: var(--card); }
h2 { margin: 0.75rem 0 0; font-size: 1.05rem; overflow-wrap: anywhere; }
section h2 { margin: 0 0 0.5rem; }
.frames { display: grid; grid-template-columns: repeat(3, 1fr); gap: 0.4rem; }
.frames img { width: 100%; max-height: 20rem; object-fit: contain; object-position: left; border-radius: 0.2rem; }
.caption { margin: 0.5rem 0 0; white-space: pre-line; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: 0.2rem 1rem; margin: 0; }
dt { font-weight: 600; overflow-wrap: anywhere; }
dd { margin: 0; color: var(--faint); }
@media (max-width: 40rem) { body { padding: 1rem; } dl { grid-template-columns: 1fr; } }
"""


def contact_page(preview: Preview) -> str:
    """Write a preview as HTML, which needs nothing but itself."""
    return "\n".join(_lines(preview)) + "\n"


def _lines(preview: Preview) -> Iterator[str]:
    yield '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{escape(preview.title)}</title>\n<style>{STYLE}</style>"
    yield f'<h1>{escape(preview.title)}</h1>\n<p class="faint">{escape(preview.summary)}</p>\n<main>'
    for card in preview.cards:
        yield from _card(card)
    yield "</main>"
    if preview.more:
        yield f'<p class="faint">{preview.more:,} more clips are learnt and not drawn.</p>'
    if preview.left_out:
        yield f"<section><h2>Left out: {len(preview.left_out):,}</h2><dl>"
        for name, reason in preview.left_out:
            yield f"<dt>{escape(name)}</dt><dd>{escape(reason)}</dd>"
        yield "</dl></section>"


def _card(card: Card) -> Iterator[str]:
    places = ("first", "middle", "last")
    yield '<article><div class="frames">'
    for frame, place in zip(card.frames, places, strict=False):
        yield f'<img alt="{place} frame" src="data:image/jpeg;base64,{_jpeg(frame)}">'
    yield f'</div><h2>{escape(card.name)}</h2><p class="faint">{escape(" · ".join(card.facts))}</p>'
    for caption in card.captions:
        yield f'<p class="caption" dir="auto">{escape(caption)}</p>'
    yield "</article>"


def _jpeg(frame: NDArray[np.uint8]) -> str:
    from PIL import Image

    image, written = Image.fromarray(frame), io.BytesIO()
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    image.save(written, "JPEG", quality=85)
    return base64.b64encode(written.getvalue()).decode()
