"""Divides independent pieces of a computation over threads, each of which computes with one thread.

PyTorch divides each operation over its threads, and products as small as one query tile's divide badly. Here every
thread takes whole pieces; PyTorch's operations release Python's lock while they compute.
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

# How many threads the BLAS uses is one setting of the whole process: calls take turns.
_turn = threading.Lock()


class _Shared(Generic[Piece]):
    """An iterator that several threads may draw from."""

    def __init__(self, pieces: Iterable[Piece]):
        self.pieces, self.lock = iter(pieces), threading.Lock()

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        with self.lock:
            return next(self.pieces)


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    # A forked child inherits the cache but not the threads of its parent: its number asks for a pool of its own.
    return ThreadPoolExecutor(threads, thread_name_prefix="vidsparse", initializer=torch.set_num_threads, initargs=(1,))


def divide(work: Callable[[Iterator[Piece]], None], pieces: Iterable[Piece]) -> None:
    """Call `work(pieces)` in this thread and as many others as PyTorch uses; each takes what no other has taken.

    Nothing records gradients. The first exception is raised, after the threads have ended.
    """
    threads, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()

    def work_alike(pieces: Iterator[Piece]) -> None:
        # Both modes belong to a thread.
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
                shared.pieces = iter(())  # after Ctrl-C nothing more is begun
                errors = [error for future in helpers if (error := future.exception())]
        finally:
            torch.set_num_threads(threads)
    if errors:
        raise errors[0]
