"""`vidsparse generate --ulysses`: several processes write the video that one writes, and what is refused."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import PROMPT, vidsparse_in_a_folder
from gloo import free_port, on_ranks
from needs import needs_weights
from torch import distributed

from vidsparse.cli import main
from vidsparse.generation.processes import joined

vidsparse = pytest.fixture(vidsparse_in_a_folder)
SMALL = ("--steps", "2", "--frames", "9", "--height", "32", "--width", "32", "--set", "tile=1,4,4", "--scale", "1")


def generate(folder: str, port: int, *arguments: str) -> tuple[str, str]:
    """Runs as torchrun starts a process; returns what it printed on stdout and on stderr."""
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    distributed.destroy_process_group()
    os.chdir(folder)
    numbers = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1"} | {name: str(number) for name, number in numbers.items()}
    sys.argv = ["vidsparse", "generate", *arguments, *SMALL, "--ulysses", str(ranks)]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
        main()
    return out.getvalue(), err.getvalue()


@needs_weights
def test_three_processes_write_the_video_that_one_writes(vidsparse: Any, tmp_path: Path) -> None:
    assert vidsparse("generate", PROMPT, *SMALL, "-o", "alone.mp4", "--report", "alone.json").code == 0
    asked = (PROMPT, "-o", "shared.mp4", "--report", "shared.json")
    (printed, errors), *others = on_ranks(3, generate, str(tmp_path), free_port(), *asked)
    assert "wrote shared.mp4 and shared.json" in printed, errors
    for printed, errors in others:
        assert not printed
        assert "note:" not in errors
    assert sorted(os.listdir()) == ["alone.json", "alone.mp4", "shared.json", "shared.mp4"]
    assert Path("shared.mp4").read_bytes() == Path("alone.mp4").read_bytes()
    alone, shared = (json.loads(Path(f"{name}.json").read_text())["attention"] for name in ("alone", "shared"))
    for name in ("sparse_calls", "dense_calls", "dense_reasons"):
        assert alone[name] == shared[name]
    assert shared["flops_saved"] == pytest.approx(alone["flops_saved"], rel=1e-12)


@needs_weights
def test_three_processes_make_many_videos_together(vidsparse: Any, tmp_path: Path) -> None:
    Path("p.txt").write_text("\n".join([PROMPT, "a green square bouncing on a white background", PROMPT]))
    many, out = ("--prompts", "p.txt", "--out", "out"), tmp_path / "out"
    assert vidsparse("generate", *many, *SMALL).code == 0
    videos = {path: path.read_bytes() for path in out.glob("*.mp4")}
    first, second, third = sorted(videos)
    first.unlink()
    third.unlink()
    kept = second.stat().st_ino
    (printed, errors), *others = on_ranks(3, generate, str(tmp_path), free_port(), *many)
    assert [line.split()[1] for line in printed.splitlines()[:2]] == [f"out/{first.name}", f"out/{third.name}"], errors
    assert "made     2, in" in printed and "skipped  1 that" in printed
    assert not any(printed or "note:" in errors for printed, errors in others)
    assert {path: path.read_bytes() for path in out.glob("*.mp4")} == videos and second.stat().st_ino == kept
    assert len(os.listdir(out)) == 6


def test_one_process_alone_is_told_how_to_start(vidsparse: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    done = vidsparse("generate", PROMPT, "--ulysses", 3)
    assert done.code == 1
    assert done.err == (
        "error: --ulysses 3 needs 3 processes: torchrun --nproc-per-node 3 -m vidsparse generate ... --ulysses 3\n"
    )


@pytest.mark.parametrize(
    ("started", "options", "error"),
    [
        (2, ["--ulysses", 3], "--ulysses 3, but torchrun started 2 processes"),
        (2, ["--ulysses", 2], "--ulysses 2 does not divide the 3 heads of shapes; these do: 3"),
        (3, ["--ulysses", 3, "--device", "cuda:1"], "--device cuda:1 is one GPU, and each process takes its own"),
    ],
)
def test_what_processes_cannot_share_is_refused_in_one_line_of_the_first(
    vidsparse: Any, monkeypatch: pytest.MonkeyPatch, started: int, options: list[Any], error: str
) -> None:
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(started))
        done = vidsparse("generate", PROMPT, *options)
        assert done.code == 1
        assert done.err.count("\n") == (rank == 0)
        assert (f"error: {error}" in done.err) == (rank == 0)


def test_a_port_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(OSError, match=f"cannot meet at port {port}: .*; set another MASTER_PORT"), joined("cpu"):
            pass
