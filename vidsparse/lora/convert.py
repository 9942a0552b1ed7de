"""Writes a LoRA for other programs: ComfyUI, musubi-tuner and kohya's, or diffusers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import torch

from vidsparse.generation.frames import families
from vidsparse.lora.attach import peft_settings, peft_weights
from vidsparse.lora.families import guess_families, names_of, original_names
from vidsparse.lora.files import HEADER, lora_header, transformer_in, write_lora
from vidsparse.lora.load import warn
from vidsparse.lora.names import Names
from vidsparse.lora.originals import ORIGINALS
from vidsparse.lora.proxies import PROXIES
from vidsparse.lora.recipe import LoraRecipe
from vidsparse.lora.renamed import LowRank, Renamed, check_placed, renamed, row_counts
from vidsparse.lora.source import find_lora
from vidsparse.lora.stored import read_stored
from vidsparse.runtime.pipeline import TRANSFORMERS

Form = Literal["comfy", "musubi", "diffusers"]
READERS: dict[str, str] = {"comfy": "ComfyUI", "musubi": "musubi-tuner"}
MLP_RATIO = 4  # of HunyuanVideo, whose feed-forward may be missing in a file where the original code stacks it


def convert_lora(
    source: str | Path, out: str | Path, form: Form, family: str | None = None, *, note: Callable[[str], None] = warn
) -> Path:
    """Write a LoRA in the form of another program.

    * "comfy": original names below `diffusion_model.`, the scale multiplied into the second matrix;
    * "musubi": original names in one word after `lora_unet_`, with alpha for each layer;
    * "diffusers": names of diffusers below `transformer.`, with the settings of peft in the header, and for which
      transformer of a pipeline it is.

    Args:
        source: as `load_lora` takes it, of any trainer.
        out: a file whose name ends in .safetensors.
        form: "comfy", "musubi" or "diffusers".
        family: class of the transformer that it is for, or the short name of it, such as "wan"; by default the names in
            the file say it.
        note: called with a line for what does not travel.

    Returns:
        The file.

    Raises:
        OSError: no such LoRA, or the file cannot be written.
        ValueError: not a LoRA, one of another family than `family` or of a family that is not known, one that several
            families have with other original names, one for several transformers of a pipeline, or another form, family
            or ending.
        NotImplementedError: DoRA in a foreign form, or a family whose original names are not known.
    """
    if form not in get_args(Form):
        raise ValueError(f"the form {form!r} of a LoRA is unknown; choose one of {', '.join(get_args(Form))}")
    out = Path(out)
    if out.suffix != ".safetensors":
        raise ValueError(f"{out} must end in .safetensors")
    file = find_lora(source)
    stored = read_stored(file)
    transformer = transformer_in(file, stored.layers, stored.header)
    family = families().get(family, family) if family is not None else _family(stored.layers, file)
    names = names_of(family)
    lora = renamed(stored, names)
    check_placed(lora, family, file)
    if form == "diffusers":
        _left_behind(lora, note, file, out)
        recipe = None if transformer is None else LoraRecipe(transformer=transformer)
        header = lora_header(peft_settings(lora.updates, names.layers), recipe)
        header |= {name: stored.header[name] for name in (HEADER, PROXIES) if name in stored.header}
        weights = {f"transformer.{name}": weight.contiguous() for name, weight in peft_weights(lora.updates).items()}
    else:
        weights, header = _foreign(lora, names, family, form), {"format": "pt"}
        if form == "musubi":
            _left_behind(lora, note, file, out)
        if HEADER in stored.header:
            learned = ", learned proxies" if PROXIES in stored.header else ""
            note(f"{out} is without pattern{learned}, positions and sampler: {READERS[form]} has no place for them")
        if transformer not in (None, TRANSFORMERS[0]):
            note(f"{out} does not say that it is for {transformer}: {READERS[form]} has no place for that")
    if lora.left_out:
        note(f"{file}: parts that {family} does not have are left out: {lora.left_out_summary}")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_lora(out, weights, header)
    return out


def _family(layers: list[str], file: Path) -> str:
    """The family of a file, whose original names no other family with such layers contradicts."""
    found = guess_families(layers)
    if not found:
        raise ValueError(f"{file} is of no family that is known: its layers are called {', '.join(layers[:3])}, ...")
    # Models that share a family's layers and have no known original names do not make it doubtful.
    known = [family for family in found if family in ORIGINALS] or found
    if len({original_names(family, layers) for family in known}) > 1:
        raise ValueError(
            f"{file} may be for {' or '.join(known)}, whose original names differ; say which with family=, on the "
            "command line with --family"
        )
    return found[0]


def _left_behind(lora: Renamed, note: Callable[[str], None], file: Path, out: Path) -> None:
    """Say which parts have no form in a file of low-rank matrices alone."""
    if changed := [f"{layer}.{part.parameter}" for layer, parts in lora.differences.items() for part in parts]:
        note(
            f"{file} changes {len(changed)} norms or biases, such as {changed[0]}, which {out} cannot hold; the comfy "
            "form can"
        )


def _foreign(lora: Renamed, names: Names, family: str, form: Form) -> dict[str, torch.Tensor]:
    if family not in ORIGINALS:
        raise NotImplementedError(
            f"the names of {family} in its original code are not known to vidsparse; use the file as it is, or the "
            "form diffusers"
        )
    if any(update.magnitude is not None for update in lora.updates.values()):
        raise NotImplementedError(f"a DoRA cannot be written in the form {form}; use the form diffusers")
    weights: dict[str, torch.Tensor] = {}
    for name, update in _stacked(lora.updates, names).items():
        if form == "comfy":
            up = (update.up.double() * update.scale).to(update.up.dtype)
            new = {f"{name}.lora_A.weight": update.down, f"{name}.lora_B.weight": up}
            weights |= {f"diffusion_model.{key}": weight.contiguous() for key, weight in new.items()}
        else:
            flat = f"lora_unet_{name.replace('.', '_')}"
            weights |= {f"{flat}.lora_down.weight": update.down.contiguous()}
            weights |= {f"{flat}.lora_up.weight": update.up.contiguous()}
            weights[f"{flat}.alpha"] = torch.tensor(update.scale * update.rank)
    if form == "comfy":
        weights |= _differences(lora, names)
    return weights


def _stacked(updates: dict[str, LowRank], names: Names) -> dict[str, LowRank]:
    """The updates of the original layers, which may stack several layers of diffusers."""
    groups: dict[str, dict[str, LowRank]] = defaultdict(dict)
    for layer, update in updates.items():
        groups[names.original_name(layer)][layer] = update
    result = {}
    for name, group in groups.items():
        found, some = names.stacked_with(name), next(iter(group.values()))
        columns = some.down.shape[1]
        rows = dict.fromkeys(found.layers, some.up.shape[0])
        if found.layers[-1].endswith("proj_mlp"):
            total = columns * (len(found.layers) - 1 + MLP_RATIO)
            rows = dict(zip(found.layers, row_counts(found.layers, total, columns), strict=True))
        rows |= {layer: update.up.shape[0] for layer, update in group.items()}
        whole = some if len(rows) == 1 else _one({layer: group[layer] for layer in rows if layer in group}, rows)
        up = torch.cat(whole.up.chunk(2)[::-1]) if found.swapped else whole.up
        result[name] = LowRank(whole.down, up, whole.scale)
    return result


def _one(group: dict[str, LowRank], rows: dict[str, int]) -> LowRank:
    """One update that does what several do below each other; layers without one have zeros."""
    some, updates = next(iter(group.values())), list(group.values())
    alike = all(torch.equal(u.down, some.down) and u.scale == some.scale for u in updates)
    downs = [some.down] if alike else [update.down for update in updates]
    scale = some.scale if len({update.scale for update in updates}) == 1 else 1.0
    up = some.up.new_zeros(sum(rows.values()), sum(down.shape[0] for down in downs))
    row = column = 0
    for layer, count in rows.items():
        if layer in group:
            update = group[layer]
            value = update.up if scale != 1.0 or update.scale == 1.0 else update.up.double() * update.scale
            up[row : row + count, column : column + update.rank] = value.to(up.dtype)
            column += 0 if alike else update.rank
        row += count
    return LowRank(torch.cat(downs), up, scale)


def _differences(lora: Renamed, names: Names) -> dict[str, torch.Tensor]:
    """Differences of original layers; of stacked layers, those of the others are zeros."""
    groups: dict[tuple[str, str, bool], dict[str, torch.Tensor]] = defaultdict(dict)
    for layer, parts in lora.differences.items():
        for part in parts:
            groups[names.original_name(layer), part.parameter, part.replaces][layer] = part.value
    weights = {}
    for (name, parameter, replaces), group in groups.items():
        found, some = names.stacked_with(name), next(iter(group.values()))
        if len(group) < len(found.layers) and (replaces or found.layers[-1].endswith("proj_mlp")):
            raise NotImplementedError(f"the file changes a part of {name}, which the form comfy cannot hold")
        value = torch.cat([group.get(layer, torch.zeros_like(some)) for layer in found.layers])
        value = torch.cat(value.chunk(2)[::-1]) if found.swapped else value
        ending = "set_weight" if replaces else {"weight": "diff", "bias": "diff_b"}[parameter]
        weights[f"diffusion_model.{name}.{ending}"] = value.contiguous()
    return weights
