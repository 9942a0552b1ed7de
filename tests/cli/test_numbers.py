"""Numbers as people read them: three digits and a unit that fits."""

from __future__ import annotations

import pytest

from vidsparse.cli.numbers import bytes_text, duration_text, flops_text, height_and_width, sides_text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (999_600, "1 MB"), (3.14e9, "3.14 GB"), (2e11, "200 GB")],
)
def test_bytes(number: float, text: str) -> None:
    assert bytes_text(number) == text


@pytest.mark.parametrize(("number", "text"), [(12, "12 FLOP"), (1.5e12, "1.5 TFLOP"), (4e15, "4 PFLOP")])
def test_operations(number: float, text: str) -> None:
    assert flops_text(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(5.4, "5 s"), (200, "3 min"), (12_000, "3 h 20 min"), (200_000, "2 days 7 h")]
)
def test_times(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_sizes() -> None:
    assert sides_text((4, 8, 8)) == "4x8x8" and height_and_width("832x480") == (480, 832)
    with pytest.raises(ValueError, match="--size '832' must be WIDTHxHEIGHT in pixels"):
        height_and_width("832")
