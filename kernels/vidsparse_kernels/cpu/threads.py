"""Independent pieces of a computation divided over threads, each of which computes single-threaded.

PyTorch divides each operation over its threads, but products as small as those of one query tile divide badly. Here
every thread takes whole pieces; PyTorch's operations release Python's lock while they compute.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Generic, TypeVar

import torch

Piece = TypeVar("Piece")

# The number of BLAS threads is a setting of the whole process, so calls take turns.
_turn = threading.Lock()


class _Shared(Generic[Piece]):
    """An iterator that several threads may share."""

    def __init__(self, pieces: Iterable[Piece]):
        self.pieces, self.lock = iter(pieces), threading.Lock()

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        with self.lock:
            return next(self.pieces)


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    # A forked child inherits the cache but not the threads of its parent: its process id makes a new pool.
    return ThreadPoolExecutor(threads, thread_name_prefix="vidsparse", initializer=torch.set_num_threads, initargs=(1,))


def divide(work: Callable[[Iterator[Piece]], None], pieces: Iterable[Piece]) -> None:
    """Call `work(pieces)` in this thread and in as many others as PyTorch uses; each piece goes to one of them.

    Gradients are not recorded. The first exception is raised after all threads have finished.
    """
    threads, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()

    def work_alike(pieces: Iterator[Piece]) -> None:
        # Both modes are thread-local.
        with torch.inference_mode(inference), torch.no_grad():
            work(pieces)

    if threads == 1:
        return work_alike(iter(pieces))
    shared = _Shared(pieces)
    with _turn:
        torch.set_num_threads(1)
        try:
            pool = _pool(threads - 1, os.getpid())
            helpers = [pool.submit(work_alike, shared) for _ in range(threads - 1)]
            try:
                work_alike(shared)
            finally:
                shared.pieces = iter(())  # after Ctrl-C no further piece starts
                errors = [error for future in helpers if (error := future.exception())]
        finally:
            torch.set_num_threads(threads)
    if errors:
        raise errors[0]
