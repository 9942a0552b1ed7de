"""Lets several GPUs share a video: diffusers' context parallelism, for all families that can be divided."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed

from vidsparse.runtime.adapter import Adapter
from vidsparse.runtime.layer import Layer
from vidsparse.runtime.pipeline import transformers_of
from vidsparse.runtime.ranks import check_degree
from vidsparse.runtime.registry import adapter_for


def enable_parallelism(
    pipe_or_transformer: object, ulysses_degree: int | None = None, *, ulysses_anything: bool = False
) -> None:
    """Divide each video among GPUs by Ulysses: each holds a part of the tokens, and attends with some of the heads.

        torch.distributed.init_process_group("nccl")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        pipe.to("cuda")
        vidsparse.enable_parallelism(pipe)
        vidsparse.sparsify(pipe, Radial(density=0.2))

    All processes load the same pipeline and call it with the same arguments and the same seed; all get the same video.
    It comes before `sparsify` or after it. It is diffusers' own `transformer.enable_parallelism`, with the plan of the
    family's adapter where diffusers has none. Of those families some can run on several GPUs only while they are
    sparsified, with `Dense()` for dense attention: the attention that diffusers has for them exchanges no heads.

    Args:
        pipe_or_transformer: a diffusers pipeline (all of its transformers) or a transformer of a supported class.
        ulysses_degree: the number of GPUs; all processes of the group, which is the default.
        ulysses_anything: heads and tokens need not be multiples of the number of GPUs. Not for a family that has no
            plan in diffusers.

    Raises:
        RuntimeError: no process group, context parallelism is on, or a diffusers without it.
        ValueError: another number than that of the processes, or one that does not divide the heads.
        NotImplementedError: no adapter, or a family that cannot be divided; says why.
        TypeError: something that has no transformer.
    """
    targets = {name: (t, adapter_for(t)) for name, t in transformers_of(pipe_or_transformer).items()}
    degree = _degree(ulysses_degree)
    plans = {}
    for name, (transformer, adapter) in targets.items():
        if getattr(transformer, "_parallel_config", None) is not None:
            raise RuntimeError(f"{name} runs on several GPUs already; enable_parallelism is for once")
        if not hasattr(transformer, "enable_parallelism"):
            raise RuntimeError(
                "this diffusers has no context parallelism; install a newer one: pip install -U diffusers"
            )
        if not ulysses_anything:
            check_degree(degree, transformer, adapter)
        plans[name] = adapter.parallel_plan(transformer)
        if ulysses_anything and not has_own_plan(transformer, plans[name]):
            raise NotImplementedError(f"ulysses_anything=True is not possible for {adapter.family}; leave it out")
    mesh: Any = None  # one for all transformers
    for name, (transformer, adapter) in targets.items():
        own = has_own_plan(transformer, plans[name])
        mesh = divide(transformer, adapter, plans[name], degree, own, ulysses_anything, mesh)
        if not adapter.exchanges:
            transformer.register_forward_pre_hook(_refuse_own_attention)


def has_own_plan(transformer: torch.nn.Module, plan: Mapping[str, Any]) -> bool:
    """Whether the plan of an adapter is diffusers' own, which may divide into uneven parts."""
    return plan is getattr(transformer, "_cp_plan", None)


def divide(
    transformer: Any,
    adapter: Adapter,
    plan: Mapping[str, Any],
    degree: int,
    own: bool,
    uneven: bool = False,
    mesh: Any = None,
) -> Any:
    """Divide a transformer among processes, by diffusers' own means.

    Args:
        plan: what is divided where.
        degree: number of processes.
        own: whether the plan is of diffusers, see `has_own_plan`.
        uneven: diffusers' `ulysses_anything`.
        mesh: of the processes, a `DeviceMesh`; by default of all.

    Returns:
        The mesh.
    """
    from diffusers import ContextParallelConfig

    config: Any = ContextParallelConfig(ulysses_degree=degree, ulysses_anything=uneven, mesh=mesh)
    with _a_cpu_counts():
        transformer.enable_parallelism(config=config, cp_plan=plan)
    if not own:
        _keep_to_self_attention(transformer, adapter)
    return config._mesh


def _degree(asked: int | None) -> int:
    if not distributed.is_available() or not distributed.is_initialized():
        # torchrun tells each process its number.
        missing = "call torch.distributed.init_process_group() first"
        if "RANK" not in os.environ:
            missing = f"start the program with torchrun --nproc-per-node {asked or 2}, and {missing}"
        raise RuntimeError(f"several GPUs need a process each: {missing}")
    processes = distributed.get_world_size()
    if processes == 1:
        raise ValueError("there is 1 process, and sharing a video needs 2 or more: torchrun --nproc-per-node 2")
    if asked not in (None, processes):
        raise ValueError(
            f"ulysses_degree={asked}, but there are {processes} processes; start as many as GPUs share a video: "
            f"torchrun --nproc-per-node {asked}"
        )
    return processes


@contextmanager
def _a_cpu_counts() -> Iterator[None]:
    """Let diffusers enable parallelism on a CPU: it divides by the number of accelerators, which is 0 there."""
    counted = torch.accelerator.device_count
    if counted() == 0:
        torch.accelerator.device_count = lambda: 1
    try:
        yield
    finally:
        torch.accelerator.device_count = counted


def _keep_to_self_attention(transformer: torch.nn.Module, adapter: Adapter) -> None:
    """Take other attention out of the parallelism: it reads text that is whole on each GPU."""
    own: list[Any] = [module.processor for module in adapter.self_attentions(transformer).values()]
    for module in transformer.modules():
        processor = getattr(module, "processor", None)
        if hasattr(processor, "_parallel_config") and not any(processor is other for other in own):
            processor._parallel_config = None  # type: ignore[union-attr]


def _refuse_own_attention(transformer: torch.nn.Module, args: tuple[Any, ...]) -> None:
    adapter = adapter_for(transformer)
    attentions: Any = adapter.self_attentions(transformer).values()
    if not all(isinstance(getattr(module.processor, "layer", None), Layer) for module in attentions):
        raise RuntimeError(
            f"{adapter.family} runs on several GPUs only while it is sparsified, because its attention in diffusers "
            "exchanges no heads; vidsparse.sparsify(pipe, vidsparse.Dense()) is for dense attention"
        )
