"""The least error for a cost: which candidate each of many heads takes."""

from __future__ import annotations

import torch


def allocate(errors: torch.Tensor, costs: torch.Tensor, budget: float) -> torch.Tensor:
    """Choose a candidate for each unit, so that the sum of errors is small and the sum of costs within a budget.

    Each unit takes the candidate with the least error + price * cost, and bisection finds the lowest price at which all
    of them together are within the budget. That is exact for the budgets that a price meets; between two of them, as
    many units as fit still take the better candidate of the lower price, those first that gain most for what they cost.

    Method: Lagrangian relaxation, as Everett, "Generalized Lagrange Multiplier Method", 1963; of attention by MoA
    (arXiv 2406.14909), which solves for the same allocation with an integer program.

    Args:
        errors: float64 [units, candidates], not negative.
        costs: float64 [units, candidates], of the same unit as `budget`.
        budget: the most that all choices together may cost.

    Returns:
        int64 [units], indices of candidates.

    Raises:
        ValueError: the cheapest candidates together cost more than the budget.
    """
    least = float(costs.min(dim=1).values.sum())
    if least > budget * (1 + 1e-9):
        raise ValueError(f"a budget of {budget:.4g} is out of reach: the cheapest candidates together cost {least:.4g}")
    best = _at_price(errors, costs, 0.0)
    if _total(costs, best) <= budget:
        return best
    low, high = 0.0, 1e-12
    while _total(costs, _at_price(errors, costs, high)) > budget * (1 + 1e-9):
        low, high = high, 4 * high
        if high > 1e30:  # no error is worth its cost
            return costs.argmin(dim=1)
    for _ in range(100):
        middle = (low + high) / 2
        within = _total(costs, _at_price(errors, costs, middle)) <= budget
        low, high = (low, middle) if within else (middle, high)
    found = _filled(errors, costs, budget, _at_price(errors, costs, high))
    # With few units the gap between two prices is wide, and one candidate for all may lie within it.
    single = torch.where(costs.sum(dim=0) <= budget * (1 + 1e-9), errors.sum(dim=0), torch.inf)
    if float(single.min()) < _total(errors, found):
        return single.argmin().expand(len(found)).clone()
    return found


def _at_price(errors: torch.Tensor, costs: torch.Tensor, price: float) -> torch.Tensor:
    """The choice of each unit at a price; of equal ones the cheaper."""
    worth = errors + price * costs
    tied = worth <= worth.min(dim=1, keepdim=True).values * (1 + 1e-12)
    return costs.masked_fill(~tied, torch.inf).argmin(dim=1)


def _filled(errors: torch.Tensor, costs: torch.Tensor, budget: float, choice: torch.Tensor) -> torch.Tensor:
    """Spend what is left of the budget: one unit after the other takes what gains most for its cost."""
    choice = choice.clone()
    while True:
        now = choice[:, None]
        gain, price = errors.gather(1, now) - errors, costs - costs.gather(1, now)
        fits = (gain > 0) & (price <= budget - _total(costs, choice))
        if not fits.any():
            return choice
        worth = torch.where(fits, gain / price.clamp(min=1e-30), -1.0)
        unit, better = divmod(int(worth.argmax()), costs.shape[1])
        choice[unit] = better


def _total(costs: torch.Tensor, choice: torch.Tensor) -> float:
    return float(costs.gather(1, choice[:, None]).sum())
