"""A LoRA under diffusers' names: what a file holds, with the layers divided that the original code stacks."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from vidsparse.lora.names import Found, Names
from vidsparse.lora.stored import Difference, Stored, Update, scale_of

IMAGE_LAYERS = ("k_img", "v_img", "norm_k_img", "add_k_proj", "add_v_proj", "norm_added_k", "img_emb", "image_embedder")
TEXT_LAYERS = ("lora_te", "text_encoder", "text_model", "conditioner")
UNKNOWN, OF_IMAGES, OF_TEXT = "of unknown name", "for images that this model does not take", "of a text encoder"
HEAD = 128  # channels of a head, where no model says it


@dataclass(frozen=True)
class LowRank:
    """What is added to the weight of a layer: scale * up @ down.

    Attributes:
        down: [rank, in]. up: [out, rank]. For convolutions there are more dimensions.
        scale: alpha / rank, or what stands for it.
        magnitude: [out], of DoRA; None for LoRA.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float = 1.0
    magnitude: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        """Rows of `down`."""
        return self.down.shape[0]


@dataclass
class Renamed:
    """A LoRA under diffusers' names.

    Attributes:
        updates, differences: by the name of the layer in diffusers.
        left_out: reason -> names in the file.
    """

    updates: dict[str, LowRank] = field(default_factory=dict)
    differences: dict[str, list[Difference]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def left_out_summary(self) -> str:
        """How many parts have no place, why, and one name of each kind."""
        return "; ".join(f"{len(names)} {why}, such as {names[0]}" for why, names in self.left_out.items())


def renamed(stored: Stored, names: Names, head: int | None = None) -> Renamed:
    """What a file holds, under diffusers' names.

    Args:
        stored: the contents of the file.
        names: of a model.
        head: channels of a head, for files that keep the rows of heads together; by default 128.

    Raises:
        ValueError: the file names a layer twice, in two forms.
    """
    result = Renamed()
    if names.original.alpha_in_header and not stored.config and "alpha" in stored.header:
        with suppress(ValueError):  # a text that is no number says nothing
            stored = replace(stored, config={"lora_alpha": float(stored.header["alpha"])})
    for name in stored.layers:
        found = names.find(name)
        if found is None:
            result.left_out[_kind(name)].append(name)
            continue
        heads = (head or HEAD) if found.by_head and stored.default else None
        if (update := stored.updates.get(name)) is not None:
            _add_update(result, update, stored, found, heads)
        for difference in stored.differences.get(name, []):
            columns = difference.value.shape[1] if difference.value.ndim > 1 else 0
            for layer, value in _divided(difference.value, found, columns, heads):
                _once(layer, result.differences, difference.parameter)
                part = Difference(difference.parameter, value, difference.replaces)
                result.differences.setdefault(layer, []).append(part)
    for name in stored.unread:
        result.left_out[_kind(name)].append(name)
    return result


def check_placed(lora: Renamed, kind: str, file: Path) -> None:
    """Refuse a LoRA most of whose layers are unknown to a model.

    Args:
        lora: the LoRA under diffusers' names.
        kind: class of the model.
        file: for the error.

    Raises:
        ValueError: no layer has a place, or fewer have one than have unknown names.
    """
    placed, unknown = len({*lora.updates, *lora.differences}), lora.left_out.get(UNKNOWN, [])
    if not placed or placed < len(unknown):
        changes = next((name for known in lora.left_out.values() for name in known), "nothing")
        raise ValueError(f"{file} was made for another model than {kind}: it changes {changes}, which does not exist")


def _add_update(result: Renamed, update: Update, stored: Stored, found: Found, heads: int | None) -> None:
    assert update.down is not None and update.up is not None  # `read_stored` refuses such files
    down, rank = update.down, update.down.shape[0]
    extra = {
        name: dict(_divided(value, found, down.shape[1], heads))
        for name, value in (("bias", update.bias), ("magnitude", update.magnitude))
        if value is not None
    }
    for layer, up in _divided(update.up, found, down.shape[1], heads):
        if layer in result.updates:
            raise ValueError(f"the file changes {layer} twice, under two names")
        scale = scale_of(stored.config, layer, rank, update.alpha)
        own = down if len(found.layers) == 1 else down.clone()  # no two layers share a parameter
        result.updates[layer] = LowRank(own, up, scale, extra.get("magnitude", {}).get(layer))
        if "bias" in extra:
            _once(layer, result.differences, "bias")
            bias = Difference("bias", (scale * extra["bias"][layer].double()).to(up.dtype), False)
            result.differences.setdefault(layer, []).append(bias)


def _once(layer: str, differences: dict[str, list[Difference]], parameter: str) -> None:
    if any(known.parameter == parameter for known in differences.get(layer, [])):
        raise ValueError(f"the file changes the {parameter} of {layer} twice, under two names")


def _divided(value: torch.Tensor, found: Found, columns: int, head: int | None) -> list[tuple[str, torch.Tensor]]:
    """The rows of an original layer for each of its layers in diffusers."""
    if head is not None:
        count = len(found.layers)
        value = value.unflatten(0, (-1, count, head)).transpose(0, 1).flatten(0, 2)
    if found.swapped:
        value = torch.cat(value.chunk(2)[::-1])
    if len(found.layers) == 1:
        return [(found.layers[0], value)]
    parts = value.split(row_counts(found.layers, value.shape[0], columns))
    return [(layer, part.clone()) for layer, part in zip(found.layers, parts, strict=True)]


def row_counts(layers: tuple[str, ...], rows: int, columns: int) -> list[int]:
    """How the rows of an original layer divide among its layers in diffusers.

    They are equal, but for the feed-forward that HunyuanVideo stacks below query, key and value, each square.
    """
    if layers[-1].endswith("proj_mlp"):
        return [*[columns] * (len(layers) - 1), rows - columns * (len(layers) - 1)]
    return [rows // len(layers)] * len(layers)


def _kind(name: str) -> str:
    words = name.replace("_", ".")
    if any(f".{part.replace('_', '.')}." in f".{words}." for part in IMAGE_LAYERS):
        return OF_IMAGES
    return OF_TEXT if name.startswith(TEXT_LAYERS) else UNKNOWN
