"""The processes of one generation on several GPUs, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

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
    local = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    if local >= torch.cuda.device_count():
        raise ValueError(f"process {local} has no GPU: this machine has {torch.cuda.device_count()}; start fewer")
    return f"cuda:{local}"


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Within the context, the processes form a group.

    Raises:
        OSError: the port at which they meet is taken.
    """
    if device != "cpu":
        torch.cuda.set_device(device)
    try:
        distributed.init_process_group("gloo" if device == "cpu" else "nccl", timeout=TIMEOUT)
    except distributed.DistNetworkError as error:
        port = os.environ.get("MASTER_PORT")
        raise OSError(f"the processes cannot meet at port {port}: {error}; set another MASTER_PORT") from None
    try:
        yield
    finally:
        distributed.destroy_process_group()
