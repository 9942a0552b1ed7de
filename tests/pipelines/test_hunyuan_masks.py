"""HunyuanVideo, HunyuanVideo 1.5 and FramePack: how masks are read, and the calls and layouts that are not sparse."""

from __future__ import annotations

import pytest
import torch
from hunyuan_models import FAMILIES, ONE_EACH, SPARSE, TEXT, Family, call

import vidsparse_pipelines.hunyuan_video
from vidsparse import sparsify


@torch.no_grad()
@ONE_EACH
def test_a_mask_is_looked_at_once_in_a_forward_pass(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, transformer = [], family.tiny(num_layers=3)
    leading = vidsparse_pipelines.hunyuan_video._leading
    monkeypatch.setattr(
        "vidsparse_pipelines.hunyuan_video._leading", lambda keys: looks.append(keys.shape) or leading(keys)
    )
    with sparsify(transformer, SPARSE, strict=True):
        call(family, transformer, batch=2)
    assert looks == [(2, family.grid(batch=2).tokens)]


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("hunyuan15", "hole"),
        *((name, kind) for name in ("hunyuan", "framepack") for kind in ("hole", "video", "pairs")),
    ],
)
def test_other_masks_run_dense_with_a_reason_or_raise_if_strict(name: str, kind: str) -> None:
    family = FAMILIES[name]
    transformer, grid = family.tiny(), family.grid(batch=2)
    attention, text = transformer.transformer_blocks[0].attn, grid.suffix
    # That of HunyuanVideo 1.5 is a mask of the text alone.
    mask = torch.ones(2, text, dtype=torch.bool) if name == "hunyuan15" else torch.ones(2, 1, 1, grid.tokens).bool()
    if kind == "hole":
        mask[1, ..., -2] = False
    elif kind == "video":
        mask[1, ..., -text - 1 :] = False
    else:
        mask = mask.expand(-1, -1, grid.tokens, -1)
    arguments = torch.randn(2, grid.tokens - text, 24), torch.randn(2, text, 24), mask
    expected = attention(*arguments)
    with sparsify(transformer, SPARSE) as run:
        call(family, transformer, batch=2)
        run.reset()
        found = attention(*arguments)
    assert run.report().dense_reasons == {"the attention mask hides other tokens than padding after the text": 1}
    assert all(torch.equal(out, wanted) for out, wanted in zip(found, expected, strict=True))
    with sparsify(transformer, SPARSE, strict=True):
        call(family, transformer, batch=2)
        with pytest.raises(NotImplementedError, match="hides other tokens than padding"):
            attention(*arguments)


@torch.no_grad()
@ONE_EACH
def test_calls_without_text_run_dense(family: Family) -> None:
    transformer = family.tiny()
    with sparsify(transformer, SPARSE, strict=True):
        call(family, transformer)
        attention = transformer.transformer_blocks[0].attn
        with pytest.raises(NotImplementedError, match="no text tokens"):
            attention(torch.randn(1, 105, 24))


def test_attention_outside_the_transformer_has_no_grid() -> None:
    family = FAMILIES["hunyuan"]
    attention = (transformer := family.tiny()).transformer_blocks[0].attn
    with sparsify(transformer, SPARSE), pytest.raises(RuntimeError, match="outside the transformer's forward"):
        attention(torch.randn(1, 105, 24), torch.randn(1, TEXT, 24), torch.ones(1, 1, 1, 105 + TEXT, dtype=torch.bool))


@pytest.mark.parametrize(
    ("setting", "layer"), [("has_clean_x_embedder", "clean_x_embedder"), ("has_image_proj", "image_projection")]
)
def test_framepack_without_its_embedders_has_no_known_layout(setting: str, layer: str) -> None:
    family = FAMILIES["framepack"]
    transformer = family.tiny(**{setting: False})
    message = f"without {layer} has an unknown token layout; build it with {setting}=True"
    with pytest.raises(NotImplementedError, match=message):
        sparsify(transformer, SPARSE)
