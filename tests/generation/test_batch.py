"""A folder of videos that processes share: who makes what, what is left by those that fail or die."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from slow_videos import TEXT, make_all, write

from vidsparse.atomic import replacing
from vidsparse.generation.batch import Folder

SUPPORT = Path(__file__).parents[1] / "support"
NAMES = [f"{number:04d}-a-fox" for number in range(6)]


def fails(name: str, error: Exception) -> None:
    raise AssertionError(f"{name} failed") from error


def is_whole(folder: Folder, names: list[str] = NAMES) -> bool:
    """Whether there are the files of the videos, complete, and nothing else."""
    files = sorted(path for name in names for path in (folder.video(name), folder.report(name)))
    return sorted(folder.path.iterdir()) == files and all(path.read_text() == TEXT for path in files)


def test_videos_are_made_in_their_order_and_once(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "new/folder")
    assert make_all(folder, NAMES[:2]) == NAMES[:2] and is_whole(folder, NAMES[:2])
    assert make_all(folder, NAMES) == NAMES[2:] and is_whole(folder)
    assert make_all(folder, NAMES) == []
    folder.report(NAMES[1]).unlink()
    folder.video(NAMES[3]).unlink()
    folder.report(NAMES[5]).write_text('{"half')
    assert make_all(folder, NAMES) == [NAMES[1], NAMES[3], NAMES[5]] and is_whole(folder)


def test_a_failure_is_recorded_and_tried_again_by_the_next_run(tmp_path: Path) -> None:
    folder, failed = Folder(tmp_path), []

    def make(name: str) -> None:
        write(folder, name)
        if name == NAMES[2]:
            folder.report(name).unlink()
            raise RuntimeError("out of\n  memory")

    folder.start(NAMES)
    folder.make_all(NAMES, make, lambda name, error: failed.append((name, str(error))))
    assert failed == [(NAMES[2], "out of\n  memory")], "once"
    assert [name for name in NAMES if folder.is_made(name)] == NAMES[:2] + NAMES[3:]
    assert folder.read_reason(NAMES[2]) == "out of memory"
    assert "in make\n" in json.loads(folder.error(NAMES[2]).read_text())["traceback"]
    folder.make_all(NAMES, lambda name: pytest.fail("this run has tried it"), fails)
    assert make_all(folder, NAMES) == [NAMES[2]] and is_whole(folder), "the record is gone"


def test_a_failure_that_is_raised_again_ends_the_run(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.start(NAMES)
    with pytest.raises(AssertionError, match=f"{NAMES[0]} failed"):
        folder.make_all(NAMES, lambda name: 1 / 0, fails)
    assert os.listdir(tmp_path) == [f"{NAMES[0]}.error.json"], "and frees its lock"


def test_ctrl_c_leaves_nothing_half(tmp_path: Path) -> None:
    folder = Folder(tmp_path)

    def make(name: str) -> None:
        if name == NAMES[1]:
            with replacing(folder.video(name)) as temporary:
                temporary.write_text("half")
                raise KeyboardInterrupt
        write(folder, name)

    folder.start(NAMES)
    with pytest.raises(KeyboardInterrupt):
        folder.make_all(NAMES, make, fails)
    assert is_whole(folder, NAMES[:1])


def test_a_video_that_another_process_makes_is_left_to_it(tmp_path: Path) -> None:
    folder, order = Folder(tmp_path), []
    folder.start(NAMES)
    other = FileLock(folder.lock(NAMES[0]))
    other.acquire()

    def make(name: str) -> None:
        order.append(name)
        write(folder, name)
        if name == NAMES[-1]:  # the other one dies with its video half made
            other.release()

    folder.make_all(NAMES, make, fails)
    assert order == [*NAMES[1:], NAMES[0]] and is_whole(folder)


def test_what_a_later_process_finds_made_is_not_damaged(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    make_all(folder, NAMES)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    folder.start(NAMES)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def started(folder: Folder, names: list[str], pause: float) -> subprocess.Popen[str]:
    command = [sys.executable, str(SUPPORT / "slow_videos.py"), str(folder.path), str(pause), *names]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(happened: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.002)


def test_processes_share_the_work(tmp_path: Path) -> None:
    folder, names = Folder(tmp_path / "videos"), [f"{number:04d}" for number in range(40)]
    shares = [process.communicate()[0].split() for process in [started(folder, names, 0.02) for _ in range(3)]]
    assert sorted(name for share in shares for name in share) == names, "each once"
    assert min(map(len, shares)) > 0 and is_whole(folder, names)


def test_processes_killed_at_random_moments_leave_nothing_half(tmp_path: Path) -> None:
    folder, chance, left = Folder(tmp_path / "videos"), random.Random(0), 0
    made: set[str] = set()
    for _ in range(8):
        if len(made) > 4:
            shutil.rmtree(folder.path)
            made = set()
        begun = set(folder.path.glob(".*")) if folder.path.exists() else set()
        running = [started(folder, NAMES, 0.02) for _ in range(2)]
        wait_for(lambda begun=begun: folder.path.exists() and set(folder.path.glob(".*")) - begun)
        time.sleep(chance.uniform(0, 0.1))
        for process in running:
            process.kill()
            process.communicate()
        left += any(folder.path.glob(".*"))
        assert all(path.read_text() == TEXT for path in folder.path.iterdir() if not path.name.startswith("."))
        before, made = made, {name for name in NAMES if folder.is_made(name)}
        assert before <= made, "what is made stays made"
    assert left > 2, "they were killed while they wrote"
    make_all(folder, NAMES)
    assert is_whole(folder)


def test_another_process_makes_what_a_killed_one_has_begun(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "videos")
    doomed = started(folder, NAMES, 30)
    wait_for(lambda: folder.lock(NAMES[0]).exists())
    other = started(folder, NAMES, 0.01)
    wait_for(lambda: folder.is_made(NAMES[-1]))
    assert other.poll() is None and not folder.is_made(NAMES[0]), "it waits for the first video"
    doomed.kill()
    for process in (doomed, other):
        process.communicate()
    assert is_whole(folder)
