"""The report of a run: its numbers, its text and its advice."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

import pytest
import torch
from tiny_wan import SPARSE, call, tiny

from vidsparse import Context, Radial, StepSchedule, VideoGrid, sparsify
from vidsparse.block_map import Plan


@torch.no_grad()
def test_the_numbers_of_a_report_add_up() -> None:
    transformer = tiny()
    with sparsify(transformer, StepSchedule(SPARSE, dense_layers=(0,))) as run:
        call(transformer, batch=2)
    report, block_map = run.report(), SPARSE.plan(VideoGrid(5, 7, 11))
    dense, sparse = report.calls
    assert dense.flops == dense.dense_flops == sparse.dense_flops == 2 * 2 * (2 * 385 * 385 * 24)
    kept = int(block_map.token_mask().sum())
    assert sparse.flops == pytest.approx(2 * 2 * (2 * kept * 24))
    assert report.flops_saved == pytest.approx((1 - kept / 385**2) / 2)
    assert (report.density, report.token_density) == (block_map.density, pytest.approx(kept / 385**2))
    assert report.seconds == sum(c.seconds for c in report.calls) > 0
    assert (sparse.impl, sparse.tiles, sparse.layer, sparse.transformer) == ("cpu", ((1, 4, 4),), 1, "transformer")


@torch.no_grad()
def test_a_report_is_plain_data_and_readable_text() -> None:
    transformer = tiny()
    with sparsify(transformer, SPARSE) as run:
        assert str(run.report()).endswith("no attention has run")
        assert run.report().flops_saved == 0
        call(transformer)
    report = run.report()
    data = json.loads(json.dumps(report.to_dict()))
    assert data["sparse_calls"] == len(data["calls"]) == 2 and data["dense_calls"] == 0
    assert data["density"] == report.density
    text = str(report)
    assert repr(SPARSE) in text and "2 of 2 attention calls sparse" in text
    assert f"{report.density:.3f} of video tile pairs, {report.token_density:.3f} of token pairs" in text
    assert "impl cpu, tile (1, 4, 4), 385 tokens" in text


@torch.no_grad()
def test_a_report_says_when_sparsity_cannot_pay() -> None:
    transformer = tiny()
    with sparsify(transformer, StepSchedule(Radial(density=0.9, tile=(1, 4, 4)), dense_steps=2)) as run:
        for timestep in (900.0, 500.0, 100.0):
            call(transformer, timestep=timestep)
    few, high, mostly = run.report().advice
    assert (
        few.startswith("385 tokens are few") and "is high" in high and mostly.startswith("67% of the calls ran dense")
    )


@torch.no_grad()
def test_the_choice_of_tiles_is_timed_apart() -> None:
    @dataclass(frozen=True)
    class Slow(Radial):
        def select(self, query: torch.Tensor, key: torch.Tensor, grid: VideoGrid, context: Context) -> Plan:
            time.sleep(0.02)
            return super().select(query, key, grid, context)

    transformer = tiny()
    with sparsify(transformer, StepSchedule(Slow(density=0.3, tile=(1, 4, 4)), dense_layers=(0,))) as run:
        for timestep in (900.0, 500.0):
            call(transformer, timestep=timestep)
        call(transformer, timestep=500.0)
    report = run.report()
    for one in report.calls:
        assert (one.choosing == 0) if one.reason else (0.02 * one.calls <= one.choosing <= one.seconds)
    assert report.choosing_seconds == report.to_dict()["choosing_seconds"] == sum(c.choosing for c in report.calls)
    assert 0.06 <= report.choosing_seconds <= report.seconds


@torch.no_grad()
def test_reset_forgets_what_has_run() -> None:
    transformer = tiny()
    with sparsify(transformer, SPARSE) as run:
        call(transformer)
        earlier = run.report()
        run.reset()
        assert run.report().calls == ()
        call(transformer)
    assert len(earlier.calls) == len(run.report().calls) == 2


def test_reprs_are_short() -> None:
    transformer = tiny()
    with sparsify(transformer, SPARSE) as run:
        assert repr(run) == f"Run({SPARSE!r}, 2 layers of transformer)"
        assert repr(run.report()) == f"Report({SPARSE!r}, no calls)"
        call(transformer)
        report = run.report()
        assert repr(report) == f"Report({SPARSE!r}, 2 of 2 calls sparse, density {report.density:.2f})"
    assert repr(run) == f"Run({SPARSE!r}, restored)"
