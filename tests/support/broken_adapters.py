"""Adapters that are broken, each in one way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import vidsparse_pipelines
from vidsparse import VideoGrid
from vidsparse.runtime.adapter import WrappedProcessor
from vidsparse.runtime.run import Run
from vidsparse_pipelines.cogvideox import CogVideoXAdapter
from vidsparse_pipelines.hunyuan_video import HunyuanVideoAdapter
from vidsparse_pipelines.wan import WanAdapter


def without_rotary(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("vidsparse_pipelines.wan.rotate_pairs", lambda x, cos, sin: x)


def without_text_mask(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HunyuanVideoAdapter, "real_keys", lambda self, mask, batch, n: torch.ones(batch, n).bool())


def text_on_the_other_side(patch: pytest.MonkeyPatch) -> None:
    right = CogVideoXAdapter.grid

    def grid(*arguments: Any) -> VideoGrid:
        found = right(*arguments)
        return replace(found, prefix=found.suffix, suffix=found.prefix)

    patch.setattr(CogVideoXAdapter, "grid", grid)


def rows_for_columns(patch: pytest.MonkeyPatch) -> None:
    right = WanAdapter.grid

    def grid(*arguments: Any) -> VideoGrid:
        found = right(*arguments)
        return replace(found, height=found.width, width=found.height)

    patch.setattr(WanAdapter, "grid", grid)


def first_layer_only(patch: pytest.MonkeyPatch) -> None:
    right = WanAdapter.self_attentions
    patch.setattr(WanAdapter, "self_attentions", lambda self, t: dict(list(right(self, t).items())[:1]))


def weights_instead_of_modules(patch: pytest.MonkeyPatch) -> None:
    def project(attn: Any, hidden: torch.Tensor) -> Any:
        query, key, value = (hidden @ x.weight.T + x.bias for x in (attn.to_q, attn.to_k, attn.to_v))
        return tuple(x.unflatten(-1, (attn.heads, -1)) for x in (attn.norm_q(query), attn.norm_k(key), value))

    patch.setattr("vidsparse_pipelines.wan.project", project)


def keys_before_queries(patch: pytest.MonkeyPatch) -> None:
    right = vidsparse_pipelines.wan.project

    def project(attn: Any, hidden: torch.Tensor) -> Any:
        attn.to_k(hidden)
        return right(attn, hidden)

    patch.setattr("vidsparse_pipelines.wan.project", project)


def no_gradient(patch: pytest.MonkeyPatch) -> None:
    right = vidsparse_pipelines.wan.project
    patch.setattr("vidsparse_pipelines.wan.project", lambda *x: tuple(y.detach() for y in right(*x)))


def backend_kept_for_itself(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(WrappedProcessor, "_attention_backend", None)


def processors_left_behind(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Run, "restore", lambda self: None)


def dense_steps_of_our_own(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("vidsparse.patterns.Dense.is_dense", lambda self, context: False)
