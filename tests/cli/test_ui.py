"""The command `ui`: what it refuses before it serves anything, and how it ends."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import refused, vidsparse_in_a_folder
from needs import free_port, needs_gradio
from served import served

from vidsparse.cli.messages import note, notes
from vidsparse.cli.ui import read

vidsparse = pytest.fixture(vidsparse_in_a_folder)


def test_without_gradio_it_says_what_to_install(vidsparse: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "vidsparse.ui.page", raising=False)
    refused(vidsparse("ui", "--port", free_port()), 'pip install "vidsparse[ui]"')


def test_a_taken_port_is_refused(vidsparse: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        refused(vidsparse("ui", "--port", port), f"cannot listen at 127.0.0.1:{port}")


def test_an_address_of_another_machine_is_refused(vidsparse: Any) -> None:
    refused(vidsparse("ui", "--host", "203.0.113.1", "--port", free_port()), "cannot listen at 203.0.113.1")


@needs_gradio
@pytest.mark.parametrize(
    "words, says",
    [
        (["--model", "no such model"], "is unknown"),
        (["--device", "nothing"], "not available"),
        (["--dtype", "int3"], "dtype"),
    ],
)
def test_what_no_video_could_have_is_refused(vidsparse: Any, words: list[str], says: str) -> None:
    refused(vidsparse("ui", "--no-browser", "--port", free_port(), *words), says)


def test_words_are_read_as_the_command_line_reads_them() -> None:
    assert read(["a fox", "--num-frames", "9", "--set", "sink=false"]).frames == 9
    with pytest.raises(ValueError, match="No such option"):
        read(["a fox", "--nothing"])
    with pytest.raises(ValueError, match="dtype 'int3'"):
        read(["a fox", "--dtype", "int3"])


def test_notes_are_collected(capsys: pytest.CaptureFixture[str]) -> None:
    with notes() as heard:
        note("one")
    note("two")
    assert heard == ["one"] and capsys.readouterr().err == "note: two\n"


@needs_gradio
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_it_serves_until_ctrl_c(host: str, tmp_path: Path) -> None:
    with served(tmp_path, "--host", host) as (address, said):
        socket.create_connection(("127.0.0.1", int(address.rstrip("/").rpartition(":")[2]))).close()
    assert ("can use this machine" in said.read_text()) == (host == "0.0.0.0")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("vidsparse-ui")] == []
