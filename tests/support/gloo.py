"""Runs a function in several processes on a CPU that form one group of `torch.distributed`."""

from __future__ import annotations

import os
import socket
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from forked import context
from torch import distributed


def on_ranks(ranks: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(*arguments)` returns in each process, in the order of the ranks; it and they can be pickled."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        processes = [
            context.Process(target=_work, args=(rank, ranks, port, folder, function, arguments))
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            if process.is_alive():
                process.kill()
        files = [Path(folder) / str(rank) for rank in range(ranks)]
        found = [torch.load(file, weights_only=False) if file.is_file() else ("no answer", None) for file in files]
    if errors := [f"rank {rank}: {error}" for rank, (error, _) in enumerate(found) if error]:
        raise RuntimeError("\n".join(errors))
    return [answer for _, answer in found]


def _work(rank: int, ranks: int, port: int, folder: str, function: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # else it looks up the name of the machine
    error, answer = None, None
    try:
        distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
        answer = function(*arguments)
    except Exception:  # whatever a test causes is shown in the process of the test
        error = traceback.format_exc()
    torch.save((error, answer), Path(folder) / f"{rank}.part")
    (Path(folder) / f"{rank}.part").rename(Path(folder) / str(rank))
    if distributed.is_initialized() and error is None:
        distributed.barrier()
        distributed.destroy_process_group()


def free_port() -> int:
    """A port of this machine that nothing listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
