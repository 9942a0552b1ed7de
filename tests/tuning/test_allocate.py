"""The allocation of candidates: against all choices there are, within the budget, and at its ends."""

from __future__ import annotations

import itertools

import pytest
import torch

from vidsparse.tuning.allocate import allocate


def problem(seed: int, units: int = 5, candidates: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Candidates that cost more the less their error is, the first dense: without error, at a cost of 1."""
    generator = torch.Generator().manual_seed(seed)
    costs = torch.rand(units, candidates, generator=generator, dtype=torch.float64).sort(dim=1, descending=True).values
    errors = torch.rand(units, candidates, generator=generator, dtype=torch.float64).sort(dim=1).values
    costs[:, 0], errors[:, 0] = 1.0, 0.0
    return errors * torch.logspace(-3, 2, units, dtype=torch.float64)[:, None], costs


def total(of: torch.Tensor, choice: torch.Tensor) -> float:
    return float(of.gather(1, choice[:, None]).sum())


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_it_is_within_the_budget_and_close_to_the_best(seed: int, share: float) -> None:
    errors, costs = problem(seed)
    least, most = float(costs.min(dim=1).values.sum()), float(costs[:, 0].sum())
    budget = least + share * (most - least)
    choice = allocate(errors, costs, budget)
    assert total(costs, choice) <= budget * (1 + 1e-9)
    all_choices = (torch.tensor(c) for c in itertools.product(range(4), repeat=5))
    best = min(total(errors, c) for c in all_choices if total(costs, c) <= budget)
    # A Lagrangian misses the best by at most what one unit can gain.
    assert best <= total(errors, choice) <= best + float(errors.max(dim=1).values.max())


def test_it_is_exact_where_a_price_meets_the_budget() -> None:
    errors, costs = problem(3)
    for price in (0.01, 0.1, 1.0, 10.0):
        wanted = (errors + price * costs).argmin(dim=1)
        assert total(errors, allocate(errors, costs, total(costs, wanted))) == pytest.approx(total(errors, wanted))


def test_more_budget_is_never_worse() -> None:
    errors, costs = problem(7, units=40)
    least, most = float(costs.min(dim=1).values.sum()), float(costs[:, 0].sum())
    found = [
        total(errors, allocate(errors, costs, budget)) for budget in torch.linspace(least, most, 25).double().tolist()
    ]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(found))
    assert found[-1] == 0 < found[0]


def test_units_that_matter_get_more() -> None:
    errors = torch.tensor([[0.0, 1.0], [0.0, 100.0], [0.0, 10.0]], dtype=torch.float64)
    costs = torch.tensor([[1.0, 0.1]] * 3, dtype=torch.float64)
    assert allocate(errors, costs, 1.2).tolist() == [1, 0, 1]
    assert allocate(errors, costs, 2.1).tolist() == [1, 0, 0]


@pytest.mark.parametrize("seed", range(20))
def test_it_is_never_worse_than_one_candidate_for_all(seed: int) -> None:
    errors, costs = problem(seed, units=3)
    for index in range(4):
        budget = float(costs[:, index].sum())
        assert total(errors, allocate(errors, costs, budget)) <= float(errors[:, index].sum()) * (1 + 1e-12)


def test_the_ends() -> None:
    errors, costs = problem(1)
    assert allocate(errors, costs, 1e9).tolist() == [0] * 5
    least = float(costs.min(dim=1).values.sum())
    assert total(costs, allocate(errors, costs, least)) == pytest.approx(least)
    with pytest.raises(ValueError, match=f"a budget of 0.01 is out of reach: the cheapest candidates.*{least:.4g}"):
        allocate(errors, costs, 0.01)


def test_a_candidate_that_costs_more_and_errs_more_is_never_chosen() -> None:
    errors = torch.tensor([[0.0, 0.5, 0.4, 0.9]] * 3, dtype=torch.float64)
    costs = torch.tensor([[1.0, 0.6, 0.5, 0.1]] * 3, dtype=torch.float64)
    for budget in (0.3, 0.7, 1.1, 1.5, 2.0, 2.6):
        assert 1 not in allocate(errors, costs, budget).tolist()
