"""Files of prompts: what is read, how videos are named, and one line for each fault."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vidsparse.generation.prompts import Allowed, Line, read_prompts

OPTIONS = {"seed": Allowed(int, 0, 9), "guidance": Allowed(float), "frames": Allowed(int, 1)}


def read(folder: Path, name: str, text: str) -> list[Line]:
    (folder / name).write_bytes(text.encode())
    return read_prompts(folder / name, OPTIONS)


def test_a_text_has_a_prompt_on_each_line(tmp_path: Path) -> None:
    text = "\ufeff# foxes\r\nA fox,  in the snow!\r\n\r\n   a dog \n  # no dog\nA fox,  in the snow!"
    lines = read(tmp_path, "p.txt", text)
    assert [line.prompt for line in lines] == ["A fox,  in the snow!", "a dog", "A fox,  in the snow!"]
    assert [line.name for line in lines] == ["0001-a-fox-in-the-snow", "0002-a-dog", "0003-a-fox-in-the-snow"]
    assert [line.where for line in lines] == [f"{tmp_path / 'p.txt'}:{number}" for number in (2, 4, 6)]
    assert not any(line.options for line in lines)


def test_json_lines_have_names_and_options(tmp_path: Path) -> None:
    text = (
        '{"prompt": "a fox\u2028in two lines", "seed": 3, "guidance": 5}\n\n'
        '{"name": "My fox, 0", "prompt": "# a fox", "seed": null, "frames": 81}\n'
    )
    first, second = read(tmp_path, "p.jsonl", text)
    assert (first.name, first.prompt) == ("0001-a-fox-in-two-lines", "a fox\u2028in two lines")
    assert first.options == {"seed": 3, "guidance": 5}
    assert (second.name, second.prompt, second.options) == ("My fox, 0", "# a fox", {"frames": 81})
    assert second.where.endswith("p.jsonl:3")


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("word " * 40, "0001-" + "word-" * 8 + "word"),
        ("x" * 300, "0001-" + "x" * 48),
        ("一只狐狸在雪地里" * 9, "0001-" + "一只狐狸在雪地里" * 2),
        ("🦊", "0001"),
        ("../../etc/passwd", "0001-etc-passwd"),
    ],
    ids=["words", "one word", "in Chinese", "no word", "a path"],
)
def test_names_are_short_and_readable(tmp_path: Path, prompt: str, name: str) -> None:
    [line] = read(tmp_path, "p.txt", prompt)
    assert line.name == name and len(os.fsencode(name)) <= 53


def test_a_thousand_prompts_keep_their_order(tmp_path: Path) -> None:
    names = [line.name for line in read(tmp_path, "p.txt", "a fox\na dog\n" * 500)]
    assert len(set(names)) == 1000 and names == sorted(names)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.csv", "a fox", "the name must end in .txt (a prompt a line) or .jsonl (an object a line)"),
        ("p.txt", "\n# only this\n", "the file holds no prompt"),
        ("p.jsonl", "\n", "the file holds no prompt"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": }', "p.jsonl:2: not JSON: Expecting value at column 12"),
        ("p.jsonl", '["a fox"]', 'p.jsonl:1: got ["a fox"], expected an object such as {"prompt": "a fox", "seed": 1}'),
        ("p.jsonl", '{"prompt": "a", "sed": 1}', "p.jsonl:1: unknown sed; known are prompt, name, seed, guidance"),
        ("p.jsonl", '{"seed": 1}', 'p.jsonl:1: no "prompt"; say what the video shows'),
        ("p.jsonl", '{"prompt": 7}', "prompt=7 must be text in quotes"),
        ("p.jsonl", '{"prompt": "a", "seed": "1"}', 'seed="1" must be a whole number'),
        ("p.jsonl", '{"prompt": "a", "seed": true}', "seed=true must be a whole number"),
        ("p.jsonl", '{"prompt": "a", "seed": 1.5}', "seed=1.5 must be a whole number"),
        ("p.jsonl", '{"prompt": "a", "seed": -1}', "seed=-1 must be at least 0"),
        ("p.jsonl", '{"prompt": "a", "seed": 10}', "seed=10 must be at most 9"),
        ("p.jsonl", '{"prompt": "a", "guidance": NaN}', "guidance=NaN must be a number"),
        ("p.jsonl", '{"prompt": "a", "name": "../a"}', 'name="../a" must be the name of a file: no folder'),
        ("p.jsonl", '{"prompt": "a", "name": ".a"}', "no leading dot"),
        ("p.jsonl", '{"prompt": "a", "name": ""}', 'name="" must be the name of a file'),
        ("p.jsonl", '{"prompt": "a", "name": "a\\nb"}', r'name="a\nb" must be the name of a file'),
        ("p.jsonl", '{"prompt": "a", "name": "\\ud800"}', r'name="\ud800" must be the name of a file'),
        ("p.jsonl", '{"prompt": "a", "name": "' + "x" * 201 + '"}', "has 201 bytes; at most 200 are possible"),
        ("p.jsonl", '{"prompt": "a", "name": "a.error"}', "must not end in .error"),
        (
            "p.jsonl",
            '{"prompt": "a", "name": "Fox"}\n{"prompt": "b"}\n{"prompt": "c", "name": "fox"}',
            "p.jsonl:3: the name 'fox' is that of",
        ),
        ("p.jsonl", '{"prompt": "a", "name": "0002-b"}\n{"prompt": "b"}', "p.jsonl:2: the name '0002-b' is that of"),
    ],
)
def test_faults_are_named_with_their_line(tmp_path: Path, name: str, text: str, says: str) -> None:
    with pytest.raises(ValueError) as error:
        read(tmp_path, name, text)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"p\.txt: the file is not UTF-8 text"):
        read_prompts(tmp_path / "p.txt", OPTIONS)
    with pytest.raises(OSError, match=r"missing\.txt cannot be read: No such file"):
        read_prompts(tmp_path / "missing.txt", OPTIONS)
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(OSError, match=r"folder\.txt cannot be read: Is a directory"):
        read_prompts(tmp_path / "folder.txt", OPTIONS)


def test_an_option_has_another_name(tmp_path: Path) -> None:
    options = {"frames": Allowed(int, 1, alias="num_frames")}
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a fox", "num_frames": 9}\n{"prompt": "a dog", "num_frames": null, "frames": 5}')
    assert [line.options for line in read_prompts(file, options)] == [{"frames": 9}, {"frames": 5}]
    for line, says in (
        ('{"prompt": "a fox", "num_frames": 9, "frames": 9}', "frames and num_frames are one option; give it once"),
        ('{"prompt": "a fox", "num_frames": 0}', "frames=0 must be at least 1"),
    ):
        file.write_text(line)
        with pytest.raises(ValueError, match=says):
            read_prompts(file, options)
