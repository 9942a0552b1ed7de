"""The operations of a call, against PyTorch's counter on the model itself, on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from twins import ignores_warnings

from vidsparse.attention import dense_flops
from vidsparse.estimation.published import MODELS, KnownModel
from vidsparse.estimation.work import Work, work
from vidsparse.generation.frames import geometry_of
from vidsparse.generation.transformers import class_named, without_weights
from vidsparse.runtime.adapter import TEXT_TOKENS

pytestmark = ignores_warnings
VIEW = (9, 30, 52)
TOKENS = 9 * 30 * 52
# The others read values of tensors, such as a mask, so that their forward pass does not run on the meta device.
ON_META = "wan2.1-1.3b", "wan2.2-5b", "wanvace", "skyreelsv2", "allegro", "ltxvideo", "kandinsky5", "hunyuanvideo"


def counted(known: KnownModel, text: int) -> Work:
    cls, config = class_named(known.transformer), dict(known.config)
    return work(cls, config, geometry_of(cls, config, known.vae_stride), TOKENS, text)


@pytest.mark.parametrize("known", [known for known in MODELS if known.name in ON_META], ids=lambda known: known.name)
def test_the_count_is_that_of_pytorch(known: KnownModel) -> None:
    model = without_weights(class_named(known.transformer), dict(known.config))
    found = counted(known, TEXT_TOKENS)
    adapter = geometry_of(type(model), dict(known.config)).adapter
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**adapter.example(model, VIEW, 1, lambda *shape: torch.empty(*shape)))
    counts = {str(kind): flops for kind, flops in counter.get_flop_counts()["Global"].items()}
    products = counts.pop("aten.bmm")
    assert found.attention + found.text == pytest.approx(products, rel=0.01)
    assert found.projections + found.others == pytest.approx(sum(counts.values()), rel=0.01)


@pytest.mark.parametrize("known", MODELS, ids=lambda known: known.name)
def test_every_model_is_counted(known: KnownModel) -> None:
    cls, config = class_named(known.transformer), dict(known.config)
    geometry = geometry_of(cls, config, known.vae_stride)
    model, found = without_weights(cls, config), counted(known, known.text)
    layers = len(geometry.adapter.self_attentions(model))
    assert found.attention == layers * dense_flops(TOKENS, geometry.heads * geometry.head_dim)
    parameters = sum(weight.numel() for weight in model.parameters())
    # A parameter costs two operations for each token that it reads, and none reads more than video and text.
    assert 0.25 < (found.projections + found.others) / (2 * parameters * TOKENS) < 1
    assert 0 < found.text < 0.4 * found.attention and 0 < found.share < 1
    assert found.total == pytest.approx(found.attention + found.text + found.projections + found.others)


def test_more_text_costs_more() -> None:
    known = next(known for known in MODELS if known.name == "hunyuanvideo")
    few, many = counted(known, 64), counted(known, 256)
    assert few.attention == many.attention and few.text < many.text and few.others < many.others
