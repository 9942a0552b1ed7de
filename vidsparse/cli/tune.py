"""`vidsparse tune`: finds a pattern for each head, layer and phase that together meet a target; writes a profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from vidsparse.cli.files import OVERWRITE_HELP, check_output
from vidsparse.cli.frames import fitted
from vidsparse.cli.messages import note, sampling_bar
from vidsparse.cli.options import DTYPE_HELP, FRAMES, GUIDANCE, MODEL_HELP, OWN, STEPS, read_dtype
from vidsparse.cli.request import Request
from vidsparse.generation.models import DEFAULT

if TYPE_CHECKING:
    from vidsparse.tuning.tune import Tuned

TARGET = "Target: give one"
PROMPTS_HELP = "A .txt file with a prompt on each line."
SEARCH_HELP = "So many of the prompts are measured; the others decide whether the target is reached."
COST_HELP = "What a quality is reached with the least of: seconds of this machine, or density, the same everywhere."
OUTPUT_HELP = "The profile. Beside it, NAME.tuning keeps what was found: the same command again goes on from there."


def tune(
    output: Annotated[Path, Option("--output", "-o", help=OUTPUT_HELP)],
    model: Annotated[str, Option(help=MODEL_HELP)] = DEFAULT,
    target_psnr: Annotated[
        float | None,
        Option(help="dB to dense: mean of the videos minus one standard error, at least.", rich_help_panel=TARGET),
    ] = None,
    target_ssim: Annotated[float | None, Option(help="The same as SSIM, below 1.", rich_help_panel=TARGET)] = None,
    target_speedup: Annotated[float | None, Option(help="Of denoising, at least.", rich_help_panel=TARGET)] = None,
    target_density: Annotated[
        float | None, Option(help="Of token pairs over all calls, at most.", rich_help_panel=TARGET)
    ] = None,
    prompts: Annotated[Path | None, Option(help=PROMPTS_HELP, show_default="scenes, for shapes")] = None,
    search: Annotated[int, Option(min=1, help=SEARCH_HELP)] = 2,
    frames: Annotated[int | None, Option(*FRAMES, min=1, show_default=OWN)] = None,
    height: Annotated[int | None, Option(min=1, show_default=OWN)] = None,
    width: Annotated[int | None, Option(min=1, show_default=OWN)] = None,
    steps: Annotated[int | None, Option(*STEPS, min=2, help="Denoising steps.", show_default=OWN)] = None,
    guidance: Annotated[
        float | None, Option(*GUIDANCE, help="Classifier-free guidance scale.", show_default=OWN)
    ] = None,
    cost: Annotated[str, Option(help=COST_HELP)] = "seconds",
    seed: Annotated[int, Option(min=0, max=2**62, help="Of the noise of the first video.")] = 0,
    dtype: Annotated[
        str | None, Option(help=DTYPE_HELP, callback=read_dtype, show_default="float32 on a CPU, else bfloat16")
    ] = None,
    device: Annotated[str | None, Option(help="Such as cpu or cuda:1.", show_default="the fastest there is")] = None,
    overwrite: Annotated[bool, Option("--overwrite", help=OVERWRITE_HELP)] = False,
) -> None:
    """Find a profile: a pattern for each head of each layer in each phase of noise, under one target.

    Example: vidsparse tune --target-psnr 30 -o shapes.json, then vidsparse generate "..." --profile shapes.json
    """
    from vidsparse.tuning.search import Target
    from vidsparse.tuning.tune import tune as run

    if cost not in ("seconds", "density"):
        raise ValueError(f"--cost {cost} is unknown; choose seconds or density")
    target = Target(target_psnr, target_ssim, target_speedup, target_density)
    check_output(output, ".json", overwrite=overwrite)
    known = Request("", model=model).known
    asked = known.prompts() if prompts is None else _read(prompts)
    if len(asked) <= search:
        raise ValueError(f"{len(asked)} prompts with --search {search} leave none to decide; give more prompts")
    # Options and checks of a video are those of `generate`.
    request = Request(
        asked[0],
        model=model,
        pattern="dense",
        frames=frames,
        height=height,
        width=width,
        steps=steps,
        guidance=guidance,
        seed=seed,
        dtype=dtype,
        device=device,
    )
    pattern, correction, arguments = request.checked()
    asked = [request.read_prompt(prompt) for prompt in asked]
    pipe, _ = request.load(pattern, correction)
    arguments = fitted(pipe, arguments)
    del arguments["prompt"]
    for name, value in zip(("num_frames", "height", "width"), request.size(arguments), strict=True):
        arguments.setdefault(name, value)
    folder = output.with_name(f"{output.stem}.tuning")
    with sampling_bar() as bar:
        found = run(
            pipe,
            model,
            target,
            arguments,
            asked[:search],
            asked[search:],
            folder,
            cost="density" if cost == "density" else "seconds",
            seed=seed,
            on_stage=bar,
        )
    found.profile.save(output)
    _print(found)
    print(f"wrote {output}; {folder} keeps what was measured, and may be removed")
    if not found.reached:
        note(f"no pattern that was tried reaches {target}; {output} has the one that comes closest")
        raise typer.Exit(2)


def _read(path: Path) -> list[str]:
    """The prompts of a file.

    Raises:
        ValueError: a line that is empty, or a prompt that is there twice.
        OSError: the file cannot be read.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise ValueError(f"line {number} of {path} is empty; every line must be a prompt")
        if line in lines[: number - 1]:
            raise ValueError(f"line {number} of {path} repeats the prompt {line!r}")
    return lines


def _print(found: Tuned) -> None:
    from statistics import mean, median

    from rich.console import Console
    from rich.table import Table

    table = Table("budget", "density", "seconds denoising", "faster", "PSNR to dense", "SSIM", title="tried")
    for column in table.columns:
        column.justify = "right"
    for trial in sorted(found.trials, key=lambda trial: trial.budget):
        seconds = median(trial.seconds)
        table.add_row(
            *(f"{trial.budget:.0%}", f"{trial.density:.3f}", f"{seconds:.2f}"),
            *(f"{found.dense_seconds / seconds:.2f}x", f"{mean(trial.psnr):.1f} dB", f"{mean(trial.ssim):.3f}"),
        )
    Console(highlight=False).print(table)
