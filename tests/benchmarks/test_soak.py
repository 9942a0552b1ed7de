"""The soak, in small: every pattern, correction and cache is in it, digests tell videos apart, memory is counted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from needs import needs_weights
from torch._subclasses import FakeTensorMode

from vidsparse.patterns.base import patterns_in
from vidsparse.serialize import known_classes

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import soak


def test_every_pattern_and_correction_is_in_it() -> None:
    cases = soak.cases()
    used = {type(inner).__name__ for case in cases for inner in patterns_in(case.pattern)}
    used |= {type(case.correction).__name__ for case in cases if case.correction is not None}
    # Tables of layers and heads are read from files; gates need a model that was trained with them.
    tables = {"GriddedHeads", "HeadModes", "PerHead", "PerLayer", "PerPhase", "LearnedGate"}
    assert set(known_classes()) - used == {*tables, "GatedCoarse"}


def test_all_cases_come_before_one_comes_again() -> None:
    number = len(soak.cases())
    order = soak.shuffled(2 * number + 1)
    assert sorted(order[:number]) == sorted(order[number : 2 * number]) == list(range(number))
    assert order[:number] != order[number : 2 * number]


def test_growth_is_that_of_medians() -> None:
    flat = [300] * 20 + [100, 103, 100, 97] * 10
    assert soak.growth(flat) == 0
    assert soak.growth([*flat[:40], *(104 for _ in range(20))]) == pytest.approx(0.04)


def test_a_tensor_that_stays_is_counted_once() -> None:
    before = soak.Held.now()
    kept = torch.zeros(1 << 20)
    views = [kept[1:], kept.view(2, -1)]
    assert soak.Held.now().tensors - before.tensors == kept.nbytes
    del kept, views
    assert soak.Held.now().tensors == before.tensors


def test_tensors_without_memory_are_not_counted() -> None:
    before = soak.Held.now()
    with FakeTensorMode():
        kept = torch.zeros(1 << 20)
    assert soak.Held.now().tensors == before.tensors and kept.numel() == 1 << 20


@needs_weights
def test_a_case_is_the_same_again_and_after_others() -> None:
    digests, held = soak.soak([1, 15, 20, 1])
    assert all(len(found) == 1 for found in digests.values()) and len({*map(str, digests.values())}) == 3
    assert len(held) == 4
