"""Frozen weights of a transformer are divided among the processes: FSDP2, PyTorch's `fully_shard`.

Each process keeps a part of every frozen weight. The weights of a block are gathered before it runs, also when it is
recomputed, and freed after it. The LoRA stays whole in each process, and DDP averages its gradients: so every optimizer
works, and a checkpoint does not depend on how the weights were divided. In stage 3 of DeepSpeed's ZeRO, DeepSpeed takes
the place of DDP.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
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
    whole = set(learned)
    for weight in whole:
        weight.data = weight.data.to(device)
    mesh = init_device_mesh(device.type, (processes,))
    for part in (*blocks_of(transformer), transformer):
        # Also what is outside of blocks: weights that stay gathered are freed by `state_dict`, in that process alone.
        fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=whole)


def held_of_divided(transformer: torch.nn.Module, processes: int) -> int:
    """Bytes of weights that a process holds at most: its part, what is outside of blocks, and two blocks.

    A formula of what `fully_shard` does, which gathers the next block while one computes.

    Args:
        transformer: with weights of any device; what learns does not count.
        processes: among which the frozen weights are divided.
    """
    blocks = [sum(w.nbytes for w in block.parameters() if not w.requires_grad) for block in blocks_of(transformer)]
    frozen = sum(weight.nbytes for weight in transformer.parameters() if not weight.requires_grad)
    buffers = sum(buffer.nbytes for buffer in transformer.buffers())
    neighbours = max((a + b for a, b in pairwise(blocks)), default=max(blocks, default=0))
    return buffers + -(-frozen // processes) + frozen - sum(blocks) + neighbours


@contextmanager
def views_are_fine() -> Iterator[None]:
    """Within the context, FSDP says nothing of views that a transformer returns; the loss changes none in place."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        yield


def check_sharded(settings: Settings) -> None:
    """Refuse settings that cannot be combined with divided weights, before a model is loaded.

    Raises:
        NotImplementedError: with the names of all of them.
    """
    wanted = [f"base={settings.base!r}"] if settings.base != "none" else []
    wanted += [name for name in ("offload_base", "offload_activations") if getattr(settings, name)]
    if wanted:
        raise NotImplementedError(
            f"FSDP, and stage 3 of DeepSpeed, cannot be combined with {' and '.join(wanted)}; leave these out, or "
            "choose a plain MULTI_GPU setting in `accelerate config`"
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
