"""Processes share a video in training: the mean of their gradients is the gradient, in every family."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from gloo import on_ranks
from matrix import NO_ULYSSES
from torch import distributed
from trained_families import CASES

from vidsparse import Radial, TopBlocks, sparsify
from vidsparse.doctor.twin import Twin
from vidsparse.finetune.families import task_for
from vidsparse.finetune.objective import loss_of
from vidsparse.finetune.process.groups import Groups

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

TILE, VIEW = (1, 4, 4), (3, 5, 8)
FAMILIES = (
    "CogVideoXTransformer3DModel",
    "HunyuanVideo15Transformer3DModel",
    "HunyuanVideoFramepackTransformer3DModel",
    "HunyuanVideoTransformer3DModel",
    "Kandinsky5Transformer3DModel",
    "LTXVideoTransformer3DModel",
    "MochiTransformer3DModel",
    "SkyReelsV2Transformer3DModel",
    "WanTransformer3DModel",
)
# Of these the content decides which process has which head, by what the forward pass has measured.
BY_CONTENT = ("HunyuanVideoTransformer3DModel", "WanTransformer3DModel")
SHAPES, CONTENT = Radial(density=0.3, tile=TILE), TopBlocks(top_p=0.5, tile=TILE)


def gradients(twin: Twin, pattern: Any, groups: Groups, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    transformer = twin.build(dtype)
    if dtype != torch.float64:  # whose mode a recomputed block does not see
        transformer.enable_gradient_checkpointing()
    transformer.train()
    with sparsify(transformer, pattern), groups.sharing(transformer, torch.device("cpu")):
        return twin.gradients(transformer, VIEW, dtype=dtype)


def of_families() -> dict[str, dict[str, dict[str, torch.Tensor]]]:
    shared, found = Groups(2, distributed.get_rank(), 2), {}
    for name in FAMILIES:
        twin = Twin(getattr(diffusers, name), {"num_attention_heads": 4} if name in BY_CONTENT else None)
        found[name] = {"shared": gradients(twin, SHAPES, shared)}
        if name in BY_CONTENT:
            found[name] |= {"shared content": gradients(twin, CONTENT, shared)}
        if not shared.speaks:  # what one process computes, one process computes
            continue
        found[name] |= {
            "exact": gradients(twin, SHAPES, Groups(1), torch.float64),
            "alone": gradients(twin, SHAPES, Groups(1)),
        }
        if name in BY_CONTENT:
            found[name] |= {"content": gradients(twin, CONTENT, Groups(1))}
    return found


@pytest.fixture(scope="module")
def found() -> list[dict[str, dict[str, dict[str, torch.Tensor]]]]:
    return on_ranks(2, of_families)


def distance(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The largest difference of a gradient, as a part of the largest number of its parameter.

    Gradients that are 0 but for rounding, as of a key's bias, count as a part of a thousandth of the model's largest.
    """
    largest = max(float(x.abs().max()) for x in wanted.values())
    return max(
        float((found[name] - x).abs().max()) / max(float(x.abs().max()), 1e-3 * largest) for name, x in wanted.items()
    )


def mean(ranks: list[dict[str, dict[str, torch.Tensor]]], kind: str) -> dict[str, torch.Tensor]:
    return {name: torch.stack([rank[kind][name] for rank in ranks]).mean(dim=0) for name in ranks[0][kind]}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_mean_of_gradients_over_the_processes_is_the_gradient(found: list[Any], name: str) -> None:
    ranks = [one[name] for one in found]
    exact = ranks[0]["exact"]
    # What float32 loses in one process. Sums over parts are in another order, and lose as much again at most.
    lost = distance(ranks[0]["alone"], exact)
    assert 0 < distance(mean(ranks, "shared"), exact) <= 2 * lost + torch.finfo(torch.float32).eps
    if name in BY_CONTENT:  # both are as far from the exact ones
        assert distance(mean(ranks, "shared content"), ranks[0]["content"]) <= 3 * lost


def test_every_family_that_can_be_trained_and_divided_is_here() -> None:
    trained = {type(part).__name__ for case in CASES.values() for part in [case.pipe().transformer]}
    assert trained - set(NO_ULYSSES) == set(FAMILIES)


def of_a_context() -> list[torch.Tensor]:
    twin = Twin(diffusers.WanTransformer3DModel)
    transformer: Any = twin.build()
    with sparsify(transformer, SHAPES):
        alone = twin.outputs(transformer, VIEW)
        with Groups(2, distributed.get_rank(), 2).sharing(transformer, torch.device("cpu")):
            assert transformer._parallel_config is not None
            shared = twin.outputs(transformer, VIEW)
        again = twin.outputs(transformer, VIEW)
    assert transformer._parallel_config is None
    return [outputs["output 0"] for outputs in (alone, shared, again)]


def test_afterwards_each_process_computes_alone() -> None:
    for alone, shared, again in on_ranks(2, of_a_context):
        assert torch.equal(alone, again)
        # A rounding in each of the attention, projection, feed-forward and output of two layers.
        assert float((alone - shared).abs().max()) <= 8 * torch.finfo(torch.float32).eps * float(alone.abs().max())


# Families whose tokens have timesteps of their own.
BY_TOKEN = ("ltx-image", "skyreels-forcing")


def of_tokens() -> dict[str, list[tuple[float, dict[str, torch.Tensor]]]]:
    return {
        name: [of_case(name, groups) for groups in (Groups(1), Groups(2, distributed.get_rank(), 2))]
        for name in BY_TOKEN
    }


def of_case(name: str, groups: Groups) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and the gradients of a training's call."""
    case = CASES[name]
    pipe = case.pipe()
    task, transformer = task_for(pipe), pipe.transformer
    if transformer.config.num_attention_heads == 1:  # which no processes divide
        transformer = type(transformer).from_config(dict(transformer.config) | {"num_attention_heads": 2})
        torch.manual_seed(0)
        for parameter in transformer.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    bucket = case.bucket
    example = task.blank(transformer.config, task.view(bucket.frames, bucket.height, bucket.width), 8)
    torch.manual_seed(0)
    drawn = {key: torch.randn_like(x) for key, x in vars(example).items() if key in ("latents", "noise", "text")}
    example = replace(
        example, **drawn, level=torch.tensor([0.7]), more={k: torch.ones_like(x) for k, x in example.more.items()}
    )
    with sparsify(transformer, SHAPES), groups.sharing(transformer, torch.device("cpu")):
        loss = loss_of(transformer, example, task)[0]
        loss.backward()
    return float(loss), {key: p.grad for key, p in transformer.named_parameters() if p.grad is not None}


def test_timesteps_of_tokens_are_divided_with_them() -> None:
    ranks = on_ranks(2, of_tokens)
    for name in BY_TOKEN:
        (loss, alone), _ = ranks[0][name]
        for rank in ranks:
            assert rank[name][1][0] == pytest.approx(loss, rel=1e-6)
        mean = {key: torch.stack([rank[name][1][1][key] for rank in ranks]).mean(dim=0) for key in alone}
        # A gradient is a sum over at most 256 tokens, each of which rounds.
        assert distance(mean, alone) <= 256 * torch.finfo(torch.float32).eps
