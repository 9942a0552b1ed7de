"""The floating-point operations of one call of a transformer, by what they are for."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from vidsparse.attention import dense_flops
from vidsparse.doctor.twin import Twin
from vidsparse.generation.frames import Geometry
from vidsparse.generation.transformers import without_weights

VIEW = (4, 12, 16)  # more tokens than any text of a twin, so that rows tell what a layer reads


@dataclass(frozen=True)
class Work:
    """The operations of one dense call, two for each multiplication and addition.

    Attributes:
        attention: the products of self-attention among video tokens: queries with keys, weights with values.
        text: those with text, in the same sequence or by cross-attention.
        projections: linear layers of self-attention.
        others: all other linear layers, such as feed-forward and projections of cross-attention. Sound counts as text.
    """

    attention: float
    text: float
    projections: float
    others: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.attention + self.text + self.projections + self.others

    @property
    def share(self) -> float:
        """The part of `attention` in all."""
        return self.attention / self.total


def attention_bytes(tokens: int, width: int, itemsize: int) -> int:
    """Bytes of query, key, value and output of one layer of attention, for one call.

    Args:
        tokens: of the sequence. width: heads times head_dim. itemsize: bytes of a number.
    """
    return 4 * tokens * width * itemsize


def work(cls: type[Any], config: dict[str, Any], known: Geometry, tokens: int, text: int) -> Work:
    """Count the operations of a call.

    Which linear layers see the video, which the text, and how often attention sees either is read from a run of the
    model's twin, a small random model with the same layers; the sizes are those of the model.

    Args:
        cls: class of transformers. config: the settings that differ from its defaults. known: its geometry.
        tokens, text: of the video and of the prompt.

    Raises:
        NotImplementedError: its adapter describes no twin.
    """
    seen = _Seen(Twin(cls, config))
    model = without_weights(cls, config)
    attentions = known.adapter.self_attentions(model)
    layers, width = len(attentions), known.heads * known.head_dim
    flops: Counter[bool] = Counter()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            video, other = seen.reads(name)
            inside = any(name.startswith(f"{attention}.") for attention in attentions)
            flops[inside] += 2 * module.weight.numel() * (video * tokens + (text if other else 0))
    joint = layers * (dense_flops(tokens + text, width) - dense_flops(tokens, width)) if seen.joint else 0.0
    across = layers * seen.across * 4.0 * tokens * text * width
    return Work(layers * dense_flops(tokens, width), joint + across, float(flops[True]), float(flops[False]))


class _Seen(TorchFunctionMode):
    """What the parts of a twin read in a call."""

    def __init__(self, twin: Twin):
        super().__init__()
        self._rows: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()
        self._tokens = VIEW[0] * VIEW[1] * VIEW[2]
        model = twin.build()
        self._layers = len(twin.adapter.self_attentions(model))
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(partial(self._count, name))
        with self, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # models warn of what they do on a CPU
            twin.outputs(model, VIEW)

    def _count(self, name: str, module: torch.nn.Linear, inputs: tuple[torch.Tensor, ...]) -> None:
        self._rows[name] += inputs[0].numel() // module.in_features

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            query, key = args[0] if args else kwargs["query"], args[1] if len(args) > 1 else kwargs["key"]
            rows, columns = query.shape[-2], key.shape[-2]
            if rows >= self._tokens:
                kind = "across" if columns < self._tokens else "self" if columns == self._tokens else "joint"
                self._kinds[kind] += 1
        return func(*args, **kwargs)

    @property
    def joint(self) -> bool:
        """Whether the video's attention sees text in the same sequence."""
        return self._kinds["joint"] > 0

    @property
    def across(self) -> float:
        """How many calls of cross-attention there are for one of self-attention."""
        # FlexAttention, which some models use, is not among the calls that are counted.
        return self._kinds["across"] / ((self._kinds["self"] + self._kinds["joint"]) or self._layers)

    def reads(self, name: str) -> tuple[int, bool]:
        """How often a linear layer of the model reads the whole video, and whether it reads text."""
        first = re.sub(r"\.\d+", ".0", name, count=1)  # the twin has two layers of a kind
        rows = self._rows[first] if first in self._rows else self._rows[name]
        return rows // self._tokens, rows % self._tokens > 1
