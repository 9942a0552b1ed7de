"""Models whose weights rest elsewhere than they compute, offloaded before `sparsify` and after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from diffusers.hooks.group_offloading import GroupOffloadingType
from random_proxies import give_proxies
from second_device import sparse_calls
from streams import offload_with_streams
from tiny_wan import generate, wan_pipeline
from torch.utils import backend_registration
from twins import ignores_warnings, twin

from vidsparse import (
    Correction,
    ExactBlocks,
    MixtureOfBlocks,
    Pattern,
    PooledComplement,
    ProxyTokens,
    Radial,
    Rectified,
    Reshaped,
    Reuse,
    SpatialTemporal,
    StepBudget,
    StepSchedule,
    TopBlocks,
    sparsify,
)
from vidsparse.doctor.agree import same
from vidsparse.runtime.offloading import computing_device, is_group_offloaded

pytestmark = ignores_warnings
CPU = torch.device("cpu")
TILE = (1, 2, 4)
SPARSE = Radial(density=0.3, tile=TILE)
LEARNED = ProxyTokens((1, 2, 2), learned=True)
KEEPING = Reuse(TopBlocks(density=0.3, tile=TILE)), Reshaped()
WAN = "WanTransformer3DModel"
OTHERS = [f"{family}Transformer3DModel" for family in ("HunyuanVideo", "LTXVideo", "CogVideoX")]


def group(kind: str, **settings: Any) -> Callable[..., None]:
    def offload(model: Any, folder: Path, patch: pytest.MonkeyPatch) -> None:
        model.enable_group_offload(CPU, CPU, kind, num_blocks_per_group=1, **settings)

    return offload


def sequential(model: Any, folder: Path, patch: pytest.MonkeyPatch) -> None:
    accelerate.cpu_offload(model, execution_device=CPU)


def to_disk(model: Any, folder: Path, patch: pytest.MonkeyPatch) -> None:
    accelerate.disk_offload(model, str(folder), execution_device=CPU)


def whole_model(model: Any, folder: Path, patch: pytest.MonkeyPatch) -> None:
    accelerate.cpu_offload_with_hook(model, execution_device=CPU)


def streams_of_blocks(model: Any, folder: Path, patch: pytest.MonkeyPatch) -> None:
    offload_with_streams(model, patch, GroupOffloadingType.BLOCK_LEVEL)


def streams_of_leaves(model: Any, folder: Path, patch: pytest.MonkeyPatch) -> None:
    offload_with_streams(model, patch, GroupOffloadingType.LEAF_LEVEL)


WAYS: dict[str, Callable[..., None]] = {
    "sequential": sequential,
    "disk": to_disk,
    "whole model": whole_model,
    "blocks": group("block_level"),
    "leaves": group("leaf_level"),
    "streams of blocks": streams_of_blocks,
    "streams of leaves": streams_of_leaves,
}


# The doctor has CPU offload, and offload of leaves, of every family.
@pytest.mark.parametrize(
    ("name", "way"),
    [(WAN, way) for way in WAYS]
    + [(name, way) for name in OTHERS for way in ("blocks", "streams of blocks")]
    # CogVideoX runs a norm for video and then for text, which diffusers' order of modules has no place for.
    + [(name, "streams of leaves") for name in OTHERS if "CogVideoX" not in name],
)
def test_results_stay_in_both_orders(name: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    it, (pattern, correction) = twin(name), KEEPING
    model = it.build()
    own = it.outputs(model)
    with sparsify(model, pattern, correction=correction):
        expected = [it.outputs(model) for _ in range(2)]  # the second uses what the first has kept
    for first in (True, False):
        model = it.build()
        if first:
            WAYS[way](model, tmp_path / "first", monkeypatch)
        with sparsify(model, pattern, correction=correction, strict=True) as run:
            if not first:
                WAYS[way](model, tmp_path / "second", monkeypatch)
            for call in expected:
                same(it.outputs(model), call)
            assert run.report().kept_bytes
        same(it.outputs(model), own)


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dense", [{"dense_steps": 1}, {"dense_last_steps": 1}], ids=["dense first", "dense last"])
def test_learned_proxies_are_there_when_they_count(
    way: str, dense: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Streams expect the weights of the first step in each, the dense one too.
    pattern = StepSchedule(SPARSE, **{"dense_steps": 0, "dense_layers": (), **dense})
    results = []
    for offloads, learned in ((False, False), (False, True), (True, True)):
        pipe = wan_pipeline()
        give_proxies(pipe.transformer, LEARNED)
        if offloads:
            WAYS[way](pipe.transformer, tmp_path, monkeypatch)
        with sparsify(pipe, pattern, correction=replace(LEARNED, learned=learned)) as run:
            results.append(generate(pipe, steps=3, size=16))
            assert run.report().sparse_calls
    means, expected, found = results
    assert torch.equal(found, expected) and not torch.equal(found, means)


@torch.no_grad()
@pytest.mark.parametrize("way", ["sequential", "whole model", "blocks", "leaves"])
@pytest.mark.parametrize("first", [True, False], ids=["offloaded first", "offloaded last"])
def test_whole_videos_stay_and_memories_end(
    way: str, first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = StepBudget(KEEPING[0], budget=0.7, dense_steps=1, dense_last_steps=0)  # dense, sparse and skipped steps
    latents, own = [], list[torch.Tensor]()
    for offloads in (False, True):
        pipe = wan_pipeline()
        if offloads and first:
            WAYS[way](pipe.transformer, tmp_path, monkeypatch)
        with sparsify(pipe, pattern, correction=KEEPING[1]) as run:
            if offloads and not first:
                WAYS[way](pipe.transformer, tmp_path, monkeypatch)
            latents.append(generate(pipe, steps=5, size=16))
            report, (clock,) = run.report(), run.clocks.values()
            assert not any(layer.memories for layer in clock.layers if hasattr(layer, "memories"))
        assert report.kept_bytes and "kept from step to step" in str(report)
        assert report.sparse_calls and report.dense_calls and report.skipped_calls
        own.append(generate(pipe, steps=1, size=16))
    assert torch.equal(*latents) and torch.equal(*own)


# Where things live


PATTERNS: dict[str, tuple[Pattern, Correction | None]] = {
    "radial": (SPARSE, None),
    "pooled": (SPARSE, PooledComplement()),
    "rectified": (SPARSE, Rectified()),
    "proxies": (SPARSE, LEARNED),
    "kept": KEEPING,
    "mixture": (MixtureOfBlocks(top_k=(1, 1, 1)), None),
    "exact": (ExactBlocks(), None),
    "spatial-temporal": (SpatialTemporal(), None),
}


@pytest.fixture(scope="module")
def another_process() -> Iterator[ProcessPoolExecutor]:
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch lets no Python code be a device")
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize(("name", "used"), [(WAN, used) for used in PATTERNS] + [(name, "kept") for name in OTHERS])
def test_maps_and_memories_live_where_the_query_is(another_process: ProcessPoolExecutor, name: str, used: str) -> None:
    it, (pattern, correction) = twin(name), PATTERNS[used]
    model = it.build()
    give_proxies(model, correction)
    with sparsify(model, pattern, correction=correction, impl="reference") as run:
        expected = [it.outputs(model)["output 0"] for _ in range(2)]
        calls = run.report().sparse_calls
    ran = another_process.submit(sparse_calls, name, pattern, correction, 2).result()
    assert all(torch.equal(found, wanted) for found, wanted in zip(ran.outputs, expected, strict=True))
    assert ran.computed_on == {"elsewhere:0"} and ran.sparse_calls == calls
    assert ran.kept_on == ({"elsewhere:0"} if used == "kept" else set())
    assert all(ran.seconds), "the second call of each layer knows where it computes"


def test_a_call_that_was_timed_on_another_device_has_no_seconds(another_process: ProcessPoolExecutor) -> None:
    assert another_process.submit(sparse_calls, WAN, SPARSE, None, 1).result().seconds == [0.0, 0.0]


def test_where_a_model_computes() -> None:
    it = twin(WAN)
    model = it.build()
    assert computing_device(model) == CPU and not is_group_offloaded(model)
    accelerate.cpu_offload(model, execution_device=CPU)
    assert next(model.parameters()).is_meta and computing_device(model) == CPU
    model = it.build()
    model.enable_group_offload(torch.device("cuda:1"), CPU, "leaf_level")
    assert computing_device(model) == torch.device("cuda:1") and is_group_offloaded(model)
    with pytest.raises(ValueError, match="impl='cpu' needs tensors on the CPU, these are on cuda:1"):
        sparsify(model, SPARSE, impl="cpu")
