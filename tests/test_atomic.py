"""Files that appear whole or not at all, under every name that the file system takes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vidsparse.atomic import replacing


def test_an_output_that_is_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.json").symlink_to("folder/report.json")
    with replacing(tmp_path / "link.json") as temporary:
        temporary.write_text("{}")
    assert (tmp_path / "link.json").is_symlink() and (tmp_path / "folder/report.json").read_text() == "{}"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize(
    "name",
    ["x" * 251 + ".mp4", "x" * 255, "x." + "y" * 253, "猫" * 83 + ".mp4", "a", ".hidden", "name.with.dots.json"],
    ids=["longest", "without-suffix", "long-suffix", "long-in-bytes", "short", "hidden", "dots"],
)
@pytest.mark.parametrize("suffix", [None, ".tmp"])
def test_every_name_that_the_file_system_takes_can_be_replaced(tmp_path: Path, name: str, suffix: str | None) -> None:
    path = tmp_path / name
    path.write_text("old")
    with replacing(path, suffix) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent and temporary.name.startswith(".") and temporary != path
        assert len(os.fsencode(temporary.name)) <= max(len(os.fsencode(name)), 100)
        if len(path.suffix) < 10:
            assert temporary.name.endswith(path.suffix if suffix is None else suffix)
    assert path.read_text() == "new" and os.listdir(tmp_path) == [name]
