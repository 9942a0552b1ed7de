"""Compares two results: bit for bit, or up to rounding."""

from __future__ import annotations

import torch

Results = dict[str, torch.Tensor]


class Failed(Exception):
    """Raised when a check fails; says what is wrong, with the number."""


class NotApplicable(Exception):
    """Raised when a check does not apply; says why."""


def same(found: Results, expected: Results) -> None:
    """Check that results are equal bit for bit.

    Raises:
        Failed: they are not.
    """
    for name, x in expected.items():
        if not torch.equal(found[name], x):
            raise Failed(f"{name} is {_error(found[name], x):.1e} off: not bit for bit what the model gives itself")


def agree(found: Results, plain: Results, exact: Results, dtype: torch.dtype) -> str:
    """Check that results in a dtype equal those of the model itself (`plain`), up to rounding.

    The error against float64 (`exact`) may be twice that of the model itself, and one rounding of the largest number.

    Returns:
        The error that comes nearest to what is allowed.

    Raises:
        Failed: it is more.
    """
    if found.keys() != exact.keys():
        raise Failed(f"{', '.join(sorted(found.keys() ^ exact.keys()))}: in one model only, the sparse or its own")
    rounding = torch.finfo(dtype).eps / 2 * max(_size(x) for x in exact.values())
    errors = {name: (_error(found[name], x), 2 * _error(plain[name], x) + rounding) for name, x in exact.items()}
    name, (error, allowed) = max(errors.items(), key=lambda item: item[1][0] / item[1][1])
    text = f"error {error:.1e}, rounding allows {allowed:.1e}"
    if not all(error <= allowed for error, allowed in errors.values()):  # NaN is an error too
        raise Failed(f"{text}, in {name}: not what the model computes itself")
    return text


def agreed(found: Results, plain: Results, exact: Results, dtype: torch.dtype) -> bool:
    """Whether `agree` holds."""
    try:
        return bool(agree(found, plain, exact, dtype))
    except Failed:
        return False


def _error(x: torch.Tensor, exact: torch.Tensor) -> float:
    return _size(x.double() - exact.double())


def _size(x: torch.Tensor) -> float:
    """The root mean square."""
    return float(x.square().mean().sqrt())
