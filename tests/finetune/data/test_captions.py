"""The captions of a folder, and every file that is used by nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from data_folders import grey, write_metadata

from vidsparse.finetune.data.captions import Entry, read_entries


def captions(folder: Path, **options: Any) -> dict[str, tuple[str, ...]]:
    return {e.path.relative_to(folder).as_posix(): e.captions for e in read_entries(folder, **options)[0]}


def reasons(folder: Path) -> dict[str, str]:
    return {s.path.relative_to(folder).as_posix(): s.reason for s in read_entries(folder)[1]}


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_captions_of_metadata_and_of_text_files(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "train/c.webm", "train/d.mov", "e.M4V")
    write_metadata(tmp_path, {"file_name": "./b.mp4", "caption": "b\u2028é", "fps": 8}, "", {"file_name": "a.mp4"})
    write_metadata(tmp_path / "train", {"file_name": "c.webm", "text": "c"})
    (tmp_path / "a.txt").write_text("\ufeff a\nof two lines \n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("b\u2028é", encoding="utf-8")  # twice the same is no contradiction
    (tmp_path / "e.M4V.txt").write_text("e")
    assert captions(tmp_path) == {
        "a.mp4": ("a\nof two lines",),
        "b.mp4": ("b\u2028é",),
        "e.M4V": ("e",),
        "train/c.webm": ("c",),
    }
    assert reasons(tmp_path) == {
        "train/d.mov": "it has no caption: write one to d.txt beside it, or to a table such as metadata.jsonl"
    }


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", 'file_name,text\na.mp4,"one, two"\n'),
        ("metadata.csv", 'video,prompt\r\na.mp4,"one, two"\r\n'),
        ("captions.csv", '\ufeffcaption,file_name,other\n"one, two",a.mp4,3\n'),
        ("captions.jsonl", '{"video_path": "a.mp4", "caption": "one, two"}'),
        ("metadata.jsonl", '{"video": "a.mp4", "prompt": ["one, two"]}'),
    ],
)
def test_tables_have_the_names_that_people_have(tmp_path: Path, name: str, text: str) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert captions(tmp_path) == {"a.mp4": ("one, two",)} and reasons(tmp_path) == {}


def test_a_clip_may_have_several_captions(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    write_metadata(tmp_path, {"file_name": "a.mp4", "captions": ["one", " two ", "one", ""]})
    (tmp_path / "b.txt").write_text("three\n\n four\n")
    assert captions(tmp_path) == {"a.mp4": ("one", "two"), "b.mp4": ("three\n\n four",)}
    assert captions(tmp_path, lines=True)["b.mp4"] == ("three", "four")


def test_a_video_may_have_several_parts(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / "a.txt").write_text("of the whole")
    parts = {"start": 1, "end": 2.5, "caption": "x"}, {"start": 3}
    write_metadata(tmp_path, *({"file_name": "a.mp4", **part} for part in parts))
    assert read_entries(tmp_path)[0] == [
        Entry(tmp_path / "a.mp4", ("x",), 1.0, 2.5),
        Entry(tmp_path / "a.mp4", ("of the whole",), 3.0),
    ]


def test_repeats_are_in_the_names_of_folders(tmp_path: Path) -> None:
    names = {"a.mp4": 1, "cats@2/b.mp4": 2, "cats@2/black@3/c.mp4": 6, "dogs@x/d.mp4": 1, "e@4.mp4": 1}
    touch(tmp_path, *names)
    for name in names:
        (tmp_path / name).with_suffix(".txt").write_text("x")
    found = {e.path.relative_to(tmp_path).as_posix(): e.repeats for e in read_entries(tmp_path)[0]}
    assert found == names


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        (['{"file_name": "a.mp4", "caption": "a"}', '{"file_name": '], "line 2 of .*metadata.jsonl is not valid JSON"),
        (['["a.mp4", "a"]'], "line 1 of .* has no file_name; write a line such as"),
        (['{"caption": "a"}'], "line 1 of .* has no file_name"),
        (['{"file_name": "a.mp4", "caption": 3}'], "line 1 of .* has the caption 3, which is not text"),
        (['{"file_name": "a.mp4", "caption": ["a", 3]}'], r"line 1 of .* has the caption \['a', 3\]"),
        (['{"file_name": "a.mp4", "start": "soon"}'], "line 1 of .* has the start 'soon'; write seconds"),
        (['{"file_name": "a.mp4", "end": true}'], "line 1 of .* has the end True; write seconds"),
        (['{"file_name": "a.mp4", "start": 3, "end": 3}'], "line 1 of .* ends at 3 seconds, and begins at 3; end"),
        (
            ['{"file_name": "a.mp4", "caption": "a"}', '{"file_name": "./a.mp4", "caption": "b"}'],
            "two captions for .*a.mp4: 'a' in line 1 of .*, 'b' in line 2 of",
        ),
        (['{"file_name": "a.mp4", "caption": "b"}'], "two captions for .*'b' in line 1 of .*, 'from text' in .*a.txt"),
    ],
)
def test_captions_that_cannot_be_meant(tmp_path: Path, lines: list[str], match: str) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / "a.txt").write_text("from text" if "'from text'" in match else "")
    write_metadata(tmp_path, *lines)
    with pytest.raises(ValueError, match=match):
        read_entries(tmp_path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("name,caption\na.mp4,x\n", r"line 1 of .*metadata.csv names the columns name, caption; one must be file_name"),
        ("", "line 1 of .* names the columns none"),
        ("file_name,caption\na.mp4,x\nb.mp4,one, two\n", "line 3 of .* has 3 values for 2 columns; put a caption with"),
        ("file_name,caption\n,x\n", "line 2 of .* has no file_name"),
        ('file_name,caption\na.mp4,"x\n', "line 2 of .* is not valid CSV"),
    ],
)
def test_a_bad_line_of_a_csv_is_named(tmp_path: Path, text: str, match: str) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(ValueError, match=match):
        read_entries(tmp_path)


def test_a_caption_in_another_encoding_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / "a.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 text"):
        read_entries(tmp_path)


def test_every_file_is_used_or_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "a.srt", "a.en.vtt", "lost.srt", "notes.txt", "README.md", "song.mp3", "metadata.parquet")
    touch(tmp_path, "a.info.json", "Makefile", ".DS_Store", "._a.mp4", ".git/x.mp4", "cache/b.mp4")
    (tmp_path / "a.txt").write_text("x")
    entries, skipped = read_entries(tmp_path, without=tmp_path / "cache")
    assert [e.path.name for e in entries] == ["a.mp4"]
    assert {s.path.name: s.reason.split(",")[0] for s in skipped} == {
        "lost.srt": "it has subtitles of no video that is used",
        "notes.txt": "it is text",
        "README.md": "its ending .md is not that of a video or an image",
        "song.mp3": "its ending .mp3 is not that of a video or an image",
        "metadata.parquet": "captions are read from metadata.jsonl",
        "a.info.json": "captions are read from metadata.jsonl",
        "Makefile": "its name has no ending",
    }


def test_links_are_followed_once(tmp_path: Path) -> None:
    data, other = tmp_path / "data", tmp_path / "other"
    touch(data, "a.mp4")
    touch(other, "c.mp4", "d.mp4")
    for path in (data / "a.txt", other / "c.txt", other / "d.txt"):
        path.write_text("x")
    os.symlink(other, data / "linked")
    os.symlink(data, other / "back")
    os.symlink(other / "d.mp4", data / "e.mp4")
    (data / "e.txt").write_text("x")
    assert sorted(captions(data)) == ["a.mp4", "e.mp4", "linked/c.mp4", "linked/d.mp4"]


def test_a_folder_of_frames_is_one_entry_where_it_has_a_caption(tmp_path: Path) -> None:
    for name in ("take", "photos", "listed"):
        (tmp_path / name).mkdir()
        for index in range(2):
            grey(index).save(tmp_path / name / f"{index}.png")
    (tmp_path / "take.txt").write_text("a take")
    (tmp_path / "photos/0.txt").write_text("a photo")
    write_metadata(tmp_path, {"file_name": "listed", "text": "listed"}, {"file_name": "gone.mp4", "text": "gone"})
    assert captions(tmp_path) == {"listed": ("listed",), "photos/0.png": ("a photo",), "take": ("a take",)}
    found = reasons(tmp_path)
    assert found.keys() == {"photos/1.png", "gone.mp4"} and "line 2 of" in found["gone.mp4"]
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        read_entries(tmp_path / "nowhere")
