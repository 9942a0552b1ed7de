"""Which dense attention runs."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from vidsparse import Dense
from vidsparse.generation import backends
from vidsparse.generation.backends import NATIVE, dense_backend, fastest_backend


def test_a_backend_is_set_and_put_back() -> None:
    before = _AttentionBackendRegistry._active_backend
    with dense_backend("_native_math"):
        assert _AttentionBackendRegistry._active_backend.value == "_native_math"
    assert _AttentionBackendRegistry._active_backend is before


def test_bad_names_are_refused() -> None:
    with (
        pytest.raises(ValueError, match=r"dense backend 'quick' is unknown to diffusers; known are .*native"),
        on("quick"),
    ):
        pass
    with pytest.raises(RuntimeError, match="flash-attn"), on("flash"):
        pass


def on(name: str) -> Any:
    return dense_backend(name)


def test_on_a_cpu_there_is_one_and_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "sample", lambda *_: pytest.fail("a video was sampled"))
    assert fastest_backend(SimpleNamespace(_execution_device=torch.device("cpu")), {}) == (NATIVE, {})


def test_on_a_gpu_the_fastest_that_runs_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, active = list[str](), list[str]()
    seconds = {"native": [9.0, 2.0], "_native_cudnn": [5.0, 1.0], "_flash_3": [1.0, 3.0]}  # the first is slow to start

    def on(name: str) -> Any:
        if name == "flash":
            raise RuntimeError("flash-attn is missing")
        active.append(name)
        return nullcontext()

    def sample(pipe: Any, pattern: Any, arguments: dict[str, Any]) -> Any:
        assert isinstance(pattern, Dense) and arguments["num_inference_steps"] == 1
        if active[-1] == "_native_flash":
            raise ValueError("`attn_mask` is not supported")
        return SimpleNamespace(attention_seconds=seconds[active[-1]].pop(0))

    monkeypatch.setattr(backends, "dense_backend", on)
    monkeypatch.setattr(backends, "sample", sample)
    pipe = SimpleNamespace(_execution_device=torch.device("cuda"))
    assert fastest_backend(pipe, {"num_inference_steps": 40}, tried.append) == (
        "_native_cudnn",
        {"native": 2.0, "_native_cudnn": 1.0, "_flash_3": 3.0},
    )
    assert tried == list(backends.ON_GPU)
