"""The small training of `tiny_training` in several processes on a CPU, with FSDP, with DeepSpeed, or without."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gloo import free_port, on_ranks
from tiny_training import train
from torch import distributed

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


class Asked(NamedTuple):
    """A training: its folder, whether weights are divided, what differs from `tiny_training`, and DeepSpeed's stage."""

    folder: Path
    divided: bool
    changes: dict[str, Any]
    zero: int = 0


def train_on(ranks: int, cache: Path, trainings: list[Asked]) -> list[dict[str, torch.Tensor]]:
    """Train one after another in the same processes, and read the weights that each wrote."""
    ports = [free_port() for _ in trainings]
    found: list[dict[str, torch.Tensor]] = on_ranks(ranks, train_each, cache, trainings, ports)[0]
    return found


def compile_nothing() -> None:
    """Let DeepSpeed compile none of its operators: on a CPU that takes minutes, and a training uses none."""
    from deepspeed import ops

    ops.__compatible_ops__.clear()


def train_each(cache: Path, trainings: list[Asked], ports: list[int]) -> list[dict[str, torch.Tensor]]:
    """Train one after another, in each process of a group."""
    rank, found = str(distributed.get_rank()), []
    os.environ.update(RANK=rank, LOCAL_RANK=rank, MASTER_ADDR="127.0.0.1")
    os.environ["WORLD_SIZE"] = str(distributed.get_world_size())
    if any(asked.zero for asked in trainings):
        compile_nothing()
    for asked, port in zip(trainings, ports, strict=True):
        os.environ.update(FSDP2, ACCELERATE_USE_FSDP=str(asked.divided).lower(), MASTER_PORT=str(port))
        os.environ["ACCELERATE_USE_DEEPSPEED"] = str(asked.zero > 0).lower()
        os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] = str(asked.zero or 2)
        found.append(train(asked.folder, cache, **asked.changes))
    return found
