"""Group offloading with streams on a machine without an accelerator: the CPU plays it, weights that rest are empty.

The hooks of diffusers run as they are. Versions differ in what they do with a module whose weights were not brought
ahead: some fetch them late, some fail. Here it fails, since an empty weight fits no input.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from diffusers.hooks import group_offloading
from diffusers.hooks.group_offloading import GroupOffloadingConfig, GroupOffloadingType, ModuleGroup

CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")  # `ELSEWHERE` is only compared with


class Stream:
    """In the place of a stream of CUDA."""

    def synchronize(self) -> None:
        pass


class Backend:
    """In the place of what diffusers asks of the device."""

    def __init__(self, device: torch.device):
        del device

    def stream(self, stream: Stream) -> AbstractContextManager[None]:
        del stream
        return nullcontext()

    def current_stream(self) -> Stream:
        return Stream()


def _kept(group: ModuleGroup) -> dict[torch.Tensor, torch.Tensor]:
    tensors = [x for module in group.modules for x in (*module.parameters(), *module.buffers())]
    return {x: x.data for x in (*tensors, *group.parameters, *group.buffers)}


def _bring(group: ModuleGroup) -> None:
    for tensor, kept in group.cpu_param_dict.items():
        tensor.data = kept


def _take_away(group: ModuleGroup) -> None:
    for tensor, kept in group.cpu_param_dict.items():
        tensor.data = kept.new_empty(0)


def offload_with_streams(transformer: torch.nn.Module, patch: pytest.MonkeyPatch, kind: GroupOffloadingType) -> None:
    """Offload a transformer in groups, each of which is brought by the one that ran before it in the first call."""
    patch.setattr(group_offloading, "TorchDeviceBackend", Backend)
    patch.setattr(ModuleGroup, "_init_cpu_param_dict", _kept)
    patch.setattr(ModuleGroup, "_onload_from_memory", _bring)
    patch.setattr(ModuleGroup, "_offload_to_memory", _take_away)
    config = GroupOffloadingConfig(
        *(CPU, ELSEWHERE, kind),
        non_blocking=True,
        record_stream=False,
        low_cpu_mem_usage=False,
        num_blocks_per_group=1,
        stream=Stream(),  # type: ignore[arg-type]
    )
    group_offloading._apply_group_offloading(transformer, config)
