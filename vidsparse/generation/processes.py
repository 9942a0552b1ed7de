"""The processes that torchrun or accelerate start: the GPU of each, and their group where they share a video."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

TIMEOUT = timedelta(minutes=30)  # for the slowest rank to load its model


def check_processes(number: int, device: str | None) -> str:
    """The device of this process, such as "cuda:3", after all checks that need no other process.

    Args:
        number: how many processes are to share a video.
        device: "cpu", "cuda", or None for a GPU if there is one.

    Raises:
        ValueError: not started by torchrun, another number of processes, or a device that all of them would take.
    """
    command = f"torchrun --nproc-per-node {number} -m vidsparse generate ... --ulysses {number}"
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        raise ValueError(f"--ulysses {number} needs {number} processes: {command}")
    if (started := int(os.environ["WORLD_SIZE"])) != number:
        raise ValueError(f"--ulysses {number}, but torchrun started {started} processes: {command}")
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"--device {device} is one GPU, and each process takes its own; leave it out")
    if device == "cpu" or not torch.cuda.is_available():
        return "cpu"
    return str(own_device("cuda"))


def own_device(device: str | None) -> str | None:
    """The GPU of this process where a launcher has started it, such as "cuda:3", from now on PyTorch's current one.

    Without a launcher or a GPU, it is `device` as it is.

    Args:
        device: as it was asked for; another one than "cuda" and None is everyone's.

    Raises:
        ValueError: this machine has fewer GPUs than processes.
    """
    rank = os.environ.get("LOCAL_RANK", os.environ.get("RANK"))
    if rank is None or device not in (None, "cuda") or not torch.cuda.is_available():
        return device
    if int(rank) >= torch.cuda.device_count():
        raise ValueError(f"process {rank} has no GPU: this machine has {torch.cuda.device_count()}; start fewer")
    torch.cuda.set_device(int(rank))
    return f"cuda:{rank}"


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Within the context, the processes form a group.

    Raises:
        OSError: the port at which they meet is taken.
    """
    try:
        distributed.init_process_group("gloo" if device == "cpu" else "nccl", timeout=TIMEOUT)
    except distributed.DistNetworkError as error:
        port = os.environ.get("MASTER_PORT")
        raise OSError(f"the processes cannot meet at port {port}: {error}; set another MASTER_PORT") from None
    try:
        yield
    finally:
        distributed.destroy_process_group()


def told_by_first(said: Any) -> Any:
    """What the first process says, in all of them; what the others say is not heard."""
    told = [said]
    distributed.broadcast_object_list(told, src=0)
    return told[0]
