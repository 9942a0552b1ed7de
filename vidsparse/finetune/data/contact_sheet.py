"""A preview as one picture: a card for each clip, in two columns, and what is left out below them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from vidsparse.finetune.data.preview import Card, Preview

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

WIDTH, MARGIN, GAP, PADDING = 1600, 48, 24, 20
COLUMNS, TALLEST = 2, 260
PLAIN, BOLD = "DejaVuSans", "DejaVuSans-Bold"
LINES = 4  # of the captions of a card
PAPER, CARD, INK, FAINT, EDGE, ALERT = "#f4f5f7", "#ffffff", "#1b1f24", "#68707c", "#dfe3e8", "#a3422d"


@dataclass(frozen=True)
class _Text:
    """Lines of one size and colour.

    Attributes:
        size: of the letters, in pixels.
        colour: of them.
        lines: already broken.
        font: its file.
    """

    size: int
    colour: str
    lines: tuple[str, ...]
    font: str

    @property
    def height(self) -> int:
        return round(len(self.lines) * self.size * 1.4)

    def draw(self, canvas: ImageDraw, left: int, top: int) -> int:
        """Draw the lines. Returns where the next text begins."""
        for index, line in enumerate(self.lines):
            canvas.text(
                (left, top + round(index * self.size * 1.4)), line, fill=self.colour, font=_font(self.size, self.font)
            )
        return top + self.height


def contact_sheet(preview: Preview) -> Image:
    """Draw a preview, RGB. Its font, DejaVu Sans, has no Chinese, Japanese or Korean; `contact_page` has all."""
    import PIL.Image
    import PIL.ImageDraw

    inner = WIDTH - 2 * MARGIN
    column = (inner - GAP * (COLUMNS - 1)) // COLUMNS
    head = [_broken(preview.title, 28, INK, inner, 2, BOLD), _broken(preview.summary, 17, FAINT, inner, 2)]
    cards = [(card, *_layout(card, column)) for card in preview.cards]
    rows = [cards[i : i + COLUMNS] for i in range(0, len(cards), COLUMNS)]
    tail = _tail(preview, inner - 2 * PADDING)
    top = MARGIN + sum(text.height for text in head) + GAP
    height = top + sum(max(tall for *_, tall in row) + GAP for row in rows) + MARGIN - GAP
    height += sum(text.height for text in tail) + GAP + 2 * PADDING if tail else 0
    sheet = PIL.Image.new("RGB", (WIDTH, height), PAPER)
    canvas, y = PIL.ImageDraw.Draw(sheet), MARGIN
    for text in head:
        y = text.draw(canvas, MARGIN, y)
    for row in rows:
        tall = max(tall for *_, tall in row)
        for index, (card, texts, _) in enumerate(row):
            _draw(sheet, canvas, card, texts, (MARGIN + index * (column + GAP), top, column, tall))
        top += tall + GAP
    if tail:
        box = (MARGIN, top, WIDTH - MARGIN, top + sum(text.height for text in tail) + 2 * PADDING)
        canvas.rounded_rectangle(box, 10, fill=CARD, outline=EDGE)
        y = top + PADDING
        for text in tail:
            y = text.draw(canvas, MARGIN + PADDING, y)
    return sheet


def _layout(card: Card, width: int) -> tuple[list[_Text], int]:
    """The texts of a card and its height."""
    inner = width - 2 * PADDING
    texts = [_broken(card.name, 16, INK, inner, 2, BOLD), _broken("  ·  ".join(card.facts), 14, FAINT, inner, 2)]
    texts.append(_broken("\n".join(card.captions), 15, INK, inner, LINES))
    return texts, 3 * PADDING + _size(card, inner)[1] + sum(text.height for text in texts) + 12


def _size(card: Card, inner: int) -> tuple[int, int]:
    """Width and height that each of the frames of a card is drawn at."""
    tall, wide = card.frames[0].shape[:2]
    scale = min((inner - 2 * 8) / 3 / wide, TALLEST / tall)
    return max(1, round(wide * scale)), max(1, round(tall * scale))


def _draw(sheet: Image, canvas: ImageDraw, card: Card, texts: list[_Text], box: tuple[int, int, int, int]) -> None:
    import PIL.Image

    left, top, width, height = box
    canvas.rounded_rectangle((left, top, left + width, top + height), 10, fill=CARD, outline=EDGE)
    size = _size(card, width - 2 * PADDING)
    for index, frame in enumerate(card.frames):
        small = PIL.Image.fromarray(frame).resize(size, PIL.Image.Resampling.LANCZOS)
        sheet.paste(small, (left + PADDING + index * (size[0] + 8), top + PADDING))
    y = top + PADDING + size[1] + PADDING
    for text, after in zip(texts, (2, 10, 0), strict=True):
        y = text.draw(canvas, left + PADDING, y) + after


def _tail(preview: Preview, width: int) -> list[_Text]:
    """What is left out, and how many clips are not drawn."""
    texts = []
    if preview.more:
        texts.append(_broken(f"{preview.more:,} more clips are learnt and not drawn", 15, FAINT, width, 1))
    if preview.left_out:
        texts.append(_broken(f"Left out: {len(preview.left_out):,}", 18, ALERT, width, 1, BOLD))
        texts += [_broken(f"{name}: {reason}", 14, INK, width, 3) for name, reason in preview.left_out]
    return texts


def _broken(text: str, size: int, colour: str, width: int, most: int, font: str = PLAIN) -> _Text:
    """A text broken into lines of a width, at most so many."""
    lines = list[str]()
    for part in text.split("\n"):
        line = ""
        for word in part.split(" "):
            longer = f"{line} {word}" if line else word
            while _length(longer, size, font) > width:
                if line:
                    lines.append(line)
                    line, longer = "", word
                    continue
                fits = next(n for n in range(len(longer), 0, -1) if n == 1 or _length(longer[:n], size, font) <= width)
                lines.append(longer[:fits])
                longer = longer[fits:]
            line = longer
        lines.append(line)
    if len(lines) > most:
        last = lines[most - 1]
        while last and _length(f"{last} …", size, font) > width:
            last = last[:-1]
        lines = [*lines[: most - 1], f"{last.rstrip()} …"]
    return _Text(size, colour, tuple(lines), font)


def _length(text: str, size: int, font: str) -> float:
    return float(_font(size, font).getlength(text))


@lru_cache
def _font(size: int, name: str) -> FreeTypeFont:
    import matplotlib
    import PIL.ImageFont

    return PIL.ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf" / f"{name}.ttf", size)
