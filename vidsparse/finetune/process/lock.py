"""The lock of a run's folder: two trainings must not write the same checkpoints."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from vidsparse.atomic import replacing

if TYPE_CHECKING:
    from accelerate import Accelerator

LOCK, HOLDER = ".training.lock", ".training.json"
BEAT = 30.0  # seconds between two signs of life of the holder
STALE = 600.0  # seconds without a sign after which another machine's holder is taken for dead


@contextmanager
def locked(folder: Path, beat: float = BEAT) -> Iterator[None]:
    """Within the context, this process alone trains in the folder.

    The system frees the lock of a process that dies. On a disk that machines share, the system's lock may not reach the
    other machines, or may outlive one of them: there the signs of life in `.training.json` decide.

    Args:
        folder: of the run; it exists.
        beat: seconds between two signs of life.

    Raises:
        RuntimeError: another process trains there; the message says which.
    """
    lock, holder = FileLock(folder / LOCK, timeout=0), folder / HOLDER
    free = True
    try:
        lock.acquire()
    except Timeout:
        free = False
    other = _holder(holder)
    elsewhere = other is not None and other["host"] != socket.gethostname()
    alive = other is not None and time.time() - other["seen"] < STALE
    if (elsewhere and alive) or (not free and not elsewhere):
        lock.release()
        raise RuntimeError(f"{folder} is in use: {_named(other)} trains there; wait for it, stop it, or choose --out")
    done = threading.Event()

    def live() -> None:
        while not done.wait(beat):
            _write(holder)

    _write(holder)
    thread = threading.Thread(target=live, daemon=True, name="sign of life")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        holder.unlink(missing_ok=True)
        lock.release()


@contextmanager
def locked_for_all(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """`locked` in the first process of a launch; where the folder is in use, every process raises.

    Raises: see `locked`.
    """
    from accelerate.utils import broadcast_object_list

    with ExitStack() as held:
        error: RuntimeError | None = None
        if accelerator.is_main_process:
            try:
                held.enter_context(locked(folder))
            except RuntimeError as refused:
                error = refused
        reason = [None if error is None else str(error)]
        if accelerator.num_processes > 1:
            broadcast_object_list(reason)
        if reason[0] is not None:
            raise RuntimeError(reason[0])
        yield


def _write(holder: Path) -> None:
    data = {"host": socket.gethostname(), "process": os.getpid(), "seen": time.time()}
    try:
        with replacing(holder) as temporary:
            temporary.write_text(json.dumps(data), encoding="utf-8")
    except OSError:
        return  # a full disk is told by what the training itself writes


def _holder(path: Path) -> dict[str, Any] | None:
    """Who says to train in the folder; None where nobody does, or the file is damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return {"host": str(data["host"]), "process": int(data["process"]), "seen": float(data["seen"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _named(holder: dict[str, Any] | None) -> str:
    if holder is None:
        return "another process"
    return f"process {holder['process']} on {holder['host']}, last seen {time.time() - holder['seen']:.0f} seconds ago,"
