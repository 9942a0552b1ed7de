"""Two trainings in one folder."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_training import train

from vidsparse.finetune.process.lock import HOLDER, LOCK, STALE, locked

HOLD = "import sys, time; from pathlib import Path; from vidsparse.finetune.process.lock import locked\n"
HOLD += "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)"


def elsewhere(folder: Path, seen: float) -> None:
    holder = {"host": "another-machine", "process": 7, "seen": seen}
    (folder / HOLDER).write_text(json.dumps(holder))


def test_a_folder_in_use_is_refused_until_its_process_dies(tmp_path: Path, cache: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(RuntimeError, match=rf"in use: process {other.pid} on {socket.gethostname()}, last seen"):
            train(tmp_path, cache)
    finally:
        other.kill()
        other.communicate()
    assert (tmp_path / HOLDER).exists(), "it was killed"
    train(tmp_path, cache, steps=1)
    assert not (tmp_path / HOLDER).exists()


def test_another_machine_that_shows_life_is_respected_and_a_dead_one_is_not(tmp_path: Path) -> None:
    elsewhere(tmp_path, time.time() - 5)
    said = "in use: process 7 on another-machine, last seen 5 seconds ago"
    with pytest.raises(RuntimeError, match=said), locked(tmp_path):
        pass
    elsewhere(tmp_path, time.time() - STALE - 1)
    with locked(tmp_path):
        assert json.loads((tmp_path / HOLDER).read_text())["process"] == os.getpid()
    (tmp_path / HOLDER).write_text("half of")
    with locked(tmp_path):
        pass


def test_the_system_lock_of_a_dead_machine_does_not_block(tmp_path: Path) -> None:
    from filelock import FileLock

    with FileLock(tmp_path / LOCK):
        elsewhere(tmp_path, time.time() - STALE - 1)
        with locked(tmp_path):
            pass


def test_signs_of_life_go_on(tmp_path: Path) -> None:
    with locked(tmp_path, beat=0.05):
        first = json.loads((tmp_path / HOLDER).read_text())["seen"]
        deadline = time.monotonic() + 20
        while json.loads((tmp_path / HOLDER).read_text())["seen"] == first and time.monotonic() < deadline:
            time.sleep(0.02)
        assert json.loads((tmp_path / HOLDER).read_text())["seen"] > first
