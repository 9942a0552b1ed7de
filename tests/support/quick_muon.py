"""Muon without its orthogonalisation, for trainings of a few steps. Each test file makes its fixture of this."""

from __future__ import annotations

import pytest


def quick_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Muon scale a gradient to norm 1; it orthogonalises in bfloat16, which CPUs without its products emulate."""
    monkeypatch.setattr(
        "torch.optim._muon._zeropower_via_newtonschulz", lambda gradient, *_: gradient / (gradient.norm() + 1e-7)
    )
