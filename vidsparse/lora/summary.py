"""What is in a LoRA file, for people: who wrote it, for which family, which layers with what rank and alpha."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from vidsparse.lora.families import guess_families, names_of
from vidsparse.lora.files import recipe_in, transformer_in
from vidsparse.lora.names import any_block
from vidsparse.lora.recipe import LoraRecipe
from vidsparse.lora.renamed import Renamed, renamed
from vidsparse.lora.source import find_lora
from vidsparse.lora.stored import CONFIG, PEFT, Stored, read_stored

# What the names of a file begin with -> who writes such names; the first that holds decides.
_WRITERS = {
    "lora_unet_": "musubi-tuner, or another of kohya's trainers",
    "diffusion_model.": "ComfyUI and many trainers",
    PEFT: "peft",
    "transformer": "diffusers",
}


@dataclass(frozen=True)
class Touched:
    """Layers of one name in several blocks that a LoRA changes alike.

    Attributes:
        layer: name in diffusers, with `*` for the number of the block; that in the file where the family is unknown.
        blocks: how many; 0 for a layer outside of blocks.
        rank, alpha: of the matrices; None for a norm or a bias, which is changed as it is.
    """

    layer: str
    blocks: int
    rank: int | None
    alpha: float | None


@dataclass(frozen=True)
class LoraSummary:
    """What is in a LoRA file.

    Attributes:
        file: where it is. bytes: its size.
        form: who writes such names.
        families: classes of transformers that have its layers; several where they share them, none if unknown.
        transformer: for which transformer of a pipeline it says to be; None if it does not say.
        dtypes: of its matrices, such as "bfloat16".
        touched: what it changes.
        left_out: what those families do not have, in a line; empty if nothing.
        recipe: what it was trained with.
    """

    file: Path
    bytes: int
    form: str
    families: tuple[str, ...]
    transformer: str | None
    dtypes: tuple[str, ...]
    touched: tuple[Touched, ...]
    left_out: str
    recipe: LoraRecipe


def summarize_lora(source: str | Path) -> LoraSummary:
    """What is in the file of a LoRA, of any trainer, without a model. For source and errors see `load_lora`."""
    file = find_lora(source)
    stored = read_stored(file)
    recipe, families = recipe_in(file, stored.header), guess_families(stored.layers)
    lora = renamed(stored, names_of(families[0])) if families else None
    return LoraSummary(
        file,
        file.stat().st_size,
        _form(stored),
        tuple(families),
        transformer_in(file, stored.layers, stored.header),
        tuple(sorted({str(u.up.dtype).removeprefix("torch.") for u in stored.updates.values() if u.up is not None})),
        tuple(_touched(lora)) if lora is not None else tuple(_as_stored(stored)),
        "" if lora is None else lora.left_out_summary,
        recipe,
    )


def _form(stored: Stored) -> str:
    if CONFIG in stored.header:
        return "diffusers"
    first = next(iter(stored.layers))
    if stored.default and not first.startswith(PEFT):
        return "DiffSynth-Studio"
    return next((writer for start, writer in _WRITERS.items() if first.startswith(start)), "names without a prefix")


def _touched(lora: Renamed) -> list[Touched]:
    """The layers of a LoRA whose family is known."""
    alike: dict[tuple[str, int | None, float | None], int] = defaultdict(int)
    for layer, update in lora.updates.items():
        general, blocks = any_block(layer)
        alike[general, update.rank, update.scale * update.rank] += bool(blocks)
    for layer, parts in lora.differences.items():
        general, blocks = any_block(layer)
        for part in parts:
            alike[f"{general}.{part.parameter}", None, None] += bool(blocks)
    return [Touched(layer, blocks, rank, alpha) for (layer, rank, alpha), blocks in alike.items()]


def _as_stored(stored: Stored) -> list[Touched]:
    """The layers of a LoRA whose family is unknown, under the names in its file."""
    alike: dict[tuple[str, int, float | None], int] = defaultdict(int)
    for layer, update in stored.updates.items():
        general, blocks = any_block(layer)
        alike[general, 0 if update.down is None else update.down.shape[0], update.alpha] += bool(blocks)
    return [Touched(layer, blocks, rank, alpha) for (layer, rank, alpha), blocks in alike.items()]
