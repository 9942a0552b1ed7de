"""Text from outside stays text, and an error is one line."""

from __future__ import annotations

from vidsparse.ui import render


def test_text_is_escaped() -> None:
    assert render.paragraphs(["<b> & c", "d"]) == "<p>&lt;b&gt; &amp; c</p><p>d</p>"
    assert "<script>" not in render.error(ValueError("<script>"))


def test_an_error_is_one_line() -> None:
    assert render.error(ValueError("a\n  b")) == '<p class="error">error: a b</p>'
    assert "error: KeyError" in render.error(KeyError())


def test_a_table_has_a_header() -> None:
    shown = render.table([("", "sparse"), ("<seconds>", "1.0")])
    assert "<th>sparse</th>" in shown and "<td>&lt;seconds&gt;</td><td>1.0</td>" in shown
