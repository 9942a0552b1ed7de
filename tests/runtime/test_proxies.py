"""Learned proxies in a transformer: what sparsify takes, which heads get which, and that they come out again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from random_proxies import draw_proxies, give_proxies
from tiny_wan import SPARSE, Pipeline, call, tiny

from vidsparse import PerHead, ProxyTokens, Radial, StepSchedule, attn_processors, sparsify
from vidsparse.runtime.proxies import add_proxies, proxies_in, remove_proxies

BOX = (1, 2, 2)
LEARNED = ProxyTokens(BOX, learned=True)


def learned(seed: int = 0, **changes: Any) -> Any:
    """A transformer with random proxies."""
    transformer = tiny(**changes)
    give_proxies(transformer, LEARNED, seed)
    return transformer


@torch.no_grad()
def sparse(transformer: Any, correction: Any, pattern: Any = SPARSE) -> torch.Tensor:
    with sparsify(transformer, pattern, correction=correction):
        return call(transformer)


def test_zeros_are_means_and_weights_count() -> None:
    transformer = tiny()
    means = sparse(transformer, ProxyTokens(BOX))
    found = add_proxies(transformer, BOX)
    assert [*found] == ["blocks.0.attn1", "blocks.1.attn1"] and {x.key.shape for x in found.values()} == {(2, 4)}
    torch.testing.assert_close(sparse(transformer, LEARNED), means)
    draw_proxies(transformer)
    assert (sparse(transformer, LEARNED) - means).abs().max() > 1e-3
    assert torch.equal(sparse(transformer, ProxyTokens(BOX)), means), "means are asked for"
    remove_proxies(transformer)
    assert not proxies_in(transformer) and not any("proxies" in name for name in transformer.state_dict())


def test_each_head_has_its_own_whatever_group_it_is_in() -> None:
    # Heads in a group of their own have the same attention as heads that share one.
    transformer, tile = learned(num_layers=1), (1, 4, 4)
    together = Radial(density=0.3, tile=tile)
    apart = PerHead((together, Radial(density=0.5, tile=(1, 4, 8))), heads=(0, 1))
    other = PerHead(apart.patterns, heads=(1, 0))
    kept: list[torch.Tensor] = []
    transformer.blocks[0].attn1.to_out[0].register_forward_pre_hook(lambda module, given: kept.append(given[0]))
    for pattern in (together, apart, other):
        sparse(transformer, LEARNED, pattern)
    (first, second), (alone, _), (_, last) = (x.chunk(2, dim=-1) for x in kept)
    torch.testing.assert_close(alone, first)
    torch.testing.assert_close(last, second)


def test_gradients_reach_them_also_with_checkpointing() -> None:
    found = []
    for recompute in (False, True):
        transformer = learned().train()
        if recompute:
            transformer.enable_gradient_checkpointing()
        with sparsify(transformer, StepSchedule(SPARSE, dense_layers=(0,)), correction=LEARNED):
            call(transformer).square().mean().backward()
        dense, sparse_layer = proxies_in(transformer).values()
        assert all(weight.grad is None for weight in dense.parameters()), "its layer ran dense"
        found.append([weight.grad for weight in sparse_layer.parameters()])
        assert all(gradient is not None and gradient.abs().max() > 0 for gradient in found[-1])
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second)


def test_a_compiled_model_uses_them_and_does_not_train_them() -> None:
    transformer = learned(num_layers=1)
    expected = sparse(transformer, LEARNED)
    transformer.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(sparse(transformer, LEARNED), expected)
    with sparsify(transformer, SPARSE, correction=LEARNED):
        with pytest.raises(NotImplementedError, match="learned proxies do not train in a graph of"):
            call(transformer)
        for proxies in proxies_in(transformer).values():
            proxies.requires_grad_(False)
        call(transformer).square().mean().backward()  # of queries, keys and values
    assert transformer.blocks[0].attn1.to_q.weight.grad.abs().max() > 0


def test_weights_of_lower_precision_weigh_in_float32() -> None:
    low = learned().to(torch.bfloat16)
    full = copy.deepcopy(low).float()  # the same numbers
    for first, second in zip(proxies_in(low).values(), proxies_in(full).values(), strict=True):
        assert all(map(torch.equal, first(), second())) and first().mass.dtype == torch.float32
    expected, found = sparse(full, LEARNED), sparse(low, LEARNED)
    with torch.no_grad():  # what the precision changes in the model without a pattern
        usual = (call(low).float() - call(full)).abs().max()
    assert found.dtype == torch.bfloat16 and (found.float() - expected).abs().max() < 2 * usual
    assert (sparse(full, ProxyTokens(BOX)) - expected).abs().max() > 2 * usual, "or means would pass too"


def test_an_open_run_uses_what_a_layer_has_at_each_call() -> None:
    transformer, other = learned(), learned(seed=1)
    expected = [sparse(transformer, LEARNED), sparse(other, LEARNED), sparse(transformer, ProxyTokens(BOX))]
    with torch.no_grad(), sparsify(transformer, SPARSE, correction=LEARNED):
        found = [call(transformer)]
        remove_proxies(transformer)
        give_proxies(transformer, LEARNED, seed=1)
        found.append(call(transformer))
        remove_proxies(transformer)
        found.append(call(transformer))  # means
        assert all(map(torch.equal, found, expected)) and not torch.equal(found[0], found[1])
        add_proxies(transformer, (1, 4, 4))
        with pytest.raises(ValueError, match=r"that transformer has learned, box=\(1, 4, 4\); take ProxyTokens"):
            call(transformer)


def test_what_is_refused() -> None:
    transformer = tiny()
    message = "needs proxies that were learned, and transformer has none: load the LoRA"
    for put in (sparsify, attn_processors):
        with pytest.raises(ValueError, match=message):
            put(transformer, SPARSE, correction=LEARNED)
    add_proxies(transformer, (1, 4, 4))
    with pytest.raises(ValueError, match=r"that transformer has learned, box=\(1, 4, 4\); take"):
        sparsify(transformer, SPARSE, correction=LEARNED)
    with pytest.raises(ValueError, match="has learned proxies already"):
        add_proxies(transformer, BOX)


def test_an_expert_that_has_learned_nothing_takes_means() -> None:
    first, second = learned(), tiny()
    means = sparse(second, ProxyTokens(BOX))
    with sparsify(Pipeline(transformer=first, transformer_2=second), SPARSE, correction=LEARNED):
        found = call(first).detach(), call(second).detach()
    assert torch.equal(found[1], means) and (found[0] - means).abs().max() > 1e-3
