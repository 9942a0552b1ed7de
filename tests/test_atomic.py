"""Files that appear whole or not at all, under every name that the file system takes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vidsparse.atomic import leftovers, replacing


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


def test_leftovers_are_those_of_one_file(tmp_path: Path) -> None:
    """Also where names begin alike and temporary names, which are shorter, could be the same."""
    paths = [tmp_path / f"{'x' * 60}-{number}{suffix}" for number in range(3) for suffix in (".mp4", ".json", "")]
    writers = [replacing(path, suffix) for path in paths for suffix in (None, ".tmp")]
    begun = [writer.__enter__() for writer in writers]
    for temporary in begun:
        temporary.touch()
    for path, *own in zip(paths, begun[::2], begun[1::2], strict=True):
        assert sorted(leftovers(path)) == sorted(own)
    for writer in writers:
        writer.__exit__(None, None, None)
    assert sorted(tmp_path.iterdir()) == sorted(paths) and not any(map(leftovers, paths))


def test_bytes_are_on_the_disk_before_the_file_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, sync = [], os.fsync

    def fsync(file: int) -> None:
        synced.append((os.fstat(file).st_ino, os.fstat(file).st_size, os.listdir(tmp_path)[0].startswith(".")))
        sync(file)

    monkeypatch.setattr(os, "fsync", fsync)
    with replacing(tmp_path / "a.json") as temporary:
        temporary.write_text("whole")
    assert synced == [((tmp_path / "a.json").stat().st_ino, 5, True)]
