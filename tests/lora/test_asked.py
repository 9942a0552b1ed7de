"""LoRAs in a word: source, strength, transformer."""

from __future__ import annotations

from pathlib import Path

import pytest

from vidsparse.lora.asked import AskedLora


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("style", AskedLora("style")),
        ("style:0.8", AskedLora("style", 0.8)),
        ("style:-1", AskedLora("style", -1.0)),
        ("style:.5@transformer_2", AskedLora("style", 0.5, "transformer_2")),
        ("owner/name/file.safetensors@transformer", AskedLora("owner/name/file.safetensors", 1.0, "transformer")),
        (r"C:\loras\a.safetensors", AskedLora(r"C:\loras\a.safetensors")),
        (r"C:\loras\a.safetensors:0.8@transformer_2", AskedLora(r"C:\loras\a.safetensors", 0.8, "transformer_2")),
        ("a:b", AskedLora("a:b")),
        ("a:b:2", AskedLora("a:b", 2.0)),
        ("style:nan", AskedLora("style:nan")),
        ("me@home", AskedLora("me@home")),
    ],
    ids=str,
)
def test_a_word(text: str, expected: AskedLora) -> None:
    assert AskedLora.parse(text) == expected


def test_a_name_that_exists_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "run:2").mkdir()
    assert AskedLora.parse(str(tmp_path / "run:2")) == AskedLora(str(tmp_path / "run:2"))
    assert AskedLora.parse(f"{tmp_path}/run:2:0.5@transformer_2").strength == 0.5
    assert AskedLora.parse(f"{tmp_path}/run:2@transformer_2") == AskedLora(f"{tmp_path}/run:2", 1.0, "transformer_2")
