"""The doctor on adapters that are broken: the right checks fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
from broken_adapters import (
    backend_kept_for_itself,
    dense_steps_of_our_own,
    first_layer_only,
    keys_before_queries,
    no_gradient,
    processors_left_behind,
    rows_for_columns,
    text_on_the_other_side,
    weights_instead_of_modules,
    without_rotary,
    without_text_mask,
)
from twins import ignores_warnings, twin

from vidsparse.doctor import CHECKS, diagnose, examine
from vidsparse_pipelines.wan import WanAdapter

pytestmark = ignores_warnings

SPARSE = {"sparse", "odd grid", "batch", "bfloat16", "backward", "checkpointing", "fused projections", "LoRA"}
SPARSE |= {"float8 storage", "group offload", "CPU offload"}
BROKEN: list[tuple[Callable[[pytest.MonkeyPatch], None], str, set[str]]] = [
    (without_rotary, "WanTransformer3DModel", SPARSE | {"keeps all"}),
    (without_text_mask, "HunyuanVideoTransformer3DModel", SPARSE | {"keeps all"}),
    (text_on_the_other_side, "CogVideoXTransformer3DModel", {"grid", "layers"}),
    (rows_for_columns, "WanTransformer3DModel", {"grid", "layers"}),
    (first_layer_only, "WanTransformer3DModel", {"layers"}),
    (
        weights_instead_of_modules,
        "WanTransformer3DModel",
        {"LoRA", "float8 storage", "CPU offload", "modules"},
    ),
    (keys_before_queries, "WanTransformer3DModel", {"modules"}),
    (no_gradient, "WanTransformer3DModel", {"backward", "checkpointing"}),
    (backend_kept_for_itself, "WanTransformer3DModel", {"backend"}),
    (dense_steps_of_our_own, "WanTransformer3DModel", {"dense", "backend"}),
]


@pytest.mark.parametrize(("breaks", "name", "expected"), BROKEN, ids=[breaks.__name__ for breaks, *_ in BROKEN])
def test_a_broken_adapter_fails_the_right_checks(
    monkeypatch: pytest.MonkeyPatch, breaks: Callable[[pytest.MonkeyPatch], None], name: str, expected: set[str]
) -> None:
    breaks(monkeypatch)
    results = diagnose(getattr(diffusers, name))
    assert [result.check for result in results] == list(CHECKS)
    found = {outcome: {r.check for r in results if r.outcome == outcome} for outcome in ("failed", "not applicable")}
    assert found["failed"] == expected - found["not applicable"], results


def test_restore_that_leaves_processors_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    processors_left_behind(monkeypatch)
    result = examine(twin("WanTransformer3DModel"), "restore")
    assert result.outcome == "failed" and "blocks.0.attn1 has" in result.detail


def test_an_adapter_that_raises_fails_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WanAdapter, "grid", lambda *_: {}["no such key"])
    result = examine(twin("WanTransformer3DModel"), "sparse")
    assert (result.outcome, result.detail) == ("failed", "KeyError: 'no such key'")


def test_what_diffusers_cannot_do_alone_is_not_applicable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no float8 here")

    monkeypatch.setattr("diffusers.WanTransformer3DModel.enable_layerwise_casting", refuse)
    result = examine(twin("WanTransformer3DModel"), "float8 storage")
    assert result.outcome == "not applicable"
    assert result.detail == "without vidsparse too: RuntimeError: no float8 here"


def test_without_peft_lora_is_not_applicable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    result = examine(twin("WanTransformer3DModel"), "LoRA")
    assert result.outcome == "not applicable" and "peft" in result.detail
