"""The small training of `tiny_training` in two processes on a CPU, with or without FSDP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from gloo import on_ranks
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


def train_on_two(folder: Path, cache: Path, launch: dict[str, str], **changes: Any) -> dict[str, torch.Tensor]:
    """Train in two processes, and read the weights that were written."""
    return on_ranks(2, _train, folder, cache, launch, changes)[0]


def _train(folder: Path, cache: Path, launch: dict[str, str], changes: dict[str, Any]) -> dict[str, torch.Tensor]:
    rank = str(distributed.get_rank())
    os.environ.update(launch, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    return train(folder, cache, **changes)
