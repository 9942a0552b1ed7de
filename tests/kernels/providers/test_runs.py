"""A map over runs is the map over tokens, for every size."""

import pytest
import torch

from tests.support.blocks import listed
from tests.support.provided import CASES, lists
from vidsparse_kernels.layout import TileLayout
from vidsparse_kernels.providers.runs import Order, Runs
from vidsparse_kernels.reference import token_mask

CPU = torch.device("cpu")


@pytest.mark.parametrize("case", CASES)
def test_tokens_come_back_from_their_rows(case: TileLayout) -> None:
    for side in (case.query, case.key):
        order = Order.of(side, CPU)
        x = torch.arange(side.tokens, dtype=torch.float64).view(1, -1, 1) + 1
        rows = order.gather(x)
        assert torch.equal(order.scatter(rows), x)
        assert rows.shape[1] == len(order.sizes) * order.length
        assert order.gather_gradient(x).sum() == x.sum()  # rows without a token have no gradient
        assert order.sizes.sum() == side.tokens
        assert order.full == bool((order.sizes == order.length).all())


@pytest.mark.parametrize("case", CASES)
def test_the_map_over_runs_is_that_over_tokens(case: TileLayout) -> None:
    kept, counts, indices = lists(case)
    runs = Runs.of(counts, indices, case)
    dense = listed(runs.counts, runs.indices, len(runs.key.sizes))
    assert torch.equal(dense, runs.dense())
    query, key = (order.row_of_token // order.length for order in (runs.query, runs.key))
    assert torch.equal(dense[:, :, query][..., key], token_mask(kept, case))
    assert torch.equal(listed(*runs.transposed(), len(runs.query.sizes)), dense.mT)


@pytest.mark.parametrize("case", [case for case in CASES if case.key.extra])
def test_padding_is_no_key(case: TileLayout) -> None:
    _, counts, indices = lists(case)
    runs = Runs.of(counts, indices, case)
    valid = torch.tensor([0, 2, case.key.extra])
    sizes = runs.key_sizes(valid)
    assert (sizes[:, runs.key.tiles :].sum(dim=1) == valid).all()
    assert torch.equal(sizes[2], runs.key_sizes(None))
    place = runs.key.row_of_token
    real = place % runs.key.length < sizes[:, place // runs.key.length]
    padding = case.padding_mask(valid)
    assert padding is not None and torch.equal(real, ~padding)
