"""Processes that share a clip in a training: each has a part of its tokens, and attends with some of the heads.

Ulysses (DeepSpeed-Ulysses, arXiv 2309.14509) exchanges tokens for heads around each attention, forward and backward.
Beside it, all processes of a group compute the same: the same clip, noise and loss. What a process adds to the gradient
of a weight comes from its own tokens; the sum over a group is the gradient, and DDP averages over all processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vidsparse.runtime.parallelism import has_own_plan
from vidsparse.runtime.ranks import check_degree
from vidsparse.runtime.registry import adapter_for
from vidsparse.runtime.sharing import sharing

if TYPE_CHECKING:
    from vidsparse.finetune.data.clips import Bucket
    from vidsparse.finetune.families import TrainingTask
    from vidsparse.finetune.settings import Settings

WORDS = 8  # of a text, where its length does not matter


@dataclass(frozen=True)
class Groups:
    """The groups of processes that share a clip: neighbours, as GPUs of one machine are.

    Attributes:
        size: processes that share a clip.
        rank, world: index of this process, and the number of all.

    Raises:
        ValueError: the size does not divide the number of processes.
    """

    size: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.world % self.size:
            raise ValueError(
                f"context_parallel={self.size} does not divide the {self.world} "
                f"{'processes' if self.world > 1 else 'process'}; start a multiple of {self.size}, such as torchrun "
                f"--nproc-per-node {-(-self.world // self.size) * self.size}"
            )

    @property
    def number(self) -> int:
        """How many groups there are."""
        return self.world // self.size

    @property
    def own(self) -> int:
        """The index of this process's group."""
        return self.rank // self.size

    @property
    def speaks(self) -> bool:
        """Whether this process is the first of its group, which counts for it."""
        return self.rank % self.size == 0

    def one_each(self, gathered: torch.Tensor) -> torch.Tensor:
        """Of rows that all processes gave, as many each and in the order of ranks, those of one process a group."""
        each: torch.Tensor = gathered.unflatten(0, (self.world, -1))
        return each[:: self.size].flatten(0, 1)

    @contextmanager
    def sharing(self, transformer: Any, device: torch.device) -> Iterator[None]:
        """Within the context, each group shares the clips of a transformer, forward and backward.

        The mean of a gradient over all processes is then that over the groups' clips.

        Args:
            transformer: with its LoRA, sparsified; in all processes.
            device: of this process.
        """
        if self.size == 1:
            yield
            return
        from torch.distributed.device_mesh import init_device_mesh

        shape = (self.number, 1, self.size)
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=("group", "ring", "ulysses"))
        with sharing(transformer, mesh):
            yield


def check_sharing(task: TrainingTask, transformer: Any, settings: Settings, buckets: Iterable[Bucket]) -> None:
    """Refuse a model, or sizes of clips, that the processes of a group cannot share.

    Raises:
        RuntimeError: a diffusers without context parallelism.
        ValueError: a number that does not divide the heads; or tokens of a clip that have to be divided equally.
        NotImplementedError: a family that cannot be divided; says why.
    """
    size, adapter = settings.context_parallel, adapter_for(transformer)
    if not hasattr(transformer, "enable_parallelism"):
        raise RuntimeError("this diffusers has no context parallelism; install a newer one: pip install -U diffusers")
    try:
        plan = adapter.parallel_plan(transformer)
    except NotImplementedError as error:
        raise NotImplementedError(f"context_parallel={size} is not possible: {error}; leave it out") from None
    check_degree(size, transformer, adapter, "context_parallel")
    if has_own_plan(transformer, plan):
        return
    for bucket in buckets:
        if (tokens := _divided_tokens(task, transformer, bucket)) % size:
            raise ValueError(
                f"{bucket.frames} frames of {bucket.width}x{bucket.height} are {tokens} tokens to divide, which must "
                f"be a multiple of context_parallel={size} for {adapter.family}; choose another size or length"
            )


def _divided_tokens(task: TrainingTask, transformer: Any, bucket: Bucket) -> int:
    """The tokens of a clip that are divided among processes; text that each has whole is not among them."""
    adapter, view = adapter_for(transformer), task.view(bucket.frames, bucket.height, bucket.width)
    example = task.blank(transformer.config, view, WORDS)
    grid = adapter.grid(transformer, task.arguments(task.noisy(example), example, torch.float32))
    return grid.tokens - sum(adapter.ends(grid))
