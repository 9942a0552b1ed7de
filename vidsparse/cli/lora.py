"""`vidsparse lora`: what is in a LoRA file, and the same LoRA for another program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from typer import Argument, Option

from vidsparse.cli.files import OVERWRITE_HELP, check_output
from vidsparse.cli.messages import counted, note
from vidsparse.cli.numbers import bytes_text

if TYPE_CHECKING:
    from vidsparse.lora.convert import Form
    from vidsparse.lora.summary import LoraSummary, Touched

FILE_HELP = "A LoRA file of any trainer; also a folder, a Hub id or 'shapes-long'."
FAMILY_HELP = "What the LoRA is for: the class of a transformer, or its short name, such as wan or ltxvideo."


def convert(
    file: Annotated[str, Argument(help=FILE_HELP, show_default=False)],
    out: Annotated[Path, Argument(help="The new file; its name ends in .safetensors.", show_default=False)],
    form: Annotated[
        str,
        Option(
            "--format",
            help="Who reads it: comfy is ComfyUI, musubi is musubi-tuner and kohya's trainers, diffusers is diffusers.",
            show_default=False,
        ),
    ],
    family: Annotated[str | None, Option(help=FAMILY_HELP, show_default="as the names in the file say")] = None,
    overwrite: Annotated[bool, Option("--overwrite", help=OVERWRITE_HELP)] = False,
) -> None:
    """Write a LoRA for another program. Pattern and positions travel in the form of diffusers alone."""
    check_output(out, ".safetensors", overwrite=overwrite)
    from vidsparse.lora.convert import convert_lora

    convert_lora(file, out, cast("Form", form), family, note=note)
    print(f"wrote {out}")


def show(file: Annotated[str, Argument(help=FILE_HELP, show_default=False)]) -> None:
    """Show what is in a LoRA: who wrote it, for which family, its layers with rank and alpha, its recipe."""
    from rich.console import Console
    from rich.table import Column, Table

    from vidsparse.lora.summary import summarize_lora

    found = summarize_lora(file)
    facts = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2))
    for name, text in _facts(found):
        facts.add_row(f"[bold]{name}", text.replace("[", r"\["))
    right = [Column(heading, justify="right") for heading in ("blocks", "rank", "alpha")]
    layers = Table(Column("layer", overflow="fold"), *right)
    for touched in found.touched:
        numbers = (touched.blocks or "", touched.rank or "", "" if touched.alpha is None else f"{touched.alpha:g}")
        layers.add_row(touched.layer, *map(str, numbers))
    console = Console(highlight=False)
    console.print(facts)
    console.print(layers)


def _facts(found: LoraSummary) -> list[tuple[str, str]]:
    families = " or ".join(name.removesuffix("Transformer3DModel").removesuffix("Model") for name in found.families)
    updates = [touched for touched in found.touched if touched.rank is not None]
    others = [touched for touched in found.touched if touched.rank is None]
    facts = [
        ("file", f"{found.file}, {bytes_text(found.bytes)}"),
        ("form", found.form),
        ("family", families or "unknown: no family has these layers"),
        ("for", found.transformer or "does not say which transformer of a pipeline"),
        ("changes", counted(_count(updates), "layer") + (f", in {', '.join(found.dtypes)}" if updates else "")),
        ("rank", ", ".join(f"{rank}" for rank in sorted({touched.rank or 0 for touched in updates}))),
        ("alpha", _alphas(updates)),
        ("besides", f"{_count(others):,} norms, biases or whole weights" if others else ""),
        ("left out", found.left_out),
        ("recipe", found.recipe.summary),
    ]
    return [(name, text) for name, text in facts if text]


def _alphas(updates: list[Touched]) -> str:
    known = sorted({touched.alpha for touched in updates if touched.alpha is not None})
    return ", ".join(f"{alpha:g}" for alpha in known) or ("not said" if updates else "")


def _count(touched: list[Touched]) -> int:
    return sum(one.blocks or 1 for one in touched)
