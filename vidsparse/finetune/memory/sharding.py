"""Frozen weights of a transformer are divided among the processes: FSDP2, PyTorch's `fully_shard`.

Each process keeps a part of every frozen weight. The weights of a block are gathered before it runs, also when it is
recomputed, and freed after it. The LoRA stays whole in each process, and DDP averages its gradients: so every optimizer
works, and a checkpoint does not depend on how the weights were divided.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from vidsparse.finetune.memory.swap import blocks_of

if TYPE_CHECKING:
    from vidsparse.finetune.settings import Settings


def shard(
    transformer: torch.nn.Module, learned: Iterable[torch.nn.Parameter], device: torch.device, processes: int
) -> None:
    """Divide the frozen weights of a transformer among all processes. This cannot be undone.

    Afterwards, every process must run the transformer equally often: each waits for the others' parts.

    Args:
        transformer: of diffusers, the same in all processes, on the CPU or on `device`. Block by block it moves to the
            device, where a process keeps its part.
        learned: weights that are not frozen; they move to the device whole.
        device: of this process.
        processes: of the default group of `torch.distributed`, all of them.

    Raises:
        NotImplementedError: see `check_shardable`.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    check_shardable(transformer)
    # Of what a transformer returns, which the loss does not change in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    whole = set(learned)
    for weight in whole:
        weight.data = weight.data.to(device)
    mesh = init_device_mesh(device.type, (processes,))
    for part in (*blocks_of(transformer), transformer):
        # Also what is outside of blocks: weights that stay gathered are freed by `state_dict`, in that process alone.
        fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=whole)


def check_sharded(settings: Settings) -> None:
    """Refuse settings that cannot be combined with divided weights, before a model is loaded.

    Raises:
        NotImplementedError: with the names of all of them.
    """
    wanted = [f"base={settings.base!r}"] if settings.base != "none" else []
    wanted += [name for name in ("offload_base", "offload_activations") if getattr(settings, name)]
    if wanted:
        raise NotImplementedError(
            f"FSDP cannot be combined with {' and '.join(wanted)}; leave these out, or choose a plain MULTI_GPU "
            "setting in `accelerate config`"
        )


def check_shardable(transformer: torch.nn.Module) -> None:
    """Refuse a transformer whose weights cannot be divided.

    Raises:
        NotImplementedError: it has no list of blocks, or quantised weights.
    """
    if not blocks_of(transformer):
        raise NotImplementedError(f"FSDP gathers blocks, and {type(transformer).__name__} has no list of them")
    quantised = sorted({type(w).__name__ for w in transformer.parameters() if type(w) is not torch.nn.Parameter})
    if quantised:
        raise NotImplementedError(
            f"FSDP divides plain weights, and these are quantised ({', '.join(quantised)}); load the model without "
            "quantisation, or choose a plain MULTI_GPU setting in `accelerate config`"
        )
