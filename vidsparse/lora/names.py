"""Finds the layers that the names in a LoRA file mean: diffusers' names, original ones, and both in one word."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from vidsparse.lora.originals import ORIGINALS, Original

# What trainers write before the names of layers; several may follow each other.
PREFIXES = (
    *("transformer.", "transformer_2.", "transformer_ref.", "connectors."),
    *("base_model.model.", "model.diffusion_model.", "diffusion_model.", "pipe.dit.", "dit.", "net.", "module."),
    *("lora_unet_", "lora_transformer_"),
)
_BLOCK = re.compile(r"((?:blocks|layers)[._])(\d+)(?=[._])")


@dataclass(frozen=True)
class Found:
    """What a name in a file means.

    Attributes:
        layers: of diffusers; several where the original code stacks their rows in one layer.
        swapped: the halves of its rows are in the other order in diffusers.
        by_head: rows that DiffSynth-Studio leaves in the order of heads.
    """

    layers: tuple[str, ...]
    swapped: bool = False
    by_head: bool = False


class Names:
    """The names by which files may call the layers of a model.

    Args:
        cls: name of the model's class, such as "WanTransformer3DModel".
        layers: names of its layers, and of parameters that belong to no layer, in diffusers.

    Attributes:
        layers: these names, with `*` for the numbers of blocks.
        original: the names of its family in the original code.
    """

    def __init__(self, cls: str, layers: Iterable[str]):
        self.original = ORIGINALS.get(cls, Original())
        self._found: dict[str, Found] = {}
        stacked: dict[str, list[str]] = {}
        self.layers = listed = list(dict.fromkeys(any_block(layer)[0] for layer in layers))
        order = {layer: i for i, layer in enumerate(self.original.layers)}
        for layer in sorted(listed, key=lambda layer: order.get(layer, len(order))):
            stacked.setdefault(self.original.name(layer), []).append(layer)
        for name, members in stacked.items():
            swapped, by_head = self.original.is_swapped(name), self.original.is_by_head(name)
            self._add(name, Found(tuple(members), swapped, by_head))
        for layer in listed:
            self._add(layer, Found((layer,)))

    def _add(self, name: str, found: Found) -> None:
        for form in (name, name.replace(".", "_")):
            self._found.setdefault(form, found)

    def find(self, name: str) -> Found | None:
        """What a name in a file means, with or without prefixes; None where the model has no such layer.

        The number of a block is not checked.
        """
        while True:
            general, blocks = any_block(name)
            if (found := self._found.get(general)) is not None:
                return Found(tuple(fill(x, blocks) for x in found.layers), found.swapped, found.by_head)
            prefix = next((p for p in PREFIXES if name.startswith(p)), None)
            if prefix is None:
                return None
            name = name.removeprefix(prefix)

    def original_name(self, layer: str) -> str:
        """The original name of a layer of diffusers."""
        general, blocks = any_block(layer)
        return fill(self.original.name(general), blocks)

    def stacked_with(self, original: str) -> Found:
        """The layers of diffusers that an original layer consists of, for a name from `original_name`."""
        general, blocks = any_block(original)
        found = self._found[general]
        return Found(tuple(fill(x, blocks) for x in found.layers), found.swapped, found.by_head)


def any_block(name: str) -> tuple[str, list[str]]:
    """A name with `*` for the numbers of blocks, and these numbers."""
    return _BLOCK.sub(r"\1*", name), [found[2] for found in _BLOCK.finditer(name)]


def fill(name: str, blocks: Iterable[str]) -> str:
    """A name with the numbers of blocks in the place of `*`."""
    for block in blocks:
        name = name.replace("*", block, 1)
    return name
