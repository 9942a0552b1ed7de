"""Numbers of a command as people read them, and as they type them."""

from __future__ import annotations

import re


def bytes_text(number: float) -> str:
    """Bytes with a unit, such as "3.1 GB"."""
    for unit in ("bytes", "kB", "MB"):
        if number < 999.5:  # which three digits would round to 1000
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"


def flops_text(number: float) -> str:
    """Floating-point operations with a unit, such as "1.5 TFLOP"."""
    for unit in ("", "k", "M", "G", "T"):
        if number < 999.5:
            return f"{number:.3g} {unit}FLOP"
        number /= 1000
    return f"{number:.3g} PFLOP"


def sides_text(sides: tuple[int, int, int]) -> str:
    """The sides of a box, such as "4x8x8"."""
    return "x".join(map(str, sides))


def duration_text(seconds: float) -> str:
    """A time in its two largest units, such as "3 h 20 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"


def height_and_width(text: str) -> tuple[int, int]:
    """The height and the width of an option such as "832x480".

    Raises:
        ValueError: something else.
    """
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None:
        raise ValueError(f"--size {text!r} must be WIDTHxHEIGHT in pixels, such as 832x480")
    return int(found[2]), int(found[1])
