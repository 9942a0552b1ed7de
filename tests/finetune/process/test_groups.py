"""Processes share a clip of a training: gradients of every family, what a training computes, and what is refused."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from gloo import on_ranks
from matrix import NO_ULYSSES
from torch import distributed

from vidsparse import Radial, TopBlocks, sparsify
from vidsparse.doctor.twin import Twin
from vidsparse.finetune.families.registry import TASKS
from vidsparse.finetune.process.groups import Groups
from vidsparse_pipelines import ADAPTERS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

TILE = (1, 4, 4)
FAMILIES = (
    "WanTransformer3DModel",
    "HunyuanVideoTransformer3DModel",
    "HunyuanVideo15Transformer3DModel",
    "HunyuanVideoFramepackTransformer3DModel",
    "LTXVideoTransformer3DModel",
    "CogVideoXTransformer3DModel",
    "MochiTransformer3DModel",
    "Kandinsky5Transformer3DModel",
    "SkyReelsV2Transformer3DModel",
)
VIEW = (3, 5, 8)
# What decides the heads of a process: shapes, or what was measured in the forward pass.
PATTERNS = {"shapes": Radial(density=0.3, tile=TILE), "content": TopBlocks(top_p=0.5, tile=TILE)}


def gradients(twin: Twin, pattern: Any, groups: Groups, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    transformer = twin.build(dtype)
    if dtype != torch.float64:  # whose mode a recomputed block does not see
        transformer.enable_gradient_checkpointing()
    transformer.train()
    with sparsify(transformer, pattern), groups.sharing(transformer, torch.device("cpu")):
        return twin.gradients(transformer, VIEW, dtype=dtype)


def of_families() -> dict[str, dict[str, dict[str, torch.Tensor]]]:
    shared, found = Groups(2, distributed.get_rank(), 2), {}
    for name in FAMILIES:
        twin = Twin(getattr(diffusers, name), {"num_attention_heads": 4} if name.startswith("Wan") else None)
        found[name] = {"exact": gradients(twin, PATTERNS["shapes"], Groups(1), torch.float64)}
        for kind, pattern in PATTERNS.items():
            found[name][f"{kind} alone"] = gradients(twin, pattern, Groups(1), torch.float32)
            found[name][f"{kind} shared"] = gradients(twin, pattern, shared, torch.float32)
    return found


@pytest.fixture(scope="module")
def found() -> list[dict[str, dict[str, dict[str, torch.Tensor]]]]:
    return on_ranks(2, of_families)


def distance(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The largest difference of any parameter's gradient, as a part of its largest number."""
    return max(float((found[name] - x).abs().max()) / (float(x.abs().max()) or 1.0) for name, x in wanted.items())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_mean_of_gradients_over_the_processes_is_the_gradient(found: list[Any], name: str) -> None:
    ranks = [one[name] for one in found]
    mean = {
        kind: {key: torch.stack([rank[f"{kind} shared"][key] for rank in ranks]).mean(dim=0) for key in ranks[0]["exact"]}
        for kind in PATTERNS
    }
    # What float32 loses alone. Sums over parts add in another order, and as much may be lost again.
    lost = distance(ranks[0]["shapes alone"], ranks[0]["exact"])
    print(name, lost, distance(mean["shapes"], ranks[0]["exact"]), distance(mean["content"], ranks[0]["content alone"]))
    assert 0 < distance(mean["shapes"], ranks[0]["exact"]) <= 2 * lost + torch.finfo(torch.float32).eps
    assert distance(mean["content"], ranks[0]["content alone"]) <= 3 * lost
